//! Files that are not what was written: refused or a typed error, and nothing whole is lost.

use std::fs;

use domain_events::{AppendError, EventStore, Position, StoreErrorKind};
use event_store_diesel::{OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, batch, noted};

use crate::support::{check, filled, folder, open};

#[tokio::test]
async fn a_corrupt_header_is_refused_and_left_as_it_is() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let intact = filled(&path, 10).await;
    for damaged in [0..16, 0..1, 16..18, 18..20, 21..24] {
        let mut bytes = intact.clone();
        bytes[damaged.clone()].fill(0xa5);
        fs::write(&path, &bytes).unwrap();
        let error = SqliteEventStore::open(&path, SqliteOptions::default());
        assert!(
            matches!(
                error,
                Err(OpenError::NotADatabase { .. } | OpenError::Store { .. })
            ),
            "{damaged:?}: {error:?}"
        );
        assert!(fs::read(&path).unwrap() == bytes, "{damaged:?}");
        fs::write(&path, &intact).unwrap();
        let store = open(&path);
        assert_eq!(check(&store).await, 10);
        store.close().await;
    }
}

#[tokio::test]
async fn a_truncated_file_is_a_typed_error_until_it_is_whole() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let intact = filled(&path, 100).await;
    for length in [
        99,
        100,
        512,
        4_096,
        8_192,
        intact.len() / 2,
        intact.len() - 1,
    ] {
        fs::write(&path, &intact[..length]).unwrap();
        if let Ok(store) = SqliteEventStore::open(&path, SqliteOptions::default()) {
            // A byte of the last page may be one that nothing is in.
            match store.read_log(Position::ZERO, usize::MAX).await {
                Ok(log) => assert_eq!(log.len(), 100, "{length} bytes"),
                Err(error) => assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{length} bytes"),
            }
            let appended = store.append(batch([noted("a", "")])).await;
            assert!(!matches!(appended, Err(AppendError::IdTaken { .. })));
            store.close().await;
        }
        fs::write(&path, &intact).unwrap();
        let store = open(&path);
        assert_eq!(check(&store).await, 100, "after {length} bytes");
        store.close().await;
    }
}

#[tokio::test]
async fn a_damaged_write_ahead_log_costs_no_more_than_what_is_damaged() {
    let from = folder();
    let path = from.path().join("events.db");
    let (mut child, mut output) = crate::crash::spawn_child(&path);
    let acknowledged = crate::crash::wait_for(&mut output, 60);
    child.kill().unwrap();
    child.wait().unwrap();
    let (file, log) = (
        fs::read(&path).unwrap(),
        fs::read(from.path().join("events.db-wal")),
    );
    let log = log.unwrap();
    let mut kept = Vec::new();
    for part in 0..8 {
        let to = folder();
        let path = to.path().join("events.db");
        let mut damaged = log.clone();
        damaged[log.len() * part / 8] ^= 0x40;
        fs::write(&path, &file).unwrap();
        fs::write(to.path().join("events.db-wal"), &damaged).unwrap();
        fs::write(to.path().join("events.db-shm"), "nonsense").unwrap();
        // Before the tables were made, there is nothing to damage.
        let store = open(&path);
        let count = check(&store).await;
        kept.push(count);
        assert_eq!(append_all(&store, [noted("a", "")]).await, [count + 1]);
        store.close().await;
        assert_eq!(check(&open(&path)).await, count + 1);
    }
    assert!(
        kept.is_sorted(),
        "what was before the damage is kept: {kept:?}"
    );
    assert!(*kept.last().unwrap() > 0 && kept[0] < acknowledged);
}
