//! The ports that the store on SQLite serves, and how a request gets to its thread.

use async_trait::async_trait;
use diesel::{QueryResult, SqliteConnection};
use domain_events::{
    Append, AppendDone, ChangesDone, ConnectionType, DeadLetter, DeadLetterGroup, DeadLetterQuery,
    DeliveryChanges, DeliveryStore, EventEnvelope, EventId, EventQuery, EventStore, EventSummary,
    Position, ProcessingOutcome, Pruned, Registration, RegistrationDone, Retention, RunState,
    StoreError, StoreStatistics, StoredSubscription, TransactionDone, TransactionalDeliveries,
    promise,
};

use crate::{
    SqliteEventStore,
    append::AppendRequest,
    deliveries::ChangesRequest,
    failure, handlers,
    place::Place,
    reader::Job,
    registrations::{RegistrationRequest, RunRequest},
    session::Session,
    size,
    transactional::TransactionRequest,
    writer::{Request, Work},
};

#[async_trait]
impl EventStore for SqliteEventStore {
    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        self.hand_over(AppendRequest::new(
            batch,
            self.shared.options.max_payload_bytes,
            done,
        ));
    }

    async fn get(&self, id: EventId) -> Result<Option<EventEnvelope>, StoreError> {
        self.ask("the event was not read", move |session| session.event(id))
            .await
    }

    async fn at(&self, position: Position) -> Result<Option<EventEnvelope>, StoreError> {
        self.ask("the event was not read", move |session| {
            session.event_at(position)
        })
        .await
    }

    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        let query = query.clone();
        let read = move |session: &mut Session| session.read(&query, after, limit);
        let page = self.ask("the events were not read", read).await?;
        // Here, so that the next page is read meanwhile.
        Ok(page.into_envelopes())
    }

    async fn summary(&self, query: &EventQuery) -> Result<EventSummary, StoreError> {
        let query = query.clone();
        self.ask("the events were not counted", move |session| {
            session.at_once(|session| session.summary(&query))
        })
        .await
    }

    async fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        let place = self.shared.place.clone();
        let read = move |session: &mut Session| {
            let statistics = session.statistics()?;
            let size = Some(size::of(session, &place)?);
            Ok(StoreStatistics { size, ..statistics })
        };
        self.ask("the statistics were not read", move |session| {
            session.at_once(read)
        })
        .await
    }

    async fn head(&self) -> Result<Position, StoreError> {
        self.ask("the head of the log was not read", Session::head)
            .await
    }

    async fn pruned_through(&self) -> Result<Position, StoreError> {
        self.ask(
            "where the log is kept from was not read",
            Session::pruned_through,
        )
        .await
    }
}

#[async_trait]
impl DeliveryStore for SqliteEventStore {
    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        let (promise, state) = promise();
        self.hand_over(RunRequest::new(registrations, promise));
        state.await.unwrap_or_else(|| Err(failure::closed()))
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.hand_over(RegistrationRequest::new(registration, done));
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        self.hand_over(ChangesRequest::new(changes, done));
    }

    fn connection_type(&self) -> Option<ConnectionType> {
        Some(ConnectionType::of::<SqliteConnection>())
    }

    fn submit_transaction(&self, deliveries: TransactionalDeliveries, done: TransactionDone) {
        self.hand_over(TransactionRequest::new(deliveries, done));
    }

    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let query = query.clone();
        self.ask("the dead letters were not read", move |session| {
            session.dead_letters(&query, limit)
        })
        .await
    }

    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        let subscription = subscription.map(str::to_owned);
        self.ask("the processing log was not read", move |session| {
            session.processing_log(subscription.as_deref(), limit)
        })
        .await
    }

    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        self.ask("the subscriptions were not read", |session| {
            session.at_once(Session::subscriptions)
        })
        .await
    }

    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        let query = query.clone();
        self.ask("the dead letters were not read", move |session| {
            session.dead_letter_groups(&query)
        })
        .await
    }

    async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError> {
        self.prune_steps(keep).await
    }
}

impl SqliteEventStore {
    pub(crate) fn hand_over(&self, request: impl Request + 'static) {
        let request = Box::new(request);
        if handlers::is_inside() {
            return self.shared.inside.refuse(request);
        }
        let work = Work::Write(request);
        if let Err(Work::Write(request)) = self.shared.work.push(work) {
            self.shared.refused.refuse(request);
        }
    }

    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        question: impl FnOnce(&mut Session) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (promise, answer) = promise();
        let job: Job = Box::new(move |session| {
            let failed = |error| failure::store_error(what, error);
            let answer = session.and_then(|session| question(session).map_err(failed));
            let is_sound = answer.is_ok();
            promise.keep(answer);
            is_sound
        });
        let taken = match &self.shared.place {
            Place::Memory if handlers::is_inside() => return Err(failure::inside_handler()),
            Place::File(_) => self.shared.questions.push(job).is_ok(),
            Place::Memory => self.shared.work.push(Work::Read(job)).is_ok(),
        };
        if !taken {
            return Err(failure::closed());
        }
        answer.await.unwrap_or_else(|| Err(failure::closed()))
    }
}
