//! The files of a desk: the event log, and what is beside it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use event_store_diesel::{SqliteEventStore, SqliteOptions};

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

    /// Checks that no file beside the log is there without it: it would be another log's.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for beside in [&self.desk, &self.trace] {
            ensure!(
                self.log.exists() || !beside.exists(),
                "{} was not begun: {} is there without it, from another log",
                self.log.display(),
                beside.display(),
            );
        }
        Ok(())
    }

    /// Removes what an earlier run has left; the lock's file stays, as others may wait for it.
    ///
    /// # Errors
    /// When a run has the files, or when what is there was not left by one; nothing is removed then.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        self.check()?;
        if !self.log.exists() {
            return Ok(());
        }
        let log = self.log.display();
        // The store refuses what is not its own, and what another process has, and leaves it as it is.
        let store = SqliteEventStore::open(&self.log, SqliteOptions::default())
            .with_context(|| format!("{log} was not removed"))?;
        store.close_blocking();
        let _lock = locked(&self.log)?;
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

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
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
    use std::fs;

    use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
    use tempfile::TempDir;

    use super::*;

    fn files() -> (TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::beside(&folder.path().join("a.db"));
        (folder, files)
    }

    fn make_log(files: &Files) -> SqliteEventStore {
        SqliteEventStore::open(files.log(), SqliteOptions::default()).unwrap()
    }

    fn contents(folder: &TempDir) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut contents: Vec<_> = paths
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        contents.sort();
        contents
    }

    #[test]
    fn a_log_is_removed_with_everything_beside_it_but_its_lock() {
        let (folder, files) = files();
        files.remove().unwrap();
        make_log(&files).close_blocking();
        fs::write(files.trace(), "run\n").unwrap();
        files.remove().unwrap();
        let left: Vec<_> = contents(&folder)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(left, [with(files.log(), ".lock")]);
    }

    #[test]
    fn what_is_not_a_log_is_left_as_it_is() {
        let (folder, files) = files();
        fs::write(files.log(), "a letter").unwrap();
        let before = contents(&folder);
        assert!(files.remove().is_err());
        assert_eq!(contents(&folder), before);
    }

    #[test]
    fn another_programs_database_is_left_as_it_is_with_its_journal() {
        let (folder, files) = files();
        let mut other = SqliteConnection::establish(&files.log().to_string_lossy()).unwrap();
        let customers = "PRAGMA journal_mode = WAL; CREATE TABLE customers (name)";
        other.batch_execute(customers).unwrap();
        // As after a crash: a connection's end would empty the journal.
        let copy = tempfile::tempdir().unwrap();
        for (path, content) in contents(&folder) {
            fs::write(copy.path().join(path.file_name().unwrap()), content).unwrap();
        }
        let copied = Files::beside(&copy.path().join("a.db"));
        let data = || {
            [copied.log().to_owned(), with(copied.log(), "-wal")]
                .map(|path| fs::read(path).unwrap())
        };
        let before = data();
        assert!(!before[1].is_empty());
        assert!(copied.remove().is_err());
        assert_eq!(data(), before);
    }

    #[test]
    fn files_without_their_log_are_left_and_not_used() {
        let (folder, files) = files();
        fs::write(files.trace(), "precious").unwrap();
        let before = contents(&folder);
        assert!(files.remove().is_err());
        assert!(
            files
                .check()
                .unwrap_err()
                .to_string()
                .contains("a.db-trace is there without it")
        );
        assert_eq!(contents(&folder), before);
    }

    #[test]
    fn a_log_in_use_is_left() {
        let (_folder, files) = files();
        let lock = File::create(with(files.log(), ".lock")).unwrap();
        fs::write(files.log(), "").unwrap();
        lock.lock().unwrap();
        assert!(files.remove().is_err());
        assert!(files.log().exists());
    }
}
