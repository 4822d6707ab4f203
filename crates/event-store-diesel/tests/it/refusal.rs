//! What is not opened, and stays as it was.

use std::{path::Path, process};

use domain_events::{EventStore, Position};
use event_store_diesel::{OpenError, SqliteEventStore, SqliteOptions};
use event_testkit::event_store::{append_all, noted};

use crate::support::{PATIENCE, files, folder, open, sql};

/// Opens what has to be refused, and checks that neither the file nor its directory changes.
fn refusal(path: &Path) -> OpenError {
    let folder = path.parent().unwrap();
    let before = files(folder);
    let error = SqliteEventStore::open(path, SqliteOptions::default()).unwrap_err();
    assert!(files(folder) == before, "the directory has changed");
    assert!(
        error
            .to_string()
            .contains(path.file_name().unwrap().to_str().unwrap())
    );
    error
}

#[test]
fn a_file_that_is_not_a_database_is_refused() {
    let folder = folder();
    let path = folder.path().join("letter.txt");
    for content in ["Dear Sir or Madam, ".repeat(500), "short".to_owned()] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(refusal(&path), OpenError::NotADatabase { .. }));
    }
}

/// To open a pipe waits for whoever writes to it.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let folder = folder();
    let (pipe, directory) = (folder.path().join("pipe"), folder.path().join("directory"));
    std::fs::create_dir(&directory).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for path in [pipe, directory] {
        for open in [SqliteEventStore::open, SqliteEventStore::open_to_read] {
            let (send, end) = std::sync::mpsc::channel();
            let path = path.clone();
            std::thread::spawn(move || send.send(open(path, SqliteOptions::default())));
            let end = end.recv_timeout(PATIENCE).expect("an answer");
            let is_refused = matches!(end, Err(OpenError::NotADatabase { .. }));
            assert!(is_refused, "{end:?}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn the_database_of_another_application_is_refused_in_any_journal_mode() {
    for mode in ["delete", "wal"] {
        let folder = folder();
        let path = folder.path().join("other.db");
        sql(
            &path,
            &format!(
                "PRAGMA journal_mode = {mode}; CREATE TABLE invoices (id INTEGER PRIMARY KEY)"
            ),
        );
        match refusal(&path) {
            OpenError::ForeignDatabase { table, .. } => assert_eq!(table, "invoices"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_database_of_another_application_is_shared_when_asked_for() {
    let folder = folder();
    let path = folder.path().join("other.db");
    sql(
        &path,
        "CREATE TABLE invoices (id INTEGER PRIMARY KEY); INSERT INTO invoices VALUES (7); \
         CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL, \
         run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP); \
         INSERT INTO __diesel_schema_migrations (version) VALUES ('20261120100000')",
    );
    let options = SqliteOptions {
        share_database: true,
        ..SqliteOptions::default()
    };
    let store = SqliteEventStore::open(&path, options).unwrap();
    assert_eq!(append_all(&store, [noted("a", "")]).await, [1]);
    store.close().await;
    sql(&path, "UPDATE invoices SET id = id + 1 WHERE id = 7");
    // Once our tables are in it, it is ours to open.
    assert_eq!(open(&path).head().await.unwrap(), Position::FIRST);
}

#[test]
fn tables_of_our_names_that_are_not_ours_are_refused() {
    for tables in [
        "CREATE TABLE de_events (id INTEGER PRIMARY KEY)",
        "CREATE TABLE de_format (application TEXT, version BIGINT)",
        "CREATE TABLE de_format (application TEXT, version BIGINT); \
         INSERT INTO de_format VALUES ('something else', 1)",
        "CREATE TABLE de_format (paper TEXT)",
    ] {
        let folder = folder();
        let path = folder.path().join("other.db");
        sql(&path, tables);
        let before = files(folder.path());
        for share_database in [false, true] {
            let options = SqliteOptions {
                share_database,
                ..SqliteOptions::default()
            };
            let error = SqliteEventStore::open(&path, options).unwrap_err();
            assert!(
                matches!(error, OpenError::ForeignDatabase { .. }),
                "{error:?}"
            );
            assert!(files(folder.path()) == before);
        }
    }
}

#[test]
fn one_table_of_ours_with_a_column_that_is_not_ours_is_refused() {
    let folder = folder();
    let path = folder.path().join("events.db");
    open(&path).close_blocking();
    sql(
        &path,
        "DROP VIEW de_log; ALTER TABLE de_events ADD COLUMN colour TEXT",
    );
    match refusal(&path) {
        OpenError::ForeignDatabase { table, .. } => assert_eq!(table, "de_events"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_newer_format_is_refused_with_both_numbers() {
    let folder = folder();
    let path = folder.path().join("events.db");
    open(&path).close_blocking();
    sql(
        &path,
        "UPDATE de_format SET version = 1000; CREATE TABLE de_surprises (x)",
    );
    match refusal(&path) {
        OpenError::NewerFormat {
            found: 1_000,
            known,
            ..
        } => assert!(known < 1_000),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn r6_a_second_opener_is_refused_with_the_name_of_the_first() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let store = open(&path);
    match SqliteEventStore::open(&path, SqliteOptions::default()) {
        Err(error @ OpenError::InUse { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains(&format!("process {}", process::id())),
                "{text}"
            );
        }
        other => panic!("opened twice: {other:?}"),
    }
    assert_eq!(append_all(&store, [noted("a", "")]).await, [1]);
}

#[cfg(unix)]
#[test]
fn r6_a_link_to_a_store_has_the_same_lock() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let link = folder.path().join("link.db");
    let _store = open(&path);
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = SqliteEventStore::open(&link, SqliteOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }));
}

#[cfg(unix)]
#[test]
fn r6_a_link_to_a_store_that_is_yet_to_be_made_has_its_lock() {
    let folder = folder();
    let path = folder.path().join("events.db");
    let [link, first] = ["link.db", "first.db"].map(|name| folder.path().join(name));
    std::os::unix::fs::symlink("events.db", &link).unwrap();
    std::os::unix::fs::symlink(&link, &first).unwrap();
    let store = open(&first);
    assert_eq!(store.path(), Some(&*path.canonicalize().unwrap()));
    let error = SqliteEventStore::open(&path, SqliteOptions::default()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
}
