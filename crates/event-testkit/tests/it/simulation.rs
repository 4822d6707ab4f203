//! The store in memory on the tasks of a runtime.

use std::{sync::Arc, time::Duration};

use domain_events::{EventStore, Position};
use event_testkit::{
    event_store::{append_all, batch, noted},
    memory_store::MemoryStore,
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
