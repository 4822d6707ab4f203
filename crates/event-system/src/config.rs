//! Every setting of a system, in one plain value.

use std::{path::PathBuf, sync::Arc};

use event_bus_core::BusConfig;
use event_store_diesel::{SqliteEventStore, SqliteOptions};

/// Every setting of a system; `..Config::default()` for those that may stay as they are.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where events stay.
    pub store: Store,
    /// The settings of the store, where this system opens it.
    pub sqlite: SqliteOptions,
    /// The settings of the bus.
    pub bus: BusConfig,
}

/// Where events stay.
#[derive(Clone, Default)]
pub enum Store {
    /// Nowhere: the system is volatile, and forgets with its process.
    #[default]
    Nowhere,
    /// In an SQLite file, made if it is missing.
    Sqlite(PathBuf),
    /// In a store that is open already; the system closes it at its shutdown.
    Open(Arc<SqliteEventStore>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nowhere => f.write_str("Nowhere"),
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            Self::Open(store) => f.debug_tuple("Open").field(&store.path()).finish(),
        }
    }
}
