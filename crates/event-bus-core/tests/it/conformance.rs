//! The volatile bus keeps every promise of the port.

use std::sync::Arc;

use domain_events::EventBus;
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_testkit::event_bus::BusHarness;

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

    fn is_durable(&self) -> bool {
        false
    }
}

event_testkit::event_bus_conformance!(Volatile, paused);
