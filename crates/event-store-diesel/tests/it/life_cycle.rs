//! Opening, closing, opening again.

use std::{path::Path, sync::Arc};

use domain_events::{
    AppendError, DeliveryChange, DeliveryStore, EventStore, Position, Progress, Registration,
    StartFrom, StoreErrorKind, Timestamp,
};
use event_store_diesel::{Durability, OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, batch, noted};

use crate::support::{PATIENCE, folder, in_memory, open, submit};

fn registrations() -> Vec<Registration> {
    let name = "one".into();
    let start_from = StartFrom::Beginning;
    vec![Registration {
        name,
        former_names: Vec::new(),
        start_from,
        projection: None,
    }]
}

#[tokio::test]
async fn p1_everything_is_there_after_opening_again() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    append_all(
        &store,
        (0..10).map(|number| noted(&(number % 3).to_string(), "text")),
    )
    .await;
    let id = store
        .begin_run(registrations())
        .await
        .unwrap()
        .subscriptions[0]
        .id;
    let progress = Progress {
        through: Position::new(7),
        unfinished: vec![Position::new(2), Position::new(6)],
    };
    let (send, receive) = std::sync::mpsc::channel();
    let changes = vec![
        DeliveryChange::Progressed(id, progress.clone()),
        DeliveryChange::RunEnded,
    ];
    store.submit_changes(changes, Box::new(move |end| drop(send.send(end))));
    receive.recv_timeout(PATIENCE).unwrap().unwrap();
    store.close().await;

    let store = open(&path);
    assert_eq!(store.head().await.unwrap(), Position::new(10));
    assert_eq!(store.read_log(Position::ZERO, 100).await.unwrap().len(), 10);
    let state = store.begin_run(registrations()).await.unwrap();
    assert!(state.after_clean_end);
    assert_eq!(state.subscriptions[0].progress, progress);
    assert_eq!(append_all(&store, [noted("0", "")]).await, [11]);
    let last = store
        .read_log(Position::new(10), 1)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(last.version().unwrap().get(), 5);
}

#[tokio::test]
async fn l2_a_closed_store_has_finished_everything_and_refuses_the_rest() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = Arc::new(open(&path));
    let answers: Vec<_> = (0..50).map(|_| submit(&store, [noted("a", "")])).collect();
    store.close().await;
    for answer in answers {
        answer.try_recv().unwrap().unwrap();
    }
    store.close().await;
    store.close_blocking();

    match store.append(batch([noted("a", "")])).await {
        Err(AppendError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Closed),
        other => panic!("not closed: {other:?}"),
    }
    let error = store.head().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Closed);
    let error = store.begin_run(registrations()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Closed);
    assert_eq!(open(&path).head().await.unwrap(), Position::new(50));
}

#[tokio::test]
async fn l2_a_refusal_is_never_given_on_the_thread_of_the_caller() {
    for store in [in_memory(), open(&folder().path().join("events.db"))] {
        store.close().await;
        let (send, receive) = std::sync::mpsc::channel();
        for number in 0..100 {
            let send = send.clone();
            let done = move |_| {
                let _ = send.send((number, std::thread::current().id()));
            };
            store.submit(batch([noted("a", "")]), Box::new(done));
        }
        for number in 0..100 {
            let (answered, thread) = receive.recv_timeout(PATIENCE).unwrap();
            assert_eq!(answered, number);
            assert_ne!(thread, std::thread::current().id());
        }
    }
}

#[cfg(target_os = "linux")]
fn handles_of(path: &Path) -> usize {
    let name = path.display().to_string();
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets
        .filter(|target| target.display().to_string().starts_with(&name))
        .count()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn l2_close_releases_every_handle() {
    let folder = folder();
    let path = folder.path().canonicalize().unwrap().join("events.db");
    let store = open(&path);
    append_all(&store, [noted("a", "")]).await;
    for _ in 0..10 {
        store.head().await.unwrap();
    }
    assert_ne!(handles_of(&path), 0);
    store.close().await;
    assert_eq!(handles_of(&path), 0);
    assert!(!folder.path().join("events.db-wal").exists());
}

#[tokio::test]
async fn l2_a_dropped_store_finishes_what_it_was_given_and_can_be_opened_at_once() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    let answers: Vec<_> = (0..50).map(|_| submit(&store, [noted("a", "")])).collect();
    drop(store);
    let store = open(&path);
    assert_eq!(store.head().await.unwrap(), Position::new(50));
    answers
        .iter()
        .for_each(|answer| drop(answer.try_recv().unwrap().unwrap()));
}

#[tokio::test]
async fn l2_a_store_may_be_dropped_in_an_answer() {
    let store = Arc::new(in_memory());
    let (send, receive) = std::sync::mpsc::channel();
    let last = Arc::clone(&store);
    let done = move |_| {
        drop(last);
        let _ = send.send(());
    };
    store.submit(batch([noted("a", "")]), Box::new(done));
    drop(store);
    receive.recv_timeout(PATIENCE).unwrap();
}

#[tokio::test]
async fn the_write_ahead_log_is_moved_to_the_file_as_it_grows() {
    const PAGES: u32 = 50;
    const FRAME: u64 = 24 + 4_096;

    let folder = folder();
    let options = SqliteOptions {
        checkpoint_pages: PAGES,
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::open(folder.path().join("events.db"), options).unwrap();
    let text = "x".repeat(10_000);
    for _ in 0..200 {
        append_all(&store, [noted("a", &text)]).await;
    }
    let log = std::fs::metadata(folder.path().join("events.db-wal")).unwrap();
    // With the last commit, which brought it over the limit.
    assert!(
        log.len() < u64::from(PAGES) * 2 * FRAME,
        "{} bytes",
        log.len()
    );
}

#[test]
fn a_new_file_that_cannot_be_made_into_a_store_can_be_opened_later() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let options = SqliteOptions {
        max_pages: Some(3),
        ..SqliteOptions::default()
    };
    match SqliteEventStore::open(&path, options) {
        Err(OpenError::Store { source, .. }) => assert_eq!(source.kind(), StoreErrorKind::Full),
        other => panic!("opened: {other:?}"),
    }
    open(&path).close_blocking();
}

#[test]
fn a_missing_directory_is_named_and_not_made() {
    let folder = folder();
    let path = folder.path().join("missing").join("events.db");
    let error = SqliteEventStore::open(&path, SqliteOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::MissingDirectory { .. }));
    assert!(error.to_string().contains(path.to_str().unwrap()));
    assert!(!folder.path().join("missing").exists());
}

#[test]
fn a_setting_that_cannot_work_is_named() {
    let folder = folder();
    let options = SqliteOptions {
        max_payload_bytes: 0,
        ..SqliteOptions::default()
    };
    let path = folder.path().join("events.db");
    match SqliteEventStore::open(&path, options) {
        Err(OpenError::Config { source, .. }) => assert_eq!(source.field, "max_payload_bytes"),
        other => panic!("accepted: {other:?}"),
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_with_both_numbers() {
    let options = SqliteOptions {
        max_payload_bytes: 1_000,
        durability: Durability::Normal,
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::in_memory(options).unwrap();
    let events = [noted("a", ""), noted("a", &"x".repeat(1_000))];
    match store.append(batch(events)).await {
        Err(AppendError::PayloadTooLarge {
            bytes,
            limit: 1_000,
        }) => assert!(bytes > 1_000),
        other => panic!("appended: {other:?}"),
    }
    let fits = "x".repeat(1_000 - r#"{"notebook":"a","text":""}"#.len());
    assert_eq!(append_all(&store, [noted("a", &fits)]).await, [1]);
}

#[tokio::test]
async fn any_file_name_is_a_file_name() {
    let folder = folder();
    for name in [
        "a b?mode=memory#x%20.db",
        "file:x",
        ":memory:",
        "ü",
        "sqlite:y",
    ] {
        let path = folder.path().join(name);
        let store = open(&path);
        append_all(&store, [noted("a", "")]).await;
        store.close().await;
        assert!(path.is_file(), "{name}");
        assert_eq!(open(&path).head().await.unwrap(), Position::FIRST);
    }
}

#[tokio::test]
async fn an_empty_file_is_as_good_as_none() {
    let folder = folder();
    let path = folder.path().join("events.db");
    std::fs::write(&path, "").unwrap();
    assert_eq!(append_all(&open(&path), [noted("a", "")]).await, [1]);
}

#[tokio::test]
async fn the_view_shows_the_log_to_a_person() {
    use diesel::{Connection, RunQueryDsl, SqliteConnection, dsl::sql, sql_types::Text};

    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    let event = noted("a", "hello").metadata("user", "me");
    append_all(&store, [event.occurred_at(Timestamp::from_micros(-7))]).await;
    let event = store.read_log(Position::ZERO, 1).await.unwrap().remove(0);
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let line = sql::<Text>(
        "SELECT concat_ws(' ', position, event_id, event_type, aggregate_type, aggregate_id, version, urgency, \
         payload, metadata, occurred_at, recorded_at) FROM de_log",
    );
    let id = event.id().to_string().replace('-', "");
    let at = event.recorded().unwrap().at;
    assert_eq!(
        line.get_result::<String>(&mut conn).unwrap(),
        format!(
            r#"1 {id} testkit.noted notebook a 1 normal {{"notebook":"a","text":"hello"}} {{"user":"me"}} 1969-12-31T23:59:59.999993Z {at}"#
        )
    );
}
