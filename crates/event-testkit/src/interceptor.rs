//! A store in front of another one: what a test holds back, fails or watches on the way.

use std::sync::Arc;

use async_trait::async_trait;
use domain_events::{
    Append, AppendDone, ChangesDone, ConnectionType, DeadLetter, DeadLetterGroup, DeadLetterQuery,
    DeliveryChanges, DeliveryStore, EventEnvelope, EventId, EventQuery, EventStore, EventSummary,
    Position, ProcessingOutcome, Pruned, Registration, RegistrationDone, Retention, RunState,
    StoreError, StoreStatistics, StoredSubscription, TransactionDone, TransactionalDeliveries,
};

/// What a store is asked, before it is: each call goes on to the [store](Self::store) unless it is
/// overridden. Put in front of it with [`Intercepted`].
///
/// The contract of each call is that of the port it belongs to.
#[async_trait]
pub trait Interceptor: Send + Sync + 'static {
    /// The store behind.
    type Store: EventStore + DeliveryStore;

    /// The store that answers what is not overridden.
    fn store(&self) -> &Self::Store;

    /// See [`EventStore::submit`].
    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        self.store().submit(batch, done);
    }

    /// See [`EventStore::read`].
    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        self.store().read(query, after, limit).await
    }

    /// See [`DeliveryStore::begin_run`].
    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        self.store().begin_run(registrations).await
    }

    /// See [`DeliveryStore::submit_registration`].
    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.store().submit_registration(registration, done);
    }

    /// See [`DeliveryStore::submit_changes`].
    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        self.store().submit_changes(changes, done);
    }

    /// See [`DeliveryStore::submit_transaction`].
    fn submit_transaction(&self, deliveries: TransactionalDeliveries, done: TransactionDone) {
        self.store().submit_transaction(deliveries, done);
    }
}

/// The store that a bus is given in place of the one behind an [`Interceptor`].
#[derive(Debug)]
pub struct Intercepted<I>(pub Arc<I>);

#[async_trait]
impl<I: Interceptor> EventStore for Intercepted<I> {
    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        self.0.submit(batch, done);
    }

    async fn get(&self, id: EventId) -> Result<Option<EventEnvelope>, StoreError> {
        self.0.store().get(id).await
    }

    async fn at(&self, position: Position) -> Result<Option<EventEnvelope>, StoreError> {
        self.0.store().at(position).await
    }

    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        self.0.read(query, after, limit).await
    }

    async fn summary(&self, query: &EventQuery) -> Result<EventSummary, StoreError> {
        self.0.store().summary(query).await
    }

    async fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        self.0.store().statistics().await
    }

    async fn head(&self) -> Result<Position, StoreError> {
        self.0.store().head().await
    }

    async fn pruned_through(&self) -> Result<Position, StoreError> {
        self.0.store().pruned_through().await
    }
}

#[async_trait]
impl<I: Interceptor> DeliveryStore for Intercepted<I> {
    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        self.0.begin_run(registrations).await
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.0.submit_registration(registration, done);
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        self.0.submit_changes(changes, done);
    }

    fn connection_type(&self) -> Option<ConnectionType> {
        self.0.store().connection_type()
    }

    fn submit_transaction(&self, deliveries: TransactionalDeliveries, done: TransactionDone) {
        self.0.submit_transaction(deliveries, done);
    }

    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.0.store().dead_letters(query, limit).await
    }

    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        self.0.store().dead_letter_groups(query).await
    }

    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        self.0.store().processing_log(subscription, limit).await
    }

    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        self.0.store().subscriptions().await
    }

    async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError> {
        self.0.store().prune(keep).await
    }
}
