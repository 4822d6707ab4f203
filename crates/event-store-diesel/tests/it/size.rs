//! How much room a store says that it takes.

use diesel::{Connection, connection::SimpleConnection};
use domain_events::{DeliveryStore, EventStore, Retention, StoreSize};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, noted};

use crate::support::{fresh, in_memory};

async fn size(store: &SqliteEventStore) -> StoreSize {
    store.statistics().await.unwrap().size.unwrap()
}

#[tokio::test]
async fn what_is_stored_takes_room_and_what_is_pruned_gives_it_back() {
    let (store, folder) = fresh();
    let path = folder.path().join("events.db");
    let empty = size(&store).await;
    assert!(empty.database >= 4_096 && empty.database % 4_096 == 0);
    let text = "x".repeat(10_000);
    append_all(&*store, (0..100).map(|_| noted("a", &text))).await;
    let full = size(&store).await;
    let grown = full.tables["de_events"] - empty.tables["de_events"];
    assert!((1_000_000..1_500_000).contains(&grown), "{grown}");
    assert!(full.database >= empty.database + grown);
    let pages = full.tables.values().sum::<u64>();
    assert!(pages <= full.database, "{full:?}");
    assert!(full.tables.keys().all(|name| name.starts_with("de_")));
    let on_disk = std::fs::metadata(path.with_extension("db-wal"))
        .unwrap()
        .len();
    assert_eq!(full.write_ahead_log, on_disk);
    assert_eq!(store.write_ahead_log_bytes(), on_disk);

    store.prune(Retention::Latest(0)).await.unwrap();
    let pruned = size(&store).await;
    assert!(pruned.free >= grown * 9 / 10, "{pruned:?}");
    assert_eq!(pruned.database, full.database, "the room is used again");
    assert!(pruned.tables["de_events"] < full.tables["de_events"] / 10);
    append_all(&*store, (0..90).map(|_| noted("a", &text))).await;
    assert_eq!(size(&store).await.database, full.database);
    store.close().await;
    assert_eq!(store.write_ahead_log_bytes(), 0, "it is gone");
    let reader = SqliteEventStore::open_to_read(&path, SqliteOptions::default()).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        size(&reader).await.database
    );
}

#[tokio::test]
async fn a_store_in_memory_takes_room_too() {
    let store = in_memory();
    append_all(&store, (0..100).map(|_| noted("a", "text"))).await;
    let size = size(&store).await;
    assert!(size.database > 0 && size.tables["de_events"] > 0);
    assert_eq!(size.write_ahead_log, 0);
}

/// N3: what a reader has made the write-ahead log grow by is given back once it is gone.
#[tokio::test]
async fn n3_a_write_ahead_log_that_has_grown_shrinks_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let options = SqliteOptions {
        checkpoint_pages: 50,
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::open(&path, options).unwrap();
    let text = "x".repeat(1_000);
    let append = async || {
        for _ in 0..20 {
            append_all(&store, (0..100).map(|_| noted("a", &text))).await;
        }
    };
    append().await;
    let usual = store.write_ahead_log_bytes();
    let mut reader = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let snapshot = "BEGIN; SELECT count(*) FROM de_events";
    reader.batch_execute(snapshot).unwrap();
    append().await;
    let grown = store.write_ahead_log_bytes();
    assert!(grown > 2 * usual, "{usual}, {grown}");
    drop(reader);
    append().await;
    let after = store.write_ahead_log_bytes();
    assert!(
        after <= usual.max(2 * 50 * 4_096 + 200_000),
        "{usual}, {grown}, {after}"
    );
    store.close().await;
}
