//! Processes that are killed, and processes that come second.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use domain_events::{EventStore, Position};
use event_store_diesel::{Durability, OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, noted};

use crate::support::{folder, open};

pub(crate) const STORE: &str = "EVENT_STORE_OF_CHILD";

/// How many events a child appends before it ends by itself.
pub(crate) const EVENTS: &str = "EVENTS_OF_CHILD";
/// Set where the child is to run with [`Durability::Normal`].
pub(crate) const NORMAL: &str = "NORMAL_DURABILITY_OF_CHILD";

/// What has this test binary run nothing but one test that others start.
pub(crate) fn arguments(test: &str) -> [&str; 4] {
    [test, "--exact", "--nocapture", "--ignored"]
}

/// This test binary once more, running nothing but [`child`] on the store.
pub(crate) fn spawn_child(path: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(arguments("crash::child"))
        .env(STORE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// Appends events and says so, one a line, until it is killed or has appended enough.
#[test]
#[ignore = "a process of its own, started by the other tests"]
#[expect(clippy::print_stdout, reason = "the parent reads it")]
fn child() {
    let Some(path) = env::var_os(STORE) else {
        return;
    };
    let limit = env::var(EVENTS).map_or(u64::MAX, |it| it.parse().unwrap());
    let durability = match env::var_os(NORMAL) {
        Some(_) => Durability::Normal,
        None => Durability::Full,
    };
    let options = SqliteOptions {
        durability,
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::open(Path::new(&path), options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for number in 0..limit {
        let event = noted(&(number % 3).to_string(), &number.to_string());
        let positions = runtime.block_on(append_all(&store, [event]));
        println!("\nappended {}", positions[0]);
    }
}

/// Reads what a child says until it has appended this many, and returns the last position.
///
/// The child's output stays open, so that nothing stops it but the kill.
pub(crate) fn wait_for(output: &mut BufReader<ChildStdout>, events: usize) -> u64 {
    let appended = output.lines().map_while(Result::ok);
    let mut positions = appended.filter_map(|line| line.strip_prefix("appended ")?.parse().ok());
    positions.nth(events - 1).unwrap()
}

#[tokio::test]
async fn p1_every_acknowledged_event_survives_a_kill() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let mut before = 0;
    for round in 1..=3 {
        let (mut child, mut output) = spawn_child(&path);
        let acknowledged = wait_for(&mut output, 40 * round);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(&path);
        let log = store.read_log(Position::ZERO, usize::MAX).await.unwrap();
        assert!(acknowledged > before && log.len() as u64 >= acknowledged);
        let positions = log.iter().map(|event| event.position().unwrap().get());
        assert!(positions.eq(1..=log.len() as u64));
        before = log.len() as u64;
        store.close().await;
    }
}

#[test]
fn r6_another_process_is_named_while_it_has_the_store() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let (mut child, mut output) = spawn_child(&path);
    wait_for(&mut output, 1);
    match SqliteEventStore::open(&path, SqliteOptions::default()) {
        Err(OpenError::InUse {
            holder: Some(holder),
            ..
        }) => assert_eq!(holder.pid, child.id()),
        other => panic!("opened: {other:?}"),
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock goes with the process, whatever its file says.
    open(&path).close_blocking();
}
