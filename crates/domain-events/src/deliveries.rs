//! The port of delivery state: progress, retries, blocked aggregates, dead letters.
//!
//! Success is the absence of a row (R2): a subscription's [`Progress`] says how far it has come,
//! and only what deviates — a delivery that waits for a retry, an aggregate that is blocked behind
//! one, a dead letter — is kept one by one.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    AggregateRef, ConnectionType, DeadLetter, DeadLetterGroup, DeadLetterQuery, EventId,
    PauseReason, Position, ProcessingOutcome, ProjectionStart, Pruned, Retention, StartFrom,
    StoreError, StoreErrorKind, Timestamp, TransactionDone, TransactionError,
    TransactionalDeliveries, Version,
};

/// A subscription's number in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(i64);

impl SubscriptionId {
    /// The id with this number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number of the id.
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// How far a subscription has come (R1, R3): every position up to `through` is finished, covered by
/// an exception, or one of `unfinished`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last position that was looked at.
    pub through: Position,
    /// Positions up to `through` that are still to be finished, ascending. One whose aggregate is blocked
    /// is blocked, whether or not it is among them: it may not have been read again since it was.
    pub unfinished: Vec<Position>,
}

/// A delivery that failed and will be attempted again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingDelivery {
    /// The event.
    pub position: Position,
    /// The event's aggregate.
    pub aggregate: AggregateRef,
    /// How many attempts were made.
    pub attempts: u32,
    /// When the first attempt began.
    pub first_attempt_at: Timestamp,
    /// When the next attempt is due.
    pub due_at: Timestamp,
    /// Why the last attempt failed.
    pub last_error: String,
    /// Whether it is the replay of a dead letter, of which no attempt may have been made yet.
    pub is_replay: bool,
}

/// An aggregate whose later events wait, for one subscription, until an earlier one is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedAggregate {
    /// The aggregate.
    pub aggregate: AggregateRef,
    /// Events of the aggregate from this position on are not finished.
    pub from: Position,
    /// The version of the first of them, or an earlier one where that is not known.
    pub version: Version,
    /// The event of the dead letter behind which they are parked, if they are (F5).
    pub parked_behind: Option<EventId>,
}

/// A delivery that may be repeated and was started; not known to have ended (F4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartedDelivery {
    /// The event.
    pub position: Position,
    /// How many runs have ended uncleanly while it was running, since it last ended. One that did not
    /// start it does not count.
    pub unclean_ends: u32,
}

/// A subscription as the store keeps it.
#[derive(Clone, Debug)]
pub struct SubscriptionState {
    /// Its number in the store.
    pub id: SubscriptionId,
    /// How far it has come.
    pub progress: Progress,
    /// Deliveries that wait for their next attempt.
    pub waiting: Vec<WaitingDelivery>,
    /// Aggregates that are blocked.
    pub blocked: Vec<BlockedAggregate>,
    /// Deliveries that were running when a run ended uncleanly, and not started to their end since.
    pub started: Vec<StartedDelivery>,
    /// Why it is paused, if it is.
    pub paused: Option<PauseReason>,
}

/// A name to be known to the store, and where it starts if it is new.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The subscription's stable name.
    pub name: Arc<str>,
    /// The names by which the store may know it instead: the first that it knows becomes this one.
    pub former_names: Vec<Arc<str>>,
    /// Where it starts if the store does not know it.
    pub start_from: StartFrom,
    /// What a projection is to begin with, where it is new to the store, or known in another version:
    /// it begins where it starts then. Where it was reset, it begins with that, too.
    pub projection: Option<ProjectionStart>,
}

/// What a store keeps of a subscription, whether or not anybody is subscribed by its name (D8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSubscription {
    /// Its name.
    pub name: Arc<str>,
    /// The last position that it has looked at.
    pub through: Position,
    /// How many events it has not finished, whether or not they are of its type: those behind
    /// `through`, those before it that are open, waiting or blocked.
    pub lag: u64,
    /// How many of its deliveries are dead letters.
    pub dead: u64,
    /// Why it is paused, if it is.
    pub paused: Option<PauseReason>,
    /// The version of its tables, where it is a projection; zero where they are to be made anew.
    pub version: Option<u32>,
}

/// What the store knows at the beginning of a run.
#[derive(Clone, Debug)]
pub struct RunState {
    /// Whether the run before this one ended with [`DeliveryChange::RunEnded`], or none was.
    pub after_clean_end: bool,
    /// Up to here a delivery may be a repeat: the head of the log when a run first began after one that
    /// had not ended so (R5).
    pub repeats_through: Position,
    /// The last position of the log.
    pub head: Position,
    /// One state for each registration, in their order.
    pub subscriptions: Vec<SubscriptionState>,
}

/// One change of the delivery state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeliveryChange {
    /// A subscription has come this far.
    Progressed(SubscriptionId, Progress),
    /// An attempt failed and another one follows; replaces what was known of the delivery.
    Waiting(SubscriptionId, WaitingDelivery),
    /// A delivery that was waiting is finished.
    Finished(SubscriptionId, Position),
    /// A delivery was given up; it no longer waits.
    Dead(SubscriptionId, DeadLetter),
    /// An aggregate is blocked from this position on; replaces what was known of it.
    Blocked(SubscriptionId, BlockedAggregate),
    /// An aggregate is no longer blocked.
    Unblocked(SubscriptionId, AggregateRef),
    /// Deliveries of the subscription wait until it is resumed, for this reason; or no more.
    Paused(SubscriptionId, Option<PauseReason>),
    /// A delivery that may be repeated starts.
    Started(SubscriptionId, Position),
    /// A delivery that was started has ended, however.
    Ended(SubscriptionId, Position),
    /// A dead letter is delivered again: it waits, and is a dead letter no more (F6). Nothing where
    /// there is no such letter.
    Replayed(SubscriptionId, WaitingDelivery),
    /// A dead letter is given up for good, for this reason (F6). Nothing where there is none.
    Discarded {
        /// The name of the subscription, which need not be registered.
        subscription: Arc<str>,
        /// The event.
        position: Position,
        /// Why.
        reason: String,
    },
    /// A subscription, by its name, begins anew here: what was known of it is forgotten, but for dead
    /// letters of events before (D8). Refused as [`Pruned`](crate::StoreErrorKind::Pruned) where the
    /// log was pruned there (R8).
    Reset(Arc<str>, StartFrom),
    /// A subscription, by its name, is forgotten, its dead letters too (D8).
    Forgotten(Arc<str>),
    /// Attempts for the processing log, of which the latest `keep` stay.
    Processed {
        /// The attempts, in the order in which they ended.
        attempts: Vec<ProcessingOutcome>,
        /// How many attempts the log keeps.
        keep: usize,
    },
    /// The run ends cleanly.
    RunEnded,
}

/// Changes that are committed together.
pub type DeliveryChanges = Vec<DeliveryChange>;

/// What is called when changes are committed or failed; as [`AppendDone`](crate::AppendDone).
pub type ChangesDone = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What is called when a registration is committed or failed; as [`AppendDone`](crate::AppendDone).
pub type RegistrationDone = Box<dyn FnOnce(Result<SubscriptionState, StoreError>) + Send>;

/// The delivery state of all subscriptions. Implemented by stores.
#[async_trait]
pub trait DeliveryStore: Send + Sync {
    /// Begins a run: makes the names known and returns what is known of them, committed (D8).
    ///
    /// # Errors
    /// When the store cannot be read or written; [`Pruned`](crate::StoreErrorKind::Pruned) where a new
    /// name was to start where the log was pruned (R8). No run has begun then.
    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError>;

    /// Makes one more name known during a run; `done` is called in the order of the log (as for
    /// [`EventStore::submit`](crate::EventStore::submit)), so that the caller knows exactly which
    /// events came before. Errors are those of [`begin_run`](Self::begin_run).
    fn submit_registration(&self, registration: Registration, done: RegistrationDone);

    /// Hands over changes, committed together and in the order of the calls, appends included.
    ///
    /// `done` is called exactly once, also where the store fails or is closed.
    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone);

    /// The type of the connection that the store gives to handlers in its transactions; `None` for a
    /// store that has none.
    fn connection_type(&self) -> Option<ConnectionType> {
        None
    }

    /// Makes deliveries in one transaction, each in a savepoint of its own, which is undone where the
    /// handler fails (R7). What the subscription has finished by them is committed with what they
    /// write, by itself: taken out of `progress` and of whatever row stands for it. A delivery that is
    /// finished already, by what the store knows, is not made.
    ///
    /// `done` is called exactly once, in the order of the log; an error says that nothing was committed,
    /// or that nobody knows: the same deliveries again settle it.
    fn submit_transaction(&self, deliveries: TransactionalDeliveries, done: TransactionDone) {
        drop(deliveries);
        let what = "the store has no transactions for handlers";
        let refused = StoreError::new(StoreErrorKind::Other, what);
        done(Err(TransactionError::NotCommitted(refused)));
    }

    /// Up to `limit` of the dead letters that `query` means, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Up to `limit` of the attempts in the processing log, of one subscription or of all, the latest
    /// first.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError>;

    /// What is kept of every subscription, in the order in which they became known.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError>;

    /// The dead letters that `query` means, grouped by subscription and error.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError>;

    /// Removes the events that are not to be kept, the oldest first, as far as every subscription has
    /// finished them (R8). The events of dead letters and of their replays stay; a letter that was
    /// settled goes with its event. Is made in steps, between which others write.
    ///
    /// # Errors
    /// When the store cannot be read or written; some events may be removed then.
    async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError>;
}
