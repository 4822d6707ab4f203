//! The volatile bus keeps every promise of the port.

use std::sync::Arc;

use domain_events::EventBus;
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_testkit::event_bus::{Abilities, BusHarness};

struct Volatile;

impl BusHarness for Volatile {
    fn bus(&self, capacity: usize, workers: usize) -> Arc<dyn EventBus> {
        let config = BusConfig {
            capacity,
            workers,
            ..BusConfig::default()
        };
        Arc::new(InMemoryEventBus::new(config).unwrap())
    }

    fn abilities(&self) -> Abilities {
        Abilities::ALL_VOLATILE
    }
}

event_testkit::event_bus_conformance!(Volatile, paused);
