//! Copies of a store that is in use.

use std::path::Path;

use domain_events::{EventQuery, EventStore, Position, StoreErrorKind};
use event_store_diesel::{BackupError, SqliteEventStore};
use event_testkit::event_store::{append_all, noted};

use crate::support::{files, folder, in_memory, open, sql, submit};

/// Every event, as far as it is not damaged, and what is known of each.
async fn content(store: &SqliteEventStore) -> Vec<String> {
    let log = store.read_log(Position::ZERO, usize::MAX).await.unwrap();
    let line = |event: &domain_events::EventEnvelope| {
        let payload = String::from_utf8_lossy(event.payload().unwrap()).into_owned();
        format!("{event:?} {:?} {payload}", event.recorded())
    };
    log.iter().map(line).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let files = files(folder).into_iter();
    files
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_backup_is_a_store_with_everything_that_was_committed() {
    let (here, there) = (folder(), folder());
    let store = open(&here.path().join("events.db"));
    append_all(&store, (0..100).map(|it| noted(&(it % 7).to_string(), "x"))).await;
    let name = "a b?mode=memory#ü%20.db";
    let path = there.path().join(name);
    store.backup_to(&path).await.unwrap();
    assert_eq!(names(there.path()), [name]);
    // The store is as it was, and goes on by itself.
    let before = content(&store).await;
    assert_eq!(append_all(&store, [noted("a", "")]).await, [101]);

    let copy = open(&path);
    assert_eq!(content(&copy).await, before);
    assert_eq!(append_all(&copy, [noted("0", "")]).await, [101]);
    let last = copy.read_log(Position::new(100), 1).await.unwrap();
    assert_eq!(last[0].version().unwrap().get(), 16);
}

#[tokio::test]
async fn a_store_in_memory_is_saved_by_a_backup() {
    let folder = folder();
    let path = folder.path().join("saved.db");
    let store = in_memory();
    append_all(&store, [noted("a", "1"), noted("b", "2")]).await;
    store.backup_to(&path).await.unwrap();
    assert_eq!(append_all(&store, [noted("a", "3")]).await, [3]);
    assert_eq!(content(&open(&path)).await, content(&store).await[..2]);
}

#[tokio::test]
async fn r8_a_backup_never_gives_a_position_twice() {
    let folder = folder();
    let (path, copy) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let store = open(&path);
    append_all(&store, (0..10).map(|_| noted("a", ""))).await;
    sql(&path, "DELETE FROM de_events");
    store.backup_to(&copy).await.unwrap();
    assert_eq!(append_all(&open(&copy), [noted("a", "")]).await, [11]);
}

#[tokio::test]
async fn a_backup_holds_up_no_append_and_is_of_one_moment() {
    let folder = folder();
    let (path, copy) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let store = open(&path);
    let large = "x".repeat(100_000);
    append_all(&store, (0..200).map(|_| noted("a", &large))).await;
    let appends = async {
        let mut last = 0;
        for number in 0..200 {
            let both = [noted("b", &number.to_string()), noted("c", "")];
            last = append_all(&store, both).await[1];
        }
        last
    };
    let (made, last) = tokio::join!(store.backup_to(&copy), appends);
    made.unwrap();
    assert_eq!(last, 600);
    let copy = open(&copy);
    let head = copy.head().await.unwrap().get();
    // A batch is in it whole or not at all.
    assert!((200..=600).contains(&head) && head % 2 == 0, "{head}");
    let summary = copy.summary(&EventQuery::Log).await.unwrap();
    assert_eq!(summary.events, head);
}

#[tokio::test]
async fn a_file_that_is_there_is_not_overwritten() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    append_all(&store, [noted("a", "")]).await;
    let other = folder.path().join("other");
    for content in ["", "something"] {
        std::fs::write(&other, content).unwrap();
        for target in [&other, &path] {
            match store.backup_to(target).await {
                Err(BackupError::Exists { path }) => assert_eq!(&path, target),
                end => panic!("not refused: {end:?}"),
            }
        }
        assert_eq!(std::fs::read_to_string(&other).unwrap(), content);
    }
    assert_eq!(append_all(&store, [noted("a", "")]).await, [2]);
}

#[tokio::test]
async fn a_backup_that_cannot_be_written_leaves_nothing() {
    let folder = folder();
    let store = open(&folder.path().join("events.db"));
    append_all(&store, [noted("a", "")]).await;
    let before = names(folder.path());
    let target = folder.path().join("missing").join("copy.db");
    match store.backup_to(&target).await {
        Err(error @ BackupError::Store { .. }) => {
            assert!(error.to_string().contains(target.to_str().unwrap()));
        }
        end => panic!("made: {end:?}"),
    }
    assert_eq!(names(folder.path()), before);

    store.close().await;
    match store.backup_to(folder.path().join("copy.db")).await {
        Err(BackupError::Store { source, .. }) => {
            assert_eq!(source.kind(), StoreErrorKind::Closed);
        }
        end => panic!("made: {end:?}"),
    }
}

#[tokio::test]
async fn l2_close_waits_for_a_backup() {
    let folder = folder();
    let (path, copy) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let store = open(&path);
    let answer = submit(&store, (0..1_000).map(|_| noted("a", &"x".repeat(1_000))));
    answer.recv().unwrap().unwrap();
    let mut backup = Box::pin(store.backup_to(&copy));
    // Begun, and then forgotten.
    tokio::select! {
        biased;
        _ = &mut backup => {}
        () = std::future::ready(()) => {}
    }
    drop(backup);
    store.close().await;
    assert_eq!(names(folder.path()), ["a.db", "a.db.lock", "b.db"]);
    assert_eq!(open(&copy).head().await.unwrap(), Position::new(1_000));
}
