//! Faults of the disk and of what is on it: a typed error each, nothing acknowledged is lost, and
//! the store works on when the fault ends.

use std::{fs, path::Path};

use domain_events::{AppendError, EventEnvelope, EventStore, Position, StoreErrorKind};
use event_store_diesel::{OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, batch, noted};

use crate::support::{files, folder, open, sql};

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

/// Every event of the log is there, intact and dense; returns how many.
async fn check(store: &SqliteEventStore) -> u64 {
    let log = store.read_log(Position::ZERO, usize::MAX).await.unwrap();
    let positions = log.iter().map(|event| event.position().unwrap().get());
    assert!(positions.eq(1..=log.len() as u64));
    let intact = |event: EventEnvelope| {
        let event = std::sync::Arc::new(event);
        event.typed::<event_testkit::event_store::Noted>().is_ok()
    };
    let count = log.len() as u64;
    assert!(log.into_iter().all(intact));
    count
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
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
async fn a_full_disk_loses_nothing_and_the_store_works_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        return eprintln!("SKIPPED: a small tmpfs cannot be mounted by this user");
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
    store.close().await;
    assert_eq!(check(&open(&path)).await, 1);
}

/// Runs a test as somebody for whom permissions hold: as root, in a process of another user.
#[cfg(unix)]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn where_permissions_hold(name: &str, test: impl FnOnce()) {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};

    const NOBODY: u32 = 65_534;
    let probe = folder();
    fs::set_permissions(probe.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(probe.path().join("probe"), "").is_err() {
        return test();
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let again = again.args([name, "--exact"]).uid(NOBODY).gid(NOBODY);
    match again.env("TMPDIR", "/tmp").current_dir("/").output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("SKIPPED: nothing is run as another user ({error})"),
    }
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;

    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(unix)]
fn refused_as_read_only(path: &Path) {
    match SqliteEventStore::open(path, SqliteOptions::default()) {
        Err(OpenError::Store { source, .. }) => {
            assert_eq!(source.kind(), StoreErrorKind::ReadOnly);
        }
        other => panic!("not read-only: {other:?}"),
    }
}

#[cfg(unix)]
#[test]
fn a_read_only_file_is_a_typed_error_until_it_is_writable() {
    let folder = folder();
    let path = folder.path().join("events.db");
    open(&path).close_blocking();
    set_mode(&path, 0o444);
    let before = files(folder.path());
    refused_as_read_only(&path);
    assert!(files(folder.path()) == before);
    set_mode(&path, 0o644);
    open(&path).close_blocking();
}

#[cfg(unix)]
#[test]
fn a_read_only_directory_is_a_typed_error_until_it_is_writable() {
    let name = "disk_faults::a_read_only_directory_is_a_typed_error_until_it_is_writable";
    where_permissions_hold(name, || {
        let folder = folder();
        let path = folder.path().join("events.db");
        set_mode(folder.path(), 0o555);
        refused_as_read_only(&path);
        set_mode(folder.path(), 0o755);
        open(&path).close_blocking();
        fs::remove_file(folder.path().join("events.db.lock")).unwrap();
        set_mode(folder.path(), 0o555);
        refused_as_read_only(&path);
        set_mode(folder.path(), 0o755);
        open(&path).close_blocking();
    });
}

/// A closed store of `events` events; returns its bytes.
async fn filled(path: &Path, events: u64) -> Vec<u8> {
    let store = open(path);
    let text = "x".repeat(1_000);
    append_all(&store, (0..events).map(|_| noted("a", &text))).await;
    store.close().await;
    fs::read(path).unwrap()
}

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
