//! A store in memory that keeps the promises of one on a disk, plainly: for tests and simulation.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use domain_events::{
    Append, AppendDone, ChangesDone, DeadLetter, DeadLetterGroup, DeadLetterQuery, DeliveryChanges,
    DeliveryStore, EventEnvelope, EventId, EventQuery, EventStore, EventSummary, Position,
    ProcessingOutcome, Registration, RegistrationDone, RunState, StoreError, StoreStatistics,
    StoredSubscription,
};
use tokio::runtime::Handle;

mod log;
use log::Log;

mod deliveries;
use deliveries::Deliveries;

/// A store of events and of deliveries that is gone when it is dropped.
///
/// It takes payloads of up to 1 MiB. What is read back was encoded and is decoded again, as from a
/// disk.
pub struct MemoryStore {
    shared: Arc<Mutex<State>>,
    /// Where answers are given: on tasks of this runtime, or else on a thread.
    runtime: Option<Handle>,
}

#[derive(Default)]
struct State {
    log: Log,
    deliveries: Deliveries,
    answers: VecDeque<Answer>,
    is_answering: bool,
}

type Answer = Box<dyn FnOnce() + Send>;

impl MemoryStore {
    /// An empty store that answers on a thread of its own, as a store on a disk does.
    pub fn new() -> Self {
        let shared = Arc::default();
        let runtime = None;
        Self { shared, runtime }
    }

    /// An empty store that answers on tasks of the current runtime, for simulation: a paused clock
    /// waits for them.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn on_runtime() -> Self {
        let runtime = Some(Handle::current());
        Self {
            runtime,
            ..Self::new()
        }
    }

    /// Does what is asked for, and answers soon, after whatever was done before.
    ///
    /// Not here, because the caller may hold what the answer needs.
    fn hand_over(&self, request: impl FnOnce(&mut State) -> Answer) {
        let mut state = lock(&self.shared);
        let answer = request(&mut state);
        state.answers.push_back(answer);
        if std::mem::replace(&mut state.is_answering, true) {
            return;
        }
        drop(state);
        let answering = Answering::of(&self.shared);
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async move { answering.give_all() })),
            None => drop(thread::spawn(move || answering.give_all())),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives answers one by one, until there are none; there is one of these at a time.
struct Answering {
    shared: Arc<Mutex<State>>,
    has_ended: bool,
}

impl Answering {
    fn of(shared: &Arc<Mutex<State>>) -> Self {
        Self {
            shared: Arc::clone(shared),
            has_ended: false,
        }
    }

    fn give_all(mut self) {
        while let Some(answer) = self.next() {
            // A caller's own panic; the test that it belongs to has seen its message.
            let _ = catch_unwind(AssertUnwindSafe(answer));
        }
    }

    fn next(&mut self) -> Option<Answer> {
        let mut state = lock(&self.shared);
        let next = state.answers.pop_front();
        state.is_answering = next.is_some();
        self.has_ended = next.is_none();
        next
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // Only a runtime that ends drops it with answers left, and even those are given.
        if !self.has_ended {
            let rest = Self::of(&self.shared);
            drop(thread::spawn(move || rest.give_all()));
        }
    }
}

#[async_trait::async_trait]
impl EventStore for MemoryStore {
    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        // Encoded before the lock is taken, by the caller's own code.
        let batch = log::encode(batch);
        self.hand_over(|state| {
            let end = batch.and_then(|batch| state.log.append(batch));
            Box::new(|| done(end))
        });
    }

    async fn get(&self, id: EventId) -> Result<Option<EventEnvelope>, StoreError> {
        Ok(lock(&self.shared).log.get(id))
    }

    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        let State {
            log, deliveries, ..
        } = &*lock(&self.shared);
        let rows = log
            .after(after)
            .filter(|row| row.is_meant(query, deliveries));
        Ok(rows.take(limit).map(log::Row::envelope).collect())
    }

    async fn summary(&self, query: &EventQuery) -> Result<EventSummary, StoreError> {
        Ok(lock(&self.shared).summary(query))
    }

    async fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        let state = lock(&self.shared);
        let log = state.summary(&EventQuery::Log);
        Ok(StoreStatistics {
            log,
            finished: log.events - state.summary(&EventQuery::Unfinished).events,
            by_type: state.log.by_type(),
            aggregates: state.log.aggregates(),
        })
    }

    async fn head(&self) -> Result<Position, StoreError> {
        Ok(lock(&self.shared).log.head())
    }
}

impl State {
    fn summary(&self, query: &EventQuery) -> EventSummary {
        let rows = self.log.after(Position::ZERO);
        let meant: Vec<_> = rows
            .filter(|row| row.is_meant(query, &self.deliveries))
            .map(|row| row.recorded)
            .collect();
        EventSummary {
            events: meant.len() as u64,
            first: meant.first().copied(),
            last: meant.last().copied(),
        }
    }
}

#[async_trait::async_trait]
impl DeliveryStore for MemoryStore {
    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        let State {
            log, deliveries, ..
        } = &mut *lock(&self.shared);
        Ok(deliveries.begin_run(&registrations, log.head()))
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.hand_over(|state| {
            let known = state.deliveries.register(&registration, state.log.head());
            Box::new(|| done(Ok(known)))
        });
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        self.hand_over(|state| {
            let end = state.deliveries.change(changes, &state.log);
            Box::new(|| done(end))
        });
    }

    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let state = lock(&self.shared);
        Ok(state.deliveries.dead_letters(query, limit))
    }

    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        let state = lock(&self.shared);
        Ok(state.deliveries.processing_log(subscription, limit))
    }

    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        let State {
            log, deliveries, ..
        } = &*lock(&self.shared);
        Ok(deliveries.subscriptions(log))
    }

    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        let state = lock(&self.shared);
        Ok(state.deliveries.dead_letter_groups(query))
    }
}
