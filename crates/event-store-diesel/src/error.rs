//! Why a store was not opened.

use std::{fmt, path::PathBuf};

use domain_events::{ConfigError, StoreError, Timestamp};

/// Who has a store open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The number of the process.
    pub pid: u32,
    /// The name of the machine.
    pub host: String,
    /// When it opened the store.
    pub since: Timestamp,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} on {} since {}",
            self.pid, self.host, self.since
        )
    }
}

/// A store that was not opened, and why. A file that is refused is as it was before; a fault while
/// a store is made in it can leave it without one, to be opened again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A store file is run by one process at a time (R6), and another one has it.
    #[error("{path} was not opened: it is in use by {}", name(holder.as_ref()))]
    InUse {
        /// The store.
        path: PathBuf,
        /// Who has it; `None` where that cannot be told.
        holder: Option<Holder>,
    },
    /// The file is something else.
    #[error("{path} was not opened: it is not an SQLite database")]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The database belongs to another application, or has a table that only looks like ours.
    ///
    /// Where it is the former, [`share_database`](crate::SqliteOptions::share_database) allows it.
    #[error("{path} was not opened: {table:?} in it is not ours")]
    ForeignDatabase {
        /// The file.
        path: PathBuf,
        /// A table that is not ours.
        table: String,
    },
    /// A newer program has written the file.
    #[error("{path} was not opened: its format is {found}, and the newest known here is {known}")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format this program knows.
        known: i64,
    },
    /// The directory that is to hold the file does not exist; it is not made.
    #[error("{path} was not opened: its directory does not exist")]
    MissingDirectory {
        /// The file.
        path: PathBuf,
    },
    /// Who wants only to read has to find a store.
    #[error("{path} was not opened: there is no store in it")]
    NoStore {
        /// The file.
        path: PathBuf,
    },
    /// A setting that cannot work, or that the database did not take.
    #[error("{path} was not opened")]
    Config {
        /// The file.
        path: PathBuf,
        /// The setting.
        source: ConfigError,
    },
    /// A fault of the database or the disk.
    #[error("{path} was not opened")]
    Store {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: StoreError,
    },
}

/// A backup that was not made, and why. There is nothing at its path that was not there before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Nothing is overwritten.
    #[error("no backup was made: {path} exists")]
    Exists {
        /// Where the backup was to be.
        path: PathBuf,
    },
    /// A fault of the database or the disk.
    #[error("no backup was made at {path}")]
    Store {
        /// Where the backup was to be.
        path: PathBuf,
        /// The fault.
        source: StoreError,
    },
}

fn name(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::to_string)
}
