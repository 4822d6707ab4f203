//! Reading where the log is long, or not what was written.

use domain_events::{DomainEvent, EventQuery, EventStore, NewEvent, Position, Timestamp};
use event_testkit::event_store::{append_all, noted};
use serde::{Deserialize, Serialize};

use crate::support::{fresh, in_memory, sql};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.rare", aggregate = "notebook", id = notebook)]
struct Rare {
    notebook: String,
}

fn rare() -> NewEvent {
    NewEvent::new(Rare {
        notebook: "a".to_owned(),
    })
}

#[tokio::test]
async fn events_of_a_rare_type_are_found_however_far_apart() {
    let store = in_memory();
    append_all(&store, [rare(), rare()]).await;
    append_all(&store, (0..40_000).map(|_| noted("a", ""))).await;
    append_all(&store, [rare()]).await;
    let query = EventQuery::OfType("test.rare".into());
    let read = async |after, limit| {
        let page = store.read(&query, Position::new(after), limit).await;
        let events = page.unwrap().into_iter();
        events
            .map(|event| event.position().unwrap().get())
            .collect::<Vec<_>>()
    };
    assert_eq!(read(0, 10).await, [1, 2, 40_003]);
    assert_eq!(read(1, 1).await, [2]);
    assert_eq!(read(2, 1).await, [40_003]);
    assert!(read(40_003, 1).await.is_empty());
    assert!(read(u64::MAX, 1).await.is_empty());
}

#[tokio::test]
async fn f7_a_damaged_time_leads_nobody_past_events_that_are_intact() {
    let (store, folder) = fresh();
    for _ in 0..15 {
        append_all(&*store, [noted("a", "")]).await;
    }
    let log = store.read_log(Position::ZERO, 20).await.unwrap();
    let time = |index: usize| log[index].recorded().unwrap().at;
    let path = folder.path().join("events.db");
    // Where the search would look first, and next.
    for damage in ["0", "9223372036854775807"] {
        sql(
            &path,
            &format!("UPDATE de_events SET recorded_at = {damage} WHERE position IN (4, 8, 12)"),
        );
        for index in [0, 2, 5, 9, 14] {
            let query = EventQuery::Recorded(time(index)..=time(index));
            let found = store.read(&query, Position::ZERO, 20).await.unwrap();
            let wanted = Some(Position::new(index as u64 + 1));
            assert!(found.iter().any(|event| event.position() == wanted));
        }
    }
}

#[tokio::test]
async fn recorded_times_ascend_though_the_clock_goes_back() {
    let (store, folder) = fresh();
    append_all(&*store, [noted("a", "")]).await;
    // As if the clock had been wrong by some years then.
    let ahead = Timestamp::now().as_micros() + 100_000_000_000_000;
    sql(
        &folder.path().join("events.db"),
        &format!("UPDATE de_events SET recorded_at = {ahead}"),
    );
    append_all(&*store, [noted("a", ""), noted("b", "")]).await;
    let log = store.read_log(Position::ZERO, 10).await.unwrap();
    let times: Vec<_> = log.iter().map(|it| it.recorded().unwrap().at).collect();
    assert_eq!(times, [Timestamp::from_micros(ahead); 3]);
}
