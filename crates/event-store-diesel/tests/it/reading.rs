//! Reading where the log is long, or not what was written.

use std::{sync::mpsc, thread};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_types::BigInt,
};
use domain_events::{
    DeadLetterQuery, DeliveryChange, DeliveryStore, DomainEvent, EventId, EventQuery, EventStore,
    EventStream, NewEvent, Position, Progress, Registration, StartFrom, Timestamp, WaitingDelivery,
};
use event_store_diesel::SqliteEventStore;
use event_testkit::event_store::{append_all, notebook, noted};
use serde::{Deserialize, Serialize};

use crate::support::{PATIENCE, fresh, in_memory, sql, submit};

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
async fn r4_no_page_leaves_a_cursor_open() {
    #[derive(QueryableByName)]
    struct Checkpoint {
        #[diesel(sql_type = BigInt)]
        busy: i64,
    }

    let (store, folder) = fresh();
    let name = "one".into();
    let start_from = StartFrom::Beginning;
    let registration = Registration {
        name,
        former_names: Vec::new(),
        start_from,
        projection: None,
    };
    store.begin_run(vec![registration]).await.unwrap();
    let root = EventId::new();
    append_all(&*store, [noted("a", "").id(root)]).await;
    let path = folder.path().join("events.db");
    let mut beside = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    // A page that is on its way ends by itself.
    let patience = format!("PRAGMA busy_timeout = {}", PATIENCE.as_millis());
    beside.batch_execute(&patience).unwrap();
    for query in [
        EventQuery::Log,
        EventQuery::history(notebook("a")),
        EventQuery::OfType("testkit.noted".into()),
        EventQuery::Correlated(root.into()),
        EventQuery::Recorded(Timestamp::from_micros(0)..=Timestamp::from_micros(i64::MAX)),
        EventQuery::Unfinished,
    ] {
        let follows = (0..20).map(|_| noted("a", "").correlation_id(root.into()));
        append_all(&*store, follows).await;
        let mut stream = EventStream::new(&*store, query.clone()).page_size(3);
        stream.next().await.unwrap().unwrap();
        store.read(&query, Position::ZERO, 2).await.unwrap();
        store.get(root).await.unwrap().unwrap();
        store.summary(&query).await.unwrap();
        store.statistics().await.unwrap();
        store
            .dead_letters(&DeadLetterQuery::all(), 1)
            .await
            .unwrap();
        // The page that is read ahead.
        stream.next().await.unwrap().unwrap();
        stream.next().await.unwrap().unwrap();
        stream.next().await.unwrap().unwrap();
        // It cannot start the log afresh while somebody reads from it.
        let checkpoint = diesel::sql_query("PRAGMA wal_checkpoint(TRUNCATE)");
        let checkpoint = checkpoint.get_result::<Checkpoint>(&mut beside).unwrap();
        assert_eq!(checkpoint.busy, 0, "{query:?}");
        stream.next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn p3_a_page_of_a_chain_leaves_nothing_out_while_others_append() {
    let (store, _folder) = fresh();
    for _ in 0..100 {
        let root = EventId::new();
        let follows = noted("a", "").correlation_id(root.into());
        let answer = submit(&store, [follows, noted("a", "").id(root)]);
        let query = EventQuery::Correlated(root.into());
        loop {
            let page = store.read(&query, Position::ZERO, 9).await.unwrap();
            match page.len() {
                0 => thread::yield_now(),
                2 => break,
                _ => panic!("the event before {:?} is left out", page[0].position()),
            }
        }
        answer.recv_timeout(PATIENCE).unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_counted_in_parts_is_of_one_moment_while_others_append() {
    let (store, _folder) = fresh();
    for _ in 0..100 {
        let root = EventId::new();
        let follows = noted("a", "").correlation_id(root.into());
        let answer = submit(&store, [follows, noted("a", "").id(root)]);
        let chain = EventQuery::Correlated(root.into());
        let mut is_there = false;
        while !is_there {
            is_there = answer.try_recv().is_ok();
            let statistics = store.statistics().await.unwrap();
            let of_types: u64 = statistics.by_type.values().sum();
            assert_eq!(statistics.log.events, of_types);
            let events = store.summary(&chain).await.unwrap().events;
            assert!(events == 0 || events == 2, "{events} of 2");
        }
    }
}

#[tokio::test]
async fn r1_what_waits_is_unfinished_while_it_is_told_in_another_way() {
    let (store, _folder) = fresh();
    let name = "one".into();
    let start_from = StartFrom::Beginning;
    let registration = Registration {
        name,
        former_names: Vec::new(),
        start_from,
        projection: None,
    };
    let run = store.begin_run(vec![registration]).await.unwrap();
    let id = run.subscriptions[0].id;
    append_all(&*store, [noted("a", "")]).await;
    let progressed = |unfinished: &[Position]| {
        let progress = Progress {
            through: Position::FIRST,
            unfinished: unfinished.to_vec(),
        };
        DeliveryChange::Progressed(id, progress)
    };
    let waiting = WaitingDelivery {
        position: Position::FIRST,
        aggregate: notebook("a"),
        attempts: 1,
        is_replay: false,
        first_attempt_at: Timestamp::from_micros(1),
        due_at: Timestamp::from_micros(2),
        last_error: String::new(),
    };
    // Either a row says that it waits, or the progress says that it is unfinished.
    let as_row = || {
        vec![
            progressed(&[]),
            DeliveryChange::Waiting(id, waiting.clone()),
        ]
    };
    let as_progress = || {
        let finished = DeliveryChange::Finished(id, Position::FIRST);
        vec![progressed(&[Position::FIRST]), finished]
    };
    change(&store, as_row()).recv_timeout(PATIENCE).unwrap();
    for round in 0..100 {
        let end = match round % 2 {
            0 => change(&store, as_progress()),
            _ => change(&store, as_row()),
        };
        let mut has_ended = false;
        while !has_ended {
            has_ended = end.try_recv().is_ok();
            let query = EventQuery::Unfinished;
            let page = store.read(&query, Position::ZERO, 9).await.unwrap();
            assert_eq!(page.len(), 1, "in round {round}");
            assert_eq!(store.summary(&query).await.unwrap().events, 1);
        }
    }
}

fn change(store: &SqliteEventStore, changes: Vec<DeliveryChange>) -> mpsc::Receiver<()> {
    let (send, end) = mpsc::channel();
    store.submit_changes(
        changes,
        Box::new(move |done| {
            done.unwrap();
            let _ = send.send(());
        }),
    );
    end
}
