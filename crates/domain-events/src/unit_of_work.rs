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
/// A handler raises what [`caused`](crate::HandlerContext::caused) makes of an event, so that a repeated
/// attempt raises the same one.
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

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use super::*;
    use crate::{EventId, aggregate::tests::Rung};

    /// Writes down the ids of every call, and refuses where it is to.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<Vec<EventId>>>,
        refuses: AtomicBool,
    }

    impl DomainEventPublisher for Recorder {
        fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
            self.calls.lock().unwrap().push(ids(events));
            match self.refuses.load(SeqCst) {
                true => Err(PublishError::Stopped),
                false => Ok(Vec::new()),
            }
        }
    }

    fn ids(events: Vec<NewEvent>) -> Vec<EventId> {
        let id = |event: NewEvent| event.seal().id();
        events.into_iter().map(id).collect()
    }

    #[test]
    fn p6_what_was_refused_stays_and_is_published_again_as_the_same_events() {
        let (recorder, mut unit) = (Recorder::default(), UnitOfWork::new());
        (0..3).for_each(|number| unit.raise(Rung(number)));
        let raised = ids(unit.events());
        recorder.refuses.store(true, SeqCst);
        unit.publish_sync(&recorder).unwrap_err();
        assert_eq!(ids(unit.events()), raised);
        recorder.refuses.store(false, SeqCst);
        unit.publish_sync(&recorder).unwrap();
        assert!(unit.is_empty());
        assert_eq!(*recorder.calls.lock().unwrap(), [raised.clone(), raised]);
    }

    #[test]
    fn a_unit_without_events_publishes_nothing() {
        let recorder = Recorder::default();
        recorder.refuses.store(true, SeqCst);
        let mut unit = UnitOfWork::new();
        assert!(unit.publish_sync(&recorder).unwrap().is_empty());
        unit.raise(Rung(0));
        unit.clear();
        assert!(unit.publish_sync(&recorder).unwrap().is_empty());
        assert!(recorder.calls.lock().unwrap().is_empty());
    }
}
