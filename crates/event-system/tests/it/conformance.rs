//! The bus over SQLite keeps every promise of the port, in a file and in memory.

use std::sync::Arc;

use domain_events::EventBus;
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use event_testkit::event_bus::BusHarness;
use tempfile::TempDir;

fn bus_over(store: SqliteEventStore, capacity: usize, workers: usize) -> Arc<dyn EventBus> {
    let config = BusConfig {
        capacity,
        workers,
        ..BusConfig::default()
    };
    Arc::new(InMemoryEventBus::with_store(config, Arc::new(store)).unwrap())
}

struct InMemory;

impl BusHarness for InMemory {
    fn bus(&self, capacity: usize, workers: usize) -> Arc<dyn EventBus> {
        bus_over(
            SqliteEventStore::in_memory(SqliteOptions::default()).unwrap(),
            capacity,
            workers,
        )
    }

    fn is_durable(&self) -> bool {
        true
    }
}

struct InFile(TempDir);

impl BusHarness for InFile {
    fn bus(&self, capacity: usize, workers: usize) -> Arc<dyn EventBus> {
        let path = self.0.path().join("events.db");
        bus_over(
            SqliteEventStore::open(path, SqliteOptions::default()).unwrap(),
            capacity,
            workers,
        )
    }

    fn is_durable(&self) -> bool {
        true
    }
}

mod in_memory {
    event_testkit::event_bus_conformance!(super::InMemory);
}

mod in_a_file {
    event_testkit::event_bus_conformance!(super::InFile(tempfile::tempdir().unwrap()));
}
