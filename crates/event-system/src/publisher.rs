//! Publishing from code that is not async: the bus behind the synchronous port (P8).

use std::sync::Arc;

use domain_events::{DomainEventPublisher, NewEvent, PublishError, Receipt};
use event_bus_core::InMemoryEventBus;

/// The bus of a system behind the synchronous port: for domain services that know no runtime. A cheap
/// clone; it does not keep the system running.
///
/// See [`InMemoryEventBus::publish_blocking`] for what it does where the queue is full.
#[derive(Clone, Debug)]
pub struct SyncPublisher {
    bus: Arc<InMemoryEventBus>,
}

impl SyncPublisher {
    pub(crate) fn new(bus: &Arc<InMemoryEventBus>) -> Self {
        let bus = Arc::clone(bus);
        Self { bus }
    }
}

impl DomainEventPublisher for SyncPublisher {
    fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        self.bus.publish_blocking(events)
    }
}
