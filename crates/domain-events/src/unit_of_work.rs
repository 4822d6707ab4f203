//! Everything that one piece of work raises, published together or not at all.

use crate::{
    AggregateRoot, DomainEventPublisher, EventBus, NewEvent, PublishError, RaisedEvents, Receipt,
};

/// The events of one piece of work: collected from the aggregates that it has changed, and published
/// atomically (P3), through a bus or in the transaction in which the changes are committed.
///
/// What is in it stays until it is published, or [cleared](Self::clear); a unit that is dropped with
/// events in it says so in the log. Published again after an error, also after one that leaves the
/// outcome unknown, the events are the same ones, and none is there twice (P6).
///
/// ```
/// use domain_events::{DomainEventPublisher, PublishError, UnitOfWork};
/// # use domain_events::{AggregateRoot, DomainEvent};
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
/// # struct OrderPlaced { order_id: String }
/// fn place(order: &mut impl AggregateRoot, publisher: &dyn DomainEventPublisher) -> Result<(), PublishError> {
///     let mut unit = UnitOfWork::new();
///     unit.collect(order);
///     unit.publish_sync(publisher)?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Default)]
pub struct UnitOfWork {
    raised: RaisedEvents,
}

impl UnitOfWork {
    /// A unit without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event of no aggregate that is at hand, as of a service.
    pub fn raise(&mut self, event: impl Into<NewEvent>) {
        self.raised.raise(event);
    }

    /// Takes the events that an aggregate has raised, behind those that are there.
    pub fn collect(&mut self, aggregate: &mut impl AggregateRoot) {
        self.raised.collect(aggregate.raised());
    }

    /// Copies of the events, in order: to be appended in a transaction of one's own. Once that is
    /// committed, the unit is to be [cleared](Self::clear).
    pub fn events(&self) -> Vec<NewEvent> {
        self.raised.copies()
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.raised.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.raised.is_empty()
    }

    /// Drops the events: they are published already, or not to be.
    pub fn clear(&mut self) {
        self.raised.clear();
    }

    /// Publishes the events, all or none, and consecutive (P3); the unit is empty then. Without events
    /// it does nothing.
    ///
    /// # Errors
    /// As [`EventBus::publish_all`]; the events stay in the unit.
    ///
    /// # Cancellation
    /// The events stay in the unit, and may be published.
    pub async fn publish(&mut self, bus: &dyn EventBus) -> Result<Vec<Receipt>, PublishError> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let receipts = bus.publish_all(self.events()).await?;
        self.clear();
        Ok(receipts)
    }

    /// As [`publish`](Self::publish), from code that is not async (P8).
    ///
    /// # Errors
    /// As [`DomainEventPublisher::publish_all`]; the events stay in the unit.
    pub fn publish_sync(
        &mut self,
        publisher: &dyn DomainEventPublisher,
    ) -> Result<Vec<Receipt>, PublishError> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let receipts = publisher.publish_all(self.events())?;
        self.clear();
        Ok(receipts)
    }
}
