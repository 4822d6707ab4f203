//! Programs that only read a store, whoever runs it meanwhile (R6).

use domain_events::{
    AppendError, DeliveryStore, EventQuery, EventStore, EventStream, Position, StoreErrorKind,
};
use event_store_diesel::{OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, batch, noted};

use crate::{
    crash::{spawn_child, wait_for},
    support::{files, folder, open, sql},
};

fn open_to_read(path: &std::path::Path) -> SqliteEventStore {
    SqliteEventStore::open_to_read(path, SqliteOptions::default()).unwrap()
}

#[tokio::test]
async fn r6_a_reader_sees_what_the_runner_commits() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    let reader = open_to_read(&path);
    for number in 1..=20 {
        append_all(&store, [noted("a", "")]).await;
        assert_eq!(reader.head().await.unwrap(), Position::new(number));
        let page = reader.read_log(Position::new(number - 1), 10).await;
        assert_eq!(page.unwrap().len(), 1);
    }
    // Neither has to wait for the other to go.
    store.close().await;
    let statistics = reader.statistics().await.unwrap();
    assert_eq!(statistics.log.events, 20);
    reader.close().await;
    assert_eq!(append_all(&open(&path), [noted("a", "")]).await, [21]);
}

#[tokio::test]
async fn r6_a_reader_writes_nothing() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    append_all(&store, [noted("a", "")]).await;
    store.close().await;
    let before = files(folder.path());
    let reader = open_to_read(&path);
    match reader.append(batch([noted("a", "")])).await {
        Err(AppendError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::ReadOnly),
        end => panic!("appended: {end:?}"),
    }
    let error = reader.begin_run(Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly);
    assert_eq!(reader.head().await.unwrap(), Position::FIRST);
    reader.close().await;
    assert!(files(folder.path()) == before, "files have changed");
}

#[test]
fn what_is_no_store_is_not_opened_to_read() {
    let folder = folder();
    let refused = |name: &str| {
        let path = folder.path().join(name);
        let before = files(folder.path());
        let error = SqliteEventStore::open_to_read(&path, SqliteOptions::default());
        assert!(files(folder.path()) == before, "{name}: files have changed");
        error.unwrap_err()
    };
    assert!(matches!(refused("missing.db"), OpenError::NoStore { .. }));
    std::fs::write(folder.path().join("empty.db"), "").unwrap();
    assert!(matches!(refused("empty.db"), OpenError::NoStore { .. }));
    sql(&folder.path().join("other.db"), "CREATE TABLE invoices (x)");
    assert!(matches!(refused("other.db"), OpenError::NoStore { .. }));
    let letter = "Dear Sir or Madam, ".repeat(100);
    std::fs::write(folder.path().join("letter.txt"), letter).unwrap();
    let error = refused("letter.txt");
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error:?}");
}

#[tokio::test]
async fn p1_readers_that_come_and_go_beside_a_runner_that_is_killed_lose_nothing() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let mut before = 0;
    for _ in 0..3 {
        let (mut child, mut output) = spawn_child(&path);
        for _ in 0..10 {
            let acknowledged = wait_for(&mut output, 5);
            let reader = open_to_read(&path);
            assert!(reader.head().await.unwrap().get() >= acknowledged);
            reader.close().await;
            before = before.max(acknowledged);
        }
        let reader = open_to_read(&path);
        let acknowledged = wait_for(&mut output, 5);
        child.kill().unwrap();
        child.wait().unwrap();
        // Also with nobody but the reader left, and after it.
        let mut stream = EventStream::new(&reader, EventQuery::Log).page_size(16);
        let mut read = 0;
        while let Some(event) = stream.next().await.unwrap() {
            read += 1;
            assert_eq!(event.position(), Some(Position::new(read)));
        }
        assert!(read >= acknowledged && acknowledged > before);
        reader.close().await;
        let store = open(&path);
        assert_eq!(store.head().await.unwrap().get(), read);
        store.close().await;
        before = read;
    }
}
