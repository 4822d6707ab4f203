//! A store in memory that keeps the promises of one on a disk, plainly: for tests and simulation.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use domain_events::{
    Append, AppendDone, ChangesDone, DeadLetter, DeadLetterGroup, DeadLetterQuery, DeliveryChanges,
    DeliveryStore, EventEnvelope, EventId, EventQuery, EventStore, EventSummary, Position,
    ProcessingOutcome, Pruned, Registration, RegistrationDone, Retention, RunState, StoreError,
    StoreStatistics, StoredSubscription,
};
use tokio::runtime::Handle;

mod log;
use log::Log;

mod deliveries;
use deliveries::Deliveries;

mod crash;
pub use crash::Crash;
use crash::{Calls, Fate};

mod watch;
pub use watch::Done;
use watch::Watch;

mod verify;
pub use verify::Standing;

/// A store of events and of deliveries that is gone when it is dropped.
///
/// It takes payloads of up to 1 MiB. What is read back was encoded and is decoded again, as from a
/// disk.
///
/// It can [crash](Self::crash_at) at any of its calls, as if the process were dead, and be
/// [restarted](Self::restarted) with what it held then; and it says whether everything in it is
/// accounted for ([`verify`](Self::verify)).
pub struct MemoryStore {
    shared: Arc<Mutex<State>>,
    /// Where answers are given: on tasks of this runtime, or else on a thread.
    runtime: Option<Handle>,
    /// How long answers take there.
    latency: Duration,
}

#[derive(Default)]
struct State {
    log: Log,
    deliveries: Deliveries,
    answers: VecDeque<Answer>,
    is_answering: bool,
    calls: Calls,
    watch: Option<Watch>,
    /// Requests that a crash has kept from being made, with whoever waits for their answers.
    unanswered: Vec<Box<dyn Any + Send>>,
}

type Answer = Box<dyn FnOnce() + Send>;

impl MemoryStore {
    /// An empty store that answers on a thread of its own, as a store on a disk does.
    pub fn new() -> Self {
        let shared = Arc::default();
        Self {
            shared,
            runtime: None,
            latency: Duration::ZERO,
        }
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

    /// Has the answers to what is written come so late, as from a disk: what is asked for meanwhile is
    /// answered with it. On tasks of a runtime only.
    #[must_use]
    pub fn latency(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// Does what is asked for, and answers soon, after whatever was done before.
    ///
    /// Not here, because the caller may hold what the answer needs.
    fn hand_over(&self, request: impl FnOnce(&mut State) -> Answer + Send + 'static) {
        let mut state = lock(&self.shared);
        let fate = state.calls.next();
        if fate == Fate::Unheard {
            state.unanswered.push(Box::new(request));
            return;
        }
        let answer = request(&mut state);
        state.answers.push_back(answer);
        if fate == Fate::Unanswered || std::mem::replace(&mut state.is_answering, true) {
            return;
        }
        drop(state);
        let answering = Answering::of(&self.shared);
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(answering.give_late(self.latency))),
            None => drop(thread::spawn(move || answering.give_all())),
        }
    }

    /// Does what is asked for, and answers at once.
    async fn answer<T>(&self, request: impl FnOnce(&mut State) -> T) -> T {
        let answered = {
            let mut state = lock(&self.shared);
            match state.calls.next() {
                Fate::Unheard => None,
                Fate::Unanswered => {
                    request(&mut state);
                    None
                }
                Fate::Answered => Some(request(&mut state)),
            }
        };
        match answered {
            Some(answer) => answer,
            None => pending().await,
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

    async fn give_late(self, latency: Duration) {
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        self.give_all();
    }

    fn give_all(mut self) {
        while let Some(answer) = self.next() {
            // A caller's own panic; the test that it belongs to has seen its message.
            let _ = catch_unwind(AssertUnwindSafe(answer));
        }
    }

    fn next(&mut self) -> Option<Answer> {
        let mut state = lock(&self.shared);
        let is_dead = state.calls.is_dead();
        let next = (!is_dead).then(|| state.answers.pop_front()).flatten();
        state.is_answering = next.is_some();
        self.has_ended = next.is_none();
        next
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // Only a runtime that ends drops it with answers left, and even those are given.
        if !self.has_ended && !lock(&self.shared).calls.is_dead() {
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
        self.hand_over(move |state| {
            let end = batch.and_then(|batch| state.log.append(batch));
            if let Ok(appended) = &end {
                state.tell(&Done::Appended(appended));
            }
            Box::new(|| done(end))
        });
    }

    async fn get(&self, id: EventId) -> Result<Option<EventEnvelope>, StoreError> {
        self.answer(|state| Ok(state.log.get(id))).await
    }

    async fn at(&self, position: Position) -> Result<Option<EventEnvelope>, StoreError> {
        self.answer(|state| Ok(state.log.at(position).map(log::Row::envelope)))
            .await
    }

    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        let read = |state: &mut State| {
            state.tell(&Done::Read(query, after));
            let State {
                log, deliveries, ..
            } = state;
            let rows = log
                .after(after.max(log.not_read(query)))
                .filter(|row| row.is_meant(query, deliveries));
            Ok(rows.take(limit).map(log::Row::envelope).collect())
        };
        self.answer(read).await
    }

    async fn summary(&self, query: &EventQuery) -> Result<EventSummary, StoreError> {
        self.answer(|state| Ok(state.summary(query))).await
    }

    async fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        self.answer(|state| Ok(state.statistics())).await
    }

    async fn head(&self) -> Result<Position, StoreError> {
        self.answer(|state| Ok(state.log.head())).await
    }

    async fn pruned_through(&self) -> Result<Position, StoreError> {
        self.answer(|state| Ok(state.log.pruned_through)).await
    }
}

impl State {
    fn prune(&mut self, keep: Retention) -> Pruned {
        let State {
            log, deliveries, ..
        } = self;
        let through = log.not_kept(keep).min(deliveries.finished_by_all());
        let events = log.prune(through, |position| deliveries.keeps(position));
        Pruned {
            events,
            through: log.pruned_through,
        }
    }

    fn statistics(&self) -> StoreStatistics {
        let log = self.summary(&EventQuery::Log);
        let kept = self.log.after(self.log.pruned_through);
        let finished = kept.filter(|row| !self.deliveries.has_unfinished(row));
        StoreStatistics {
            log,
            pruned_through: self.log.pruned_through,
            finished: finished.count() as u64,
            by_type: self.log.by_type(),
            aggregates: self.log.aggregates(),
            size: None,
        }
    }

    fn summary(&self, query: &EventQuery) -> EventSummary {
        let rows = self.log.after(self.log.not_read(query));
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
        let begin = |state: &mut State| {
            let run = state.deliveries.begin_run(&registrations, &state.log)?;
            state.tell(&Done::RunBegun(&registrations, &run));
            Ok(run)
        };
        self.answer(begin).await
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.hand_over(move |state| {
            let known = state.deliveries.register(&registration, &state.log);
            if let Ok(known) = &known {
                state.tell(&Done::Registered(&registration, known));
            }
            Box::new(|| done(known))
        });
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        self.hand_over(move |state| {
            let end = state.deliveries.change(&changes, &state.log);
            if end.is_ok() {
                state.tell(&Done::Changed(&changes));
            }
            Box::new(|| done(end))
        });
    }

    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.answer(|state| Ok(state.deliveries.dead_letters(query, limit)))
            .await
    }

    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        self.answer(|state| Ok(state.deliveries.processing_log(subscription, limit)))
            .await
    }

    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        self.answer(|state| Ok(state.deliveries.subscriptions(&state.log)))
            .await
    }

    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        self.answer(|state| Ok(state.deliveries.dead_letter_groups(query)))
            .await
    }

    async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError> {
        let prune = |state: &mut State| {
            let pruned = state.prune(keep);
            state.tell(&Done::Pruned(pruned));
            Ok(pruned)
        };
        self.answer(prune).await
    }
}
