//! A running system.

use std::{io::Write, sync::Arc, time::Duration};

use domain_events::{
    BusStatistics, DeadLetter, DeadLetterGroup, DeadLetterQuery, EventBus, EventId, ExportError,
    Health, LetterError, NewEvent, PlaceError, ProcessingOutcome, Pruned, PublishError, Receipt,
    Retention, StartFrom, StopError, StopReport, StoreError, StoredSubscription, SubscribeError,
    Subscription, SubscriptionGuard, WaitError,
};
use event_bus_core::InMemoryEventBus;
use event_store_diesel::SqliteEventStore;

use crate::{EventSystemBuilder, SyncPublisher, SystemStatus, status};

/// A running system: a bus, and the store behind it where there is one. A cheap clone.
#[derive(Clone, Debug)]
pub struct EventSystem {
    bus: Arc<InMemoryEventBus>,
    store: Option<Arc<SqliteEventStore>>,
}

impl EventSystem {
    /// A builder with default settings: a volatile system until a store is named.
    pub fn builder() -> EventSystemBuilder {
        EventSystemBuilder::default()
    }

    pub(crate) fn new(bus: InMemoryEventBus, store: Option<Arc<SqliteEventStore>>) -> Self {
        Self {
            bus: Arc::new(bus),
            store,
        }
    }

    /// Publishes one event, waiting for room. Durable: `Ok` comes after the commit (P1).
    ///
    /// # Errors
    /// [`PublishError`] says what did not happen.
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    pub async fn publish(&self, event: impl Into<NewEvent>) -> Result<Receipt, PublishError> {
        self.bus.publish(event.into()).await
    }

    /// Publishes events atomically and consecutively (P3).
    ///
    /// # Errors
    /// As [`publish`](Self::publish); no event of the batch is published then.
    ///
    /// # Cancellation
    /// A dropped future has either published the batch or touched nothing.
    pub async fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        self.bus.publish_all(events).await
    }

    /// Publishes one event if there is room now, else gives it back in the error (P4).
    ///
    /// # Errors
    /// [`PublishError::Full`] with the event, or as [`publish`](Self::publish).
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    pub async fn try_publish(&self, event: impl Into<NewEvent>) -> Result<Receipt, PublishError> {
        self.bus.try_publish(event.into()).await
    }

    /// Publishes one event, waiting for room up to `timeout`; then gives it back in the error (P4).
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    pub async fn publish_timeout(
        &self,
        event: impl Into<NewEvent>,
        timeout: Duration,
    ) -> Result<Receipt, PublishError> {
        self.bus.publish_timeout(event.into(), timeout).await
    }

    /// Adds a subscription to the running system (L4).
    ///
    /// # Errors
    /// When the name is taken, or the subscription cannot work.
    pub async fn subscribe(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        self.bus.subscribe(subscription).await
    }

    /// As [`subscribe`](Self::subscribe), for as long as the guard lives (L4).
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub async fn subscribe_guarded(
        &self,
        subscription: Subscription,
    ) -> Result<SubscriptionGuard, SubscribeError> {
        self.bus.subscribe_guarded(subscription).await
    }

    /// Removes a subscription and waits for its running attempts (L4). Returns whether there was
    /// one of the name.
    pub async fn unsubscribe(&self, name: &str) -> bool {
        self.bus.unsubscribe(name).await
    }

    /// Pauses a subscription: its deliveries wait, in order, until it is [resumed](Self::resume).
    /// Returns after its running attempts; `false` where none has the name.
    pub async fn pause(&self, name: &str) -> bool {
        self.bus.pause(name).await
    }

    /// Lets a paused subscription go on where it stopped. Returns whether there is one of the name.
    pub async fn resume(&self, name: &str) -> bool {
        self.bus.resume(name).await
    }

    /// Waits until nothing is queued, running, waiting for a retry or behind in the log, and
    /// progress is saved (L3). What is parked or paused does not count.
    ///
    /// # Errors
    /// From inside a handler, which it would wait for.
    pub async fn wait_idle(&self) -> Result<(), WaitError> {
        self.bus.wait_idle().await
    }

    /// Has a subscription begin anew at another place of the log, as to build a projection again (D8). What
    /// waits, is blocked or is a dead letter of it from there on is forgotten.
    ///
    /// # Errors
    /// As [`EventBus::reset`].
    pub async fn reset(&self, name: &str, start: StartFrom) -> Result<(), PlaceError> {
        self.bus.reset(name, start).await
    }

    /// Removes what the store keeps of a subscription that nobody is subscribed by (D8).
    ///
    /// # Errors
    /// As [`EventBus::forget`].
    pub async fn forget(&self, name: &str) -> Result<(), PlaceError> {
        self.bus.forget(name).await
    }

    /// What the store keeps of every subscription, also of those that nobody is subscribed by (D8).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn stored_subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        self.bus.stored_subscriptions().await
    }

    /// Removes from the log the events that are not to be kept, as far as every subscription that the
    /// store knows has finished them (R8); events of dead letters stay. To be called now and then, as
    /// once a day.
    ///
    /// # Errors
    /// When the store cannot be read or written; some events may be removed then.
    pub async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError> {
        self.bus.prune(keep).await
    }

    /// Up to `limit` of the dead letters that `query` means, oldest first (F6). The next page is that of
    /// the query [after](DeadLetterQuery::after) the last letter.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.bus.dead_letters(query, limit).await
    }

    /// Writes the dead letters that `query` means to `out`, oldest first, a line of JSON each (F6).
    /// Returns how many.
    ///
    /// # Errors
    /// When the store cannot be read or `out` not be written to; some of the letters are written then.
    pub async fn export_dead_letters(
        &self,
        query: &DeadLetterQuery,
        out: &mut (dyn Write + Send),
    ) -> Result<u64, ExportError> {
        self.bus.export_dead_letters(query, out).await
    }

    /// The dead letters that `query` means, grouped by subscription and error (F6).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        self.bus.dead_letter_groups(query).await
    }

    /// Delivers a dead letter again, with a fresh attempt count (F6); what is parked behind it goes
    /// on after it.
    ///
    /// # Errors
    /// When there is no such dead letter, or the store could not be read.
    pub async fn replay(&self, subscription: &str, event: EventId) -> Result<(), LetterError> {
        self.bus.replay(subscription, event).await
    }

    /// Replays all dead letters that `query` means, oldest first. Returns how many.
    ///
    /// # Errors
    /// When one cannot be replayed: then none is; or the store could not be read.
    pub async fn replay_all(&self, query: &DeadLetterQuery) -> Result<usize, LetterError> {
        self.bus.replay_all(query).await
    }

    /// Gives a dead letter up for good (F6); what is parked behind it goes on. The reason is said in the log
    /// of the program, and durable kept with the letter until its event is pruned.
    ///
    /// # Errors
    /// When there is no such dead letter, or the store could not be read.
    pub async fn discard(
        &self,
        subscription: &str,
        event: EventId,
        reason: &str,
    ) -> Result<(), LetterError> {
        self.bus.discard(subscription, event, reason).await
    }

    /// Discards all dead letters that `query` means. Returns how many.
    ///
    /// # Errors
    /// When the store could not be read.
    pub async fn discard_all(
        &self,
        query: &DeadLetterQuery,
        reason: &str,
    ) -> Result<usize, LetterError> {
        self.bus.discard_all(query, reason).await
    }

    /// Up to `limit` of the attempts that the processing log keeps, of one subscription or of all, the
    /// latest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        self.bus.processing_log(subscription, limit).await
    }

    /// Whether the system is well at this moment, and if not, why (N3).
    pub fn health(&self) -> Health {
        status::health(&self.bus.statistics(), self.store.as_deref())
    }

    /// The counters of the bus at this moment.
    pub fn statistics(&self) -> BusStatistics {
        self.bus.statistics()
    }

    /// What the system is doing at this moment, with what the store keeps of every subscription.
    pub async fn status(&self) -> SystemStatus {
        SystemStatus::of(self.bus.statistics(), self.store.as_deref()).await
    }

    /// Tells the system that the application, or another process, has committed events to its log in a
    /// transaction of its own: they are delivered at once (P7). Waits for nothing.
    pub fn wake(&self) {
        self.bus.wake();
    }

    /// The bus, as the port of domain services that are not async (P8).
    pub fn publisher(&self) -> SyncPublisher {
        SyncPublisher::new(&self.bus)
    }

    /// The bus, as the port that an application can hold.
    pub fn bus(&self) -> Arc<dyn EventBus> {
        Arc::clone(&self.bus) as _
    }

    /// The store, where there is one.
    pub fn store(&self) -> Option<&Arc<SqliteEventStore>> {
        self.store.as_ref()
    }

    /// Stops the bus, draining until `deadline`, and closes the store (L2). Other clones of the
    /// system find it stopped.
    ///
    /// # Errors
    /// From inside a handler, which it would wait for; the system then goes on.
    pub async fn shutdown(self, deadline: Duration) -> Result<StopReport, StopError> {
        let report = self.bus.stop(deadline).await?;
        if let Some(store) = &self.store {
            store.close().await;
        }
        Ok(report)
    }
}
