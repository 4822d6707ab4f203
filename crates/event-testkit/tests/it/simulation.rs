//! The store in memory on the tasks of a runtime.

use std::{sync::Arc, time::Duration};

use domain_events::{EventStore, Position};
use event_testkit::{
    event_store::{append_all, batch, noted},
    memory_store::{Crash, MemoryStore},
};
use tokio::time::timeout;

#[tokio::test(start_paused = true)]
async fn a_paused_clock_waits_for_the_answers() {
    let store = MemoryStore::on_runtime();
    for position in 1..=100 {
        let appended = timeout(
            Duration::from_nanos(1),
            append_all(&store, [noted("a", "")]),
        );
        assert_eq!(appended.await.unwrap(), [position]);
    }
}

#[test]
fn an_answer_is_given_though_its_runtime_has_ended() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = runtime.block_on(async { Arc::new(MemoryStore::on_runtime()) });
    let (send, receive) = std::sync::mpsc::channel();
    for number in 0..10 {
        let send = send.clone();
        let done = move |_| send.send(number).unwrap_or(());
        store.submit(batch([noted("a", "")]), Box::new(done));
        if number == 4 {
            // The task that gives the answers has not run yet.
            assert!(receive.try_recv().is_err());
        }
    }
    drop(runtime);
    drop(send);
    assert!(receive.iter().eq(0..10));
}

#[tokio::test]
async fn an_answer_that_panics_stops_nobody() {
    let store = MemoryStore::new();
    let done = |_| panic!("a caller's own fault");
    store.submit(batch([noted("a", "")]), Box::new(done));
    assert_eq!(append_all(&store, [noted("a", "")]).await, [2]);
    assert_eq!(store.head().await.unwrap(), Position::new(2));
}

#[tokio::test(start_paused = true)]
async fn a_store_dies_before_a_call_or_after_it_and_lives_on_with_what_was_done() {
    for (crash, done) in [(Crash::Before(2), 1), (Crash::After(2), 2)] {
        let store = MemoryStore::on_runtime();
        store.crash_at(crash);
        assert_eq!(append_all(&store, [noted("a", "")]).await, [1]);
        let second = append_all(&store, [noted("a", "")]);
        let late = timeout(Duration::from_secs(3_600), second).await;
        assert!(late.is_err(), "it is never answered");
        assert!(store.has_crashed());
        store.crashed().await;
        let read = timeout(Duration::from_secs(3_600), store.head()).await;
        assert!(read.is_err(), "nor is anything after it");
        assert_eq!(store.calls(), 2);
        let store = store.restarted();
        assert_eq!(store.head().await.unwrap(), Position::new(done));
        assert_eq!(store.verify(), [""; 0]);
    }
}

#[test]
fn who_waits_for_a_dead_store_is_forgotten_with_its_restart() {
    let store = MemoryStore::new();
    store.crash_at(Crash::Before(1));
    let waits = Arc::new(());
    let held = Arc::clone(&waits);
    let done = Box::new(move |_| drop(held));
    store.submit(batch([noted("a", "")]), done);
    assert_eq!(Arc::strong_count(&waits), 2, "kept, and not called");
    drop(store.restarted());
    assert_eq!(Arc::strong_count(&waits), 1);
}
