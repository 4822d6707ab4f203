//! Stores in temporary directories, and connections beside them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use domain_events::{AppendError, Appended, EventStore, NewEvent};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use event_testkit::event_store::batch;
use tempfile::TempDir;

/// How long an answer may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn open(path: &Path) -> SqliteEventStore {
    SqliteEventStore::open(path, SqliteOptions::default()).unwrap()
}

/// A new store with the directory it is in.
pub(crate) fn fresh() -> (Arc<SqliteEventStore>, TempDir) {
    let folder = folder();
    let store = open(&folder.path().join("events.db"));
    (Arc::new(store), folder)
}

pub(crate) fn in_memory() -> SqliteEventStore {
    SqliteEventStore::in_memory(SqliteOptions::default()).unwrap()
}

/// Runs SQL on the file, as any other program would.
pub(crate) fn sql(path: &Path, sql: &str) {
    let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    conn.batch_execute(sql).unwrap();
}

/// Everything in a directory, with its bytes.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

pub(crate) type Answer = mpsc::Receiver<Result<Vec<Appended>, AppendError>>;

/// Hands a batch over; the answer comes later.
pub(crate) fn submit(
    store: &SqliteEventStore,
    events: impl IntoIterator<Item = NewEvent>,
) -> Answer {
    let (send, receive) = mpsc::channel();
    store.submit(
        batch(events),
        Box::new(move |result| drop(send.send(result))),
    );
    receive
}
