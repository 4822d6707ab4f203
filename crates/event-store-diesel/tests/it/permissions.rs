//! Files and directories that may not be written to: a typed error each, until they may.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
};

use domain_events::{EventStore, Position, StoreErrorKind};
use event_store_diesel::{OpenError, SqliteEventStore, SqliteOptions};

use crate::support::{files, filled, folder, open, skipped};

/// Runs a test as somebody for whom permissions hold: as root, in a process of another user.
fn where_permissions_hold(name: &str, test: impl FnOnce()) {
    const NOBODY: u32 = 65_534;
    let probe = folder();
    fs::set_permissions(probe.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(probe.path().join("probe"), "").is_err() {
        return test();
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let again = again.args([name, "--exact"]).uid(NOBODY).gid(NOBODY);
    match again.env("TMPDIR", "/tmp").current_dir("/").output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let has_run = output.status.success() && said.contains("1 passed");
            assert!(has_run, "{output:?}");
        }
        Err(error) => skipped(&format!("nothing is run as another user ({error})")),
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn refused_as_read_only(path: &Path) {
    match SqliteEventStore::open(path, SqliteOptions::default()) {
        Err(OpenError::Store { source, .. }) => {
            assert_eq!(source.kind(), StoreErrorKind::ReadOnly);
        }
        other => panic!("not read-only: {other:?}"),
    }
}

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

#[test]
fn a_read_only_directory_is_a_typed_error_until_it_is_writable() {
    let name = "permissions::a_read_only_directory_is_a_typed_error_until_it_is_writable";
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

#[test]
fn r6_a_store_beside_which_nothing_may_be_written_is_read_when_it_may() {
    let name = "permissions::r6_a_store_beside_which_nothing_may_be_written_is_read_when_it_may";
    where_permissions_hold(name, || {
        let folder = folder();
        let path = folder.path().join("events.db");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(filled(&path, 10));
        set_mode(&path, 0o444);
        set_mode(folder.path(), 0o555);
        let before = files(folder.path());
        let store = SqliteEventStore::open_to_read(&path, SqliteOptions::default()).unwrap();
        let read = || runtime.block_on(store.read_log(Position::ZERO, 100));
        assert_eq!(read().unwrap_err().kind(), StoreErrorKind::ReadOnly);
        assert!(files(folder.path()) == before);
        set_mode(folder.path(), 0o755);
        assert_eq!(read().unwrap().len(), 10);
        store.close_blocking();
    });
}

#[test]
fn a_backup_whose_name_cannot_be_made_to_last_leaves_nothing() {
    let name = "permissions::a_backup_whose_name_cannot_be_made_to_last_leaves_nothing";
    where_permissions_hold(name, || {
        let folder = folder();
        let drop_box = folder.path().join("drop-box");
        fs::create_dir(&drop_box).unwrap();
        let store = open(&folder.path().join("events.db"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let back_up = || runtime.block_on(store.backup_to(drop_box.join("copy.db")));
        // It can be written to, but not opened, which it takes to synchronise it.
        set_mode(&drop_box, 0o333);
        let end = back_up();
        set_mode(&drop_box, 0o755);
        end.unwrap_err();
        assert_eq!(fs::read_dir(&drop_box).unwrap().count(), 0);
        back_up().unwrap();
    });
}
