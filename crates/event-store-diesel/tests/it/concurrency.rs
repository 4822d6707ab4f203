//! Many who append at once.

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use diesel::connection::SimpleConnection;
use domain_events::{
    AppendError, Appended, EventId, EventStore, ExpectedVersion, Position, StoreErrorKind, Version,
};
use event_testkit::event_store::{append_all, batch, noted};

use crate::support::{PATIENCE, folder, fresh, locked, submit};

const THREADS: usize = 8;
const BATCHES: usize = 60;

/// What each answer said: the positions of its batch, or none for a refusal.
fn append_from_many_threads(store: &Arc<impl EventStore + 'static>) -> Vec<Vec<u64>> {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let (send, receive) = mpsc::channel();
    for thread in 0..THREADS {
        let (store, answers, send) = (Arc::clone(store), Arc::clone(&answers), send.clone());
        thread::spawn(move || {
            for number in 0..BATCHES {
                let (answers, send) = (Arc::clone(&answers), send.clone());
                let mut events: Vec<_> = (0..number % 5 + 1)
                    .map(|event| noted(&format!("{}", (thread + event) % 3), "text"))
                    .collect();
                if number % 7 == 3 {
                    // After some rows of the batch would have been written.
                    events.push(
                        noted("0", "no").expect(ExpectedVersion::Exact(Version::new(u64::MAX))),
                    );
                }
                let done = move |result: Result<Vec<Appended>, AppendError>| {
                    let positions = result.map_or_else(
                        |_| Vec::new(),
                        |all| {
                            all.iter()
                                .map(|it| it.event.position().unwrap().get())
                                .collect()
                        },
                    );
                    answers.lock().unwrap().push(positions);
                    let _ = send.send(());
                };
                store.submit(batch(events), Box::new(done));
            }
        });
    }
    for _ in 0..THREADS * BATCHES {
        receive.recv_timeout(PATIENCE).unwrap();
    }
    std::mem::take(&mut *answers.lock().unwrap())
}

#[tokio::test]
async fn p3_positions_are_dense_versions_have_no_gap_and_answers_follow_the_log() {
    let (store, _folder) = fresh();
    let answers = append_from_many_threads(&store);
    let refused = answers
        .iter()
        .filter(|positions| positions.is_empty())
        .count();
    assert_eq!(
        refused,
        THREADS * (0..BATCHES).filter(|number| number % 7 == 3).count()
    );
    let head = answers.iter().map(Vec::len).sum::<usize>() as u64;
    let answered: Vec<u64> = answers.into_iter().flatten().collect();
    assert_eq!(answered, (1..=head).collect::<Vec<u64>>());

    let log = store.read_log(Position::ZERO, usize::MAX).await.unwrap();
    let positions: Vec<u64> = log
        .iter()
        .map(|event| event.position().unwrap().get())
        .collect();
    assert_eq!(positions, answered);
    let mut versions: HashMap<_, u64> = HashMap::new();
    for event in &log {
        let version = versions.entry(event.aggregate().clone()).or_default();
        *version += 1;
        assert_eq!(event.version().unwrap().get(), *version);
    }
    assert_eq!(store.head().await.unwrap().get(), head);
}

#[tokio::test]
async fn an_answer_that_panics_stops_nobody() {
    let (store, _folder) = fresh();
    store.submit(
        batch([noted("a", "")]),
        Box::new(|_| panic!("a caller's own fault")),
    );
    let next = submit(&store, [noted("a", "")]);
    assert_eq!(next.recv_timeout(PATIENCE).unwrap().unwrap().len(), 1);
    assert_eq!(append_all(&*store, [noted("a", "")]).await, [3]);
}

#[tokio::test]
async fn a_batch_larger_than_a_group_is_appended_whole() {
    let (store, _folder) = fresh();
    let before = submit(&store, [noted("a", "")]);
    let large = submit(
        &store,
        (0..5_000).map(|number| noted(&number.to_string(), "")),
    );
    let after = submit(&store, [noted("a", "")]);
    for (answer, events) in [(before, 1), (large, 5_000), (after, 1)] {
        assert_eq!(
            answer.recv_timeout(PATIENCE).unwrap().unwrap().len(),
            events
        );
    }
    assert_eq!(store.head().await.unwrap(), Position::new(5_002));
}

#[tokio::test]
async fn p7_what_another_connection_appends_is_seen() {
    let (store, folder) = fresh();
    append_all(&*store, [noted("a", ""), noted("b", "")]).await;
    crate::support::sql(
        &folder.path().join("events.db"),
        "INSERT INTO de_events SELECT 3, zeroblob(16), type_key, aggregate_key, 2, schema_version, urgency, payload, \
         metadata, correlation_id, causation_id, occurred_at, recorded_at, checksum FROM de_events WHERE position = 1; \
         UPDATE de_aggregates SET head_version = 2 WHERE aggregate_id = 'a'",
    );
    assert_eq!(
        append_all(&*store, [noted("a", ""), noted("b", "")]).await,
        [4, 5]
    );
    let event = store.read_log(Position::new(3), 1).await.unwrap().remove(0);
    assert_eq!(event.version().unwrap().get(), 3);
}

#[tokio::test]
async fn p6_an_event_that_another_connection_appended_is_found() {
    let (store, folder) = fresh();
    append_all(&*store, [noted("a", "")]).await;
    // Greater than every id that the store has seen.
    crate::support::sql(
        &folder.path().join("events.db"),
        "INSERT INTO de_events SELECT 2, x'ffffffffffffffffffffffffffffffff', type_key, aggregate_key, 2, \
         schema_version, urgency, payload, metadata, correlation_id, causation_id, occurred_at, recorded_at, checksum \
         FROM de_events; UPDATE de_aggregates SET head_version = 2",
    );
    let event = noted("a", "").id(EventId::from_bytes([0xff; 16]));
    let again = store.append(batch([event])).await.unwrap().remove(0);
    assert!(again.already_there);
    assert_eq!(again.event.position(), Some(Position::new(2)));
}

#[tokio::test]
async fn a_lock_held_by_another_connection_is_a_typed_error_and_the_store_works_on() {
    let folder = folder();
    let (store, mut other) = locked(folder.path(), Duration::from_millis(20));
    match store.append(batch([noted("a", "")])).await {
        Err(AppendError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Busy),
        other => panic!("not busy: {other:?}"),
    }
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(append_all(&store, [noted("a", "")]).await, [1]);
}

#[test]
fn p1_requests_that_wait_share_a_commit() {
    const REQUESTS: u64 = 200;
    const FRAME: u64 = 24 + 4_096;

    let folder = folder();
    let (store, mut other) = locked(folder.path(), PATIENCE);
    let log = || fs::metadata(folder.path().join("events.db-wal")).map_or(0, |it| it.len());
    let before = log();
    let answers: Vec<_> = (0..REQUESTS)
        .map(|_| submit(&store, [noted("a", "")]))
        .collect();
    // The first waits for this alone, and the others behind it.
    other.batch_execute("ROLLBACK").unwrap();
    for answer in answers {
        answer.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    // Each commit of its own would write some pages at least.
    let written = log() - before;
    assert!(written < REQUESTS * FRAME, "{written} bytes");
}

#[tokio::test]
async fn p3_answers_to_many_hold_up_no_commit_and_none_overtakes_them() {
    const MANY: u64 = 100;

    let folder = folder();
    let (store, mut other) = locked(folder.path(), PATIENCE);
    let (send, answers) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let submit = |number: u64, gate: Option<mpsc::Receiver<()>>| {
        let send = send.clone();
        let done = move |end: Result<Vec<Appended>, AppendError>| {
            if let Some(gate) = gate {
                let _ = gate.recv();
            }
            let _ = send.send((number, end.unwrap()[0].event.position()));
        };
        store.submit(batch([noted("a", "")]), Box::new(done));
    };
    // The first waits for the lock alone, and the others behind it.
    submit(1, None);
    (2..=MANY).for_each(|number| submit(number, None));
    submit(MANY + 1, Some(gate));
    other.batch_execute("ROLLBACK").unwrap();
    let begun = Instant::now();
    let until_committed = async |number: u64| {
        while store.head().await.unwrap().get() < number {
            assert!(begun.elapsed() < PATIENCE, "{number} is not committed");
            thread::yield_now();
        }
    };
    until_committed(MANY + 1).await;
    submit(MANY + 2, None);
    until_committed(MANY + 2).await;
    drop(open);
    for number in 1..=MANY + 2 {
        let answer = answers.recv_timeout(PATIENCE).unwrap();
        assert_eq!(answer, (number, Some(Position::new(number))));
    }
}

#[tokio::test]
async fn one_request_that_the_database_refuses_does_not_take_its_neighbours_along() {
    let (store, folder) = fresh();
    crate::support::sql(
        &folder.path().join("events.db"),
        "CREATE TRIGGER no BEFORE INSERT ON de_events WHEN CAST(NEW.payload AS TEXT) LIKE '%poison%' \
         BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    let answers = [
        submit(&store, [noted("a", "")]),
        submit(&store, [noted("b", ""), noted("b", "poison")]),
        submit(&store, [noted("a", ""), noted("b", "")]),
    ];
    let answers = answers.map(|answer| answer.recv_timeout(PATIENCE).unwrap());
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert!(matches!(answers[1], Err(AppendError::Store(_))));
    let log = store.read_log(Position::ZERO, 10).await.unwrap();
    let places: Vec<_> = log
        .iter()
        .map(|event| {
            (
                event.position().unwrap().get(),
                event.version().unwrap().get(),
            )
        })
        .collect();
    assert_eq!(places, [(1, 1), (2, 2), (3, 1)]);
}
