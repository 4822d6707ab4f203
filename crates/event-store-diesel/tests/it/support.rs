//! Stores in temporary directories, and connections beside them.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use domain_events::{AppendError, Appended, EventEnvelope, EventStore, NewEvent, Position};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{Noted, append_all, batch, noted};
use tempfile::TempDir;

/// How long an answer may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn open(path: &Path) -> SqliteEventStore {
    SqliteEventStore::open(path, SqliteOptions::default()).unwrap()
}

/// A new store with the directory it is in.
pub(crate) fn fresh() -> (Arc<SqliteEventStore>, TempDir) {
    let folder = folder();
    let store = open(&folder.path().join("events.db"));
    (Arc::new(store), folder)
}

pub(crate) fn in_memory() -> SqliteEventStore {
    SqliteEventStore::in_memory(SqliteOptions::default()).unwrap()
}

/// Runs SQL on the file, as any other program would.
pub(crate) fn sql(path: &Path, sql: &str) {
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    conn.batch_execute(sql).unwrap();
}

/// A store that waits for a lock so long, and another connection that has it.
pub(crate) fn locked(
    folder: &Path,
    busy_timeout: Duration,
) -> (SqliteEventStore, SqliteConnection) {
    let path = folder.join("events.db");
    let options = SqliteOptions {
        busy_timeout,
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::open(&path, options).unwrap();
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    (store, other)
}

/// A closed store of `events` events; returns its bytes.
pub(crate) async fn filled(path: &Path, events: u64) -> Vec<u8> {
    let store = open(path);
    let text = "x".repeat(1_000);
    append_all(&store, (0..events).map(|_| noted("a", &text))).await;
    store.close().await;
    std::fs::read(path).unwrap()
}

/// Every event of the log is there, intact and dense; returns how many.
pub(crate) async fn check(store: &SqliteEventStore) -> u64 {
    let log = store.read_log(Position::ZERO, usize::MAX).await.unwrap();
    let positions = log.iter().map(|event| event.position().unwrap().get());
    assert!(positions.eq(1..=log.len() as u64));
    let intact = |event: EventEnvelope| {
        let event = Arc::new(event);
        event.typed::<Noted>().is_ok()
    };
    let count = log.len() as u64;
    assert!(log.into_iter().all(intact));
    count
}

/// Everything in a directory, with its bytes.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

pub(crate) type Answer = mpsc::Receiver<Result<Vec<Appended>, AppendError>>;

/// Hands a batch over; the answer comes later.
pub(crate) fn submit(
    store: &SqliteEventStore,
    events: impl IntoIterator<Item = NewEvent>,
) -> Answer {
    let (send, receive) = mpsc::channel();
    store.submit(
        batch(events),
        Box::new(move |result| drop(send.send(result))),
    );
    receive
}

/// Says that a test is skipped, also where the output of a test that passes is not shown.
#[expect(
    clippy::explicit_write,
    reason = "eprintln! is one of what is not shown"
)]
pub(crate) fn skipped(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
}
