//! The settings of a store, with defaults.

use std::time::Duration;

use domain_events::ConfigError;

/// What a committed event survives (P1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A loss of power: each commit is synchronised with the disk.
    #[default]
    Full,
    /// A crash of the process; the last commits before a loss of power may be gone.
    Normal,
}

/// The settings of a [`SqliteEventStore`](crate::SqliteEventStore).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// What a committed event survives; [`Durability::Full`] unless chosen otherwise.
    pub durability: Durability,
    /// How long to wait for a lock that another connection holds; 5 s.
    pub busy_timeout: Duration,
    /// The largest payload the store takes, in bytes; 1 MiB.
    pub max_payload_bytes: usize,
    /// How many threads read, each with its connection; 2. They cost nothing until used.
    pub readers: usize,
    /// After how many pages in the write-ahead log its content moves to the file; 8,000.
    ///
    /// A larger figure writes faster in groups, and takes more disk space and longer pauses.
    pub checkpoint_pages: u32,
    /// The page cache of each connection, in KiB; 16 MiB.
    pub cache_kib: u32,
    /// How many pages of 4 KiB the database may have; `None`, the default: as many as fit the disk.
    ///
    /// A store that is full refuses what is appended, and works on when there is room.
    pub max_pages: Option<u32>,
    /// Whether a database that belongs to another application is accepted; no. It is then kept with
    /// a write-ahead log.
    pub share_database: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Full,
            busy_timeout: Duration::from_secs(5),
            max_payload_bytes: Self::DEFAULT_PAYLOAD_BYTES,
            readers: 2,
            checkpoint_pages: 8_000,
            cache_kib: 16 * 1024,
            max_pages: None,
            share_database: false,
        }
    }
}

impl SqliteOptions {
    /// The largest payload unless another limit is set.
    pub(crate) const DEFAULT_PAYLOAD_BYTES: usize = 1024 * 1024;

    /// The largest payload that any setting allows: SQLite takes no row over 1,000,000,000 bytes.
    const MAX_PAYLOAD_BYTES: usize = 512 * 1024 * 1024;

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let within =
            |field: &str, value: u128, low: u128, high: u128| match (low..=high).contains(&value) {
                true => Ok(()),
                false => Err(ConfigError::new(field, value, format!("{low} to {high}"))),
            };
        let max = Self::MAX_PAYLOAD_BYTES as u128;
        within("max_payload_bytes", self.max_payload_bytes as u128, 1, max)?;
        within("readers", self.readers as u128, 1, 64)?;
        let busy = self.busy_timeout.as_millis();
        within("busy_timeout in milliseconds", busy, 0, 3_600_000)?;
        let pages = u128::from(self.checkpoint_pages);
        within("checkpoint_pages", pages, 1, 1_000_000)?;
        if let Some(pages) = self.max_pages {
            within("max_pages", u128::from(pages), 1, 0xffff_fffe)?;
        }
        within("cache_kib", u128::from(self.cache_kib), 64, 1 << 30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_an_error_names_field_and_value() {
        SqliteOptions::default().check().unwrap();
        let options = SqliteOptions {
            readers: 0,
            ..SqliteOptions::default()
        };
        let error = options.check().unwrap_err();
        assert_eq!((&*error.field, &*error.value), ("readers", "0"));
    }
}
