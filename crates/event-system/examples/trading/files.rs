//! The files of a desk: the event log, and what is beside it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use diesel::{Connection, SqliteConnection, prelude::*, sql_query};

/// How every `SQLite` database begins.
const SQLITE: &[u8; 16] = b"SQLite format 3\0";

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    log: PathBuf,
    desk: PathBuf,
    trace: PathBuf,
}

impl Files {
    pub(crate) fn beside(log: &Path) -> Self {
        Self {
            log: log.to_owned(),
            desk: with(log, "-desk"),
            trace: with(log, "-trace"),
        }
    }

    /// The event log, an `SQLite` database.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// The portfolio's tables, an `SQLite` database.
    pub(crate) fn desk(&self) -> &Path {
        &self.desk
    }

    /// The order in which subscriptions saw events, a text.
    pub(crate) fn trace(&self) -> &Path {
        &self.trace
    }

    /// Removes what an earlier run has left; the lock's file stays, as others may wait for it.
    ///
    /// # Errors
    /// When a run has the files, or when what is there was not left by one; nothing is removed then.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        let log = self.log.display();
        let Some(begin) = begin_of(&self.log).with_context(|| format!("{log} was not read"))?
        else {
            return self.remove_all();
        };
        let _lock = locked(&self.log)?;
        // An empty file is what SQLite makes of a new database before the first write.
        let is_log = begin.is_empty() || (begin == SQLITE && has_log(&self.log)?);
        ensure!(is_log, "{log} was not removed: it is not an event log");
        self.remove_all()
    }

    fn remove_all(&self) -> anyhow::Result<()> {
        for database in [&self.log, &self.desk] {
            for ending in ["-wal", "-shm", ""] {
                remove(&with(database, ending))?;
            }
        }
        remove(&self.trace)
    }
}

#[derive(QueryableByName)]
struct Tables {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn begin_of(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut begin = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(16).read_to_end(&mut begin).map(|_| Some(begin)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the database has the log's table.
fn has_log(path: &Path) -> anyhow::Result<bool> {
    let mut connection = SqliteConnection::establish(&path.to_string_lossy())?;
    let table =
        "SELECT count(*) AS count FROM sqlite_master WHERE type = 'table' AND name = 'de_events'";
    let tables: Vec<Tables> = sql_query(table).load(&mut connection)?;
    Ok(tables.iter().any(|tables| tables.count > 0))
}

/// The lock of the log, as the store takes it: nobody opens the log while it is held.
fn locked(log: &Path) -> anyhow::Result<Option<File>> {
    let path = with(log, ".lock");
    let file = match OpenOptions::new().write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("{} was not opened", path.display()));
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "{} was not removed: another process has it open",
                log.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} was not locked", path.display()))
        }
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} was not removed", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection;

    use super::*;

    fn database(path: &Path, table: &str) {
        let mut connection = SqliteConnection::establish(&path.to_string_lossy()).unwrap();
        connection
            .batch_execute(&format!("CREATE TABLE {table} (a)"))
            .unwrap();
    }

    #[test]
    fn a_log_is_removed_with_everything_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::beside(&folder.path().join("a.db"));
        files.remove().unwrap();
        database(files.log(), "de_events");
        std::fs::write(files.trace(), "run\n").unwrap();
        files.remove().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_a_log_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::beside(&folder.path().join("a.db"));
        std::fs::write(files.log(), "a letter").unwrap();
        assert!(files.remove().is_err());
        std::fs::remove_file(files.log()).unwrap();
        database(files.log(), "customers");
        assert!(files.remove().is_err());
        assert!(files.log().exists());
    }

    #[test]
    fn a_log_in_use_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::beside(&folder.path().join("a.db"));
        database(files.log(), "de_events");
        let lock = File::create(with(files.log(), ".lock")).unwrap();
        lock.lock().unwrap();
        let error = files.remove().unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        assert!(files.log().exists());
    }
}
