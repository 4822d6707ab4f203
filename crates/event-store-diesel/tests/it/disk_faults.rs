//! A disk that is full, a directory that is gone: a typed error each, nothing acknowledged is lost,
//! and the store works on when the fault ends.

use std::fs;

use domain_events::{AppendError, EventStore, Position, StoreErrorKind};
use event_store_diesel::{OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, batch, noted};

use crate::support::{check, folder, open, skipped, sql};

/// Appends until that fails; returns how many were acknowledged, and why no more.
async fn append_until_fault(store: &SqliteEventStore) -> (u64, StoreErrorKind) {
    let text = "x".repeat(10_000);
    let mut acknowledged = store.head().await.unwrap().get();
    loop {
        match store.append(batch([noted("a", &text)])).await {
            Ok(_) => acknowledged += 1,
            Err(AppendError::Store(error) | AppendError::OutcomeUnknown(error)) => {
                return (acknowledged, error.kind());
            }
            Err(error) => panic!("refused: {error}"),
        }
        assert!(acknowledged < 100_000, "nothing fails");
    }
}

#[tokio::test]
async fn a_store_at_its_limit_is_full_and_works_on_when_there_is_room() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let options = SqliteOptions {
        max_pages: Some(200),
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::open(&path, options.clone()).unwrap();
    let (acknowledged, kind) = append_until_fault(&store).await;
    assert_eq!(kind, StoreErrorKind::Full);
    assert!(acknowledged > 10);
    // Reading goes on, and what is small may still fit.
    assert_eq!(check(&store).await, acknowledged);
    let small = store
        .append(batch([noted("a", "")]))
        .await
        .map(|it| it.len());
    let head = acknowledged + small.unwrap_or(0) as u64;

    sql(&path, "DELETE FROM de_events WHERE position <= 10");
    let text = "x".repeat(10_000);
    assert_eq!(append_all(&store, [noted("b", &text)]).await, [head + 1]);
    store.close().await;
    let store = SqliteEventStore::open(&path, options).unwrap();
    assert_eq!(store.head().await.unwrap(), Position::new(head + 1));
}

#[tokio::test]
async fn a_limit_below_what_is_there_is_refused_at_opening() {
    let folder = folder();
    let path = folder.path().join("events.db");
    open(&path).close().await;
    let options = SqliteOptions {
        max_pages: Some(3),
        ..SqliteOptions::default()
    };
    match SqliteEventStore::open(&path, options) {
        Err(OpenError::Config { source, .. }) => {
            assert_eq!(source.field, "PRAGMA max_page_count");
        }
        other => panic!("opened: {other:?}"),
    }
    append_all(&open(&path), [noted("a", "")]).await;
}

/// A small file system of its own, while it lives.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    /// `None` where this process may not mount one.
    fn mount() -> Option<Self> {
        let folder = folder();
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(folder))
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut unmount = std::process::Command::new("umount");
        assert!(
            unmount
                .arg("-l")
                .arg(self.0.path())
                .status()
                .unwrap()
                .success()
        );
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_loses_nothing_and_the_store_works_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        return skipped("a small tmpfs cannot be mounted by this user");
    };
    let path = disk.0.path().join("events.db");
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let store = open(&path);
    let (acknowledged, kind) = append_until_fault(&store).await;
    assert_eq!(kind, StoreErrorKind::Full);
    // And again, as long as it lasts.
    let (again, kind) = append_until_fault(&store).await;
    assert_eq!(kind, StoreErrorKind::Full);
    assert!(check(&store).await >= acknowledged.max(again));

    fs::remove_file(&ballast).unwrap();
    let head = store.head().await.unwrap().get();
    assert_eq!(append_all(&store, [noted("b", "")]).await, [head + 1]);
    store.close().await;
    let store = open(&path);
    assert_eq!(check(&store).await, head + 1);
    store.close().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_directory_that_is_removed_is_a_typed_error_until_it_is_back() {
    let folder = folder();
    let (here, away) = (folder.path().join("here"), folder.path().join("away"));
    fs::create_dir(&here).unwrap();
    let store = open(&here.join("events.db"));
    append_all(&store, [noted("a", "")]).await;
    for number in 2..4 {
        fs::rename(&here, &away).unwrap();
        for _ in 0..2 {
            match store.append(batch([noted("a", "lost")])).await {
                Err(AppendError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Io),
                end => panic!("appended to a file that nobody finds: {end:?}"),
            }
        }
        fs::rename(&away, &here).unwrap();
        assert_eq!(append_all(&store, [noted("a", "")]).await, [number]);
    }
    store.close().await;
    assert_eq!(check(&open(&here.join("events.db"))).await, 3);
}

#[cfg(unix)]
#[tokio::test]
async fn a_directory_that_is_gone_for_good_is_a_typed_error_and_no_panic() {
    let folder = folder();
    let here = folder.path().join("here");
    let path = here.join("events.db");
    fs::create_dir(&here).unwrap();
    let store = open(&path);
    append_all(&store, [noted("a", "")]).await;
    fs::remove_dir_all(&here).unwrap();
    store.append(batch([noted("a", "")])).await.unwrap_err();
    // Nor is a new directory, or another file, the one that was there.
    fs::create_dir(&here).unwrap();
    store.append(batch([noted("a", "")])).await.unwrap_err();
    let other = folder.path().join("other.db");
    let stranger = open(&other);
    append_all(&stranger, [noted("a", "")]).await;
    stranger.close().await;
    fs::rename(&other, &path).unwrap();
    store.append(batch([noted("a", "")])).await.unwrap_err();
    // Which is not taken for it by who reads or copies, either.
    let error = store.head().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Io);
    store.backup_to(here.join("copy.db")).await.unwrap_err();
    assert!(!here.join("copy.db").exists());
    store.close().await;
    assert_eq!(check(&open(&path)).await, 1);
}
