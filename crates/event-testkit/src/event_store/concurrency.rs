//! Many threads that append at once.

use std::collections::HashMap;
use std::sync::mpsc;
use std::thread;

use domain_events::{AppendError, Appended, ExpectedVersion, NewEvent, Position, Version};

use super::{PATIENCE, Store, batch, noted, version};

const THREADS: u64 = 6;
const EVENTS: u64 = 20;

/// Appends from a thread without a runtime.
fn append(store: &impl Store, event: NewEvent) -> Result<Appended, AppendError> {
    let (send, receive) = mpsc::channel();
    let done = move |end| drop(send.send(end));
    store.submit(batch([event]), Box::new(done));
    let answer = receive.recv_timeout(PATIENCE).expect("an answer");
    answer.map(|mut all: Vec<Appended>| all.remove(0))
}

/// Each version is given once: who comes second is told what the version is.
pub async fn p6_of_writers_on_one_aggregate_one_wins_each_version(store: &impl Store) {
    let increment = || {
        let mut known = Version::ZERO;
        let mut won = 0;
        while won < EVENTS {
            let expected = ExpectedVersion::Exact(known);
            match append(store, noted("a", "").expect(expected)) {
                Ok(appended) => {
                    assert_eq!(appended.event.version(), Some(known.next()));
                    known = known.next();
                    won += 1;
                }
                Err(AppendError::WrongVersion { actual, .. }) => {
                    assert!(actual > known);
                    known = actual;
                }
                Err(other) => panic!("not appended: {other}"),
            }
        }
    };
    thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(increment)));
    });
    assert_dense(store, THREADS * EVENTS).await;
}

/// Who shares nothing with the others is refused nothing.
pub async fn p6_writers_on_different_aggregates_do_not_meet(store: &impl Store) {
    thread::scope(|scope| {
        for writer in 0..THREADS {
            scope.spawn(move || {
                for number in 0..EVENTS {
                    let expected = ExpectedVersion::Exact(Version::new(number));
                    let event = noted(&writer.to_string(), "").expect(expected);
                    append(store, event).expect("appended");
                }
            });
        }
    });
    assert_dense(store, THREADS * EVENTS).await;
}

/// Positions without a gap, and versions without one in each aggregate.
async fn assert_dense(store: &impl Store, events: u64) {
    let log = store.read_log(Position::ZERO, 10_000).await.expect("read");
    assert_eq!(log.len() as u64, events);
    let mut versions = HashMap::new();
    for (event, position) in log.iter().zip(1..) {
        assert_eq!(event.position(), Some(Position::new(position)));
        let last = versions.entry(event.aggregate().clone()).or_insert(0);
        *last += 1;
        assert_eq!(version(event), *last);
    }
}
