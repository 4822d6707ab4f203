//! The port of buses: publish, subscribe, start, stop, ask.

use std::{io::Write, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    AppendError, BusStatistics, ConfigError, DeadLetter, DeadLetterGroup, DeadLetterQuery,
    EncodeError, EventId, ExportError, Health, HealthLimits, NewEvent, ProcessingOutcome, Pruned,
    Receipt, RegistryError, Retention, StartFrom, StoreError, StoreErrorKind, StoredSubscription,
    Subscription, SubscriptionGuard, UnfaithfulError,
};

/// An event that was not published. Nothing of a failed call was recorded or delivered, except
/// where [`AppendError::OutcomeUnknown`] says that nobody can know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The bus has not been started.
    #[error("the event was not published: the bus is not started")]
    NotStarted,
    /// The bus is stopping or stopped.
    #[error("the event was not published: the bus is stopped")]
    Stopped,
    /// There was no room, and the call was not to wait for any.
    #[error("the event was not published: the queue is full, and holds {capacity}")]
    Full {
        /// How many events the queue holds.
        capacity: usize,
        /// The events, given back.
        events: Vec<NewEvent>,
    },
    /// The batch can never fit into the queue of a volatile bus.
    #[error("the batch of {batch} events was not published: the queue holds {capacity}")]
    BatchTooLarge {
        /// How many events the batch has.
        batch: usize,
        /// How many events the queue holds.
        capacity: usize,
    },
    /// A name of the event is empty or too long.
    #[error("the event was not published: a name is empty or too long")]
    Name(#[source] ConfigError),
    /// The event could not be written as JSON.
    #[error("the event was not published: it could not be written as JSON")]
    Encode(#[source] EncodeError),
    /// Read back from its JSON, the event would be another one; found in debug builds (D11).
    #[error("the event was not published: its JSON does not give it back as it was")]
    Unfaithful(#[source] UnfaithfulError),
    /// A volatile bus has no history to expect a version of.
    #[error("the event was not published: a bus without a store knows no versions")]
    VersionWithoutStore,
    /// The log refused the event or failed.
    #[error("{}", not_appended(.0))]
    Append(#[source] AppendError),
}

fn not_appended(error: &AppendError) -> &'static str {
    match error {
        AppendError::OutcomeUnknown(_) => {
            "nobody knows whether the event was published: its commit failed"
        }
        AppendError::Store(_) => "the event was not published: the store failed",
        _ => "the event was not published: the log refused it",
    }
}

fn not_placed(error: &StoreError) -> &'static str {
    match error.kind() {
        StoreErrorKind::Pruned(_) => "it was to begin with events that were pruned",
        StoreErrorKind::Application => "a projection did not begin",
        _ => "the store could not be read or written",
    }
}

/// A bus that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It is running already, or was stopped.
    #[error("the bus was not started: it was started before")]
    AlreadyStarted,
    /// No runtime runs at the place of the call.
    #[error("the bus was not started: no tokio runtime runs here")]
    NoRuntime,
    /// The store could not be read, or a subscription was to begin with what was pruned.
    #[error("the bus was not started: {}", not_placed(.0))]
    Store(#[source] StoreError),
}

/// A subscription that was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// Another subscription has the name.
    #[error("the subscription was not made: its name {0:?} is taken")]
    DuplicateName(Arc<str>),
    /// The subscription, or its event type, cannot work.
    #[error("the subscription {name:?} was not made: it, or its event type, cannot work")]
    Invalid {
        /// The subscription's name.
        name: Arc<str>,
        /// What cannot work.
        source: RegistryError,
    },
    /// The store could not record or read the subscription, or it was to begin with what was pruned.
    #[error("the subscription was not made: {}", not_placed(.0))]
    Store(#[source] StoreError),
    /// The bus is stopped.
    #[error("the subscription was not made: the bus is stopped")]
    Stopped,
}

/// A wait that would never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The caller is a handler of the bus, and would wait for itself (L4).
    #[error("not waited: the call came from inside a handler")]
    InsideHandler,
    /// The event was in the log before the call that published it again.
    #[error("not waited: the event was in the log before, its deliveries are not followed")]
    NotFollowed,
}

/// A bus that was not stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// The caller is a handler of the bus, and would wait for itself (L4).
    #[error("the bus was not stopped: the call came from inside a handler")]
    InsideHandler,
}

/// A dead letter that was neither replayed nor discarded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LetterError {
    /// The subscription has no dead letter of this event: none was kept, it was lost to the bound,
    /// or it was replayed or discarded before.
    #[error("nothing was done: {subscription:?} has no dead letter of event {event}")]
    NoSuchLetter {
        /// The name asked for.
        subscription: String,
        /// The event asked for.
        event: EventId,
    },
    /// Nobody of that name is subscribed, and so there is nobody to replay to.
    #[error("nothing was done: nobody is subscribed as {subscription:?}")]
    NoSuchSubscription {
        /// The name asked for.
        subscription: String,
    },
    /// The bus is not running, and so has nobody to replay to.
    #[error("nothing was done: the bus is not running")]
    NotRunning,
    /// The store could not be read or written.
    #[error("nothing was done: the store could not be read or written")]
    Store(#[from] StoreError),
}

/// A subscription whose place in the log was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The bus has no log.
    #[error("nothing was done: a bus without a store has no log")]
    WithoutStore,
    /// The store knows no subscription of the name.
    #[error("nothing was done: the store knows no subscription {0:?}")]
    NoSuchSubscription(Arc<str>),
    /// Somebody is subscribed by the name; it is to be unsubscribed before it is forgotten.
    #[error("nothing was done: somebody is subscribed as {0:?}")]
    Subscribed(Arc<str>),
    /// The caller is a handler of the bus, whose end would be waited for.
    #[error("nothing was done: the call came from inside a handler")]
    InsideHandler,
    /// The bus is not running.
    #[error("nothing was done: the bus is not running")]
    NotRunning,
    /// The store could not be read or written, or the events from there on were pruned.
    #[error("nothing was done: {}", not_placed(.0))]
    Store(#[from] StoreError),
    /// The place was changed, but the subscription could not take part again.
    #[error("the place was changed, and the subscription is gone")]
    Subscribe(#[source] SubscribeError),
}

/// What a stop found and left (L2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Deliveries that ended between the call and the deadline.
    pub drained: u64,
    /// What is left for the next start (durable): open deliveries, blocked aggregates, each counted
    /// once, and events of the log that were not looked at.
    pub left_in_log: u64,
    /// Deliveries that no one will make (volatile).
    pub abandoned: u64,
    /// Attempts that the deadline cut off; they count as not made.
    pub cut_off: u64,
    /// What kept the last progress from being saved, if anything did.
    pub unsaved: Option<String>,
}

/// A bus that carries events to subscriptions. Object-safe: hold it as `Arc<dyn EventBus>`.
#[async_trait]
pub trait EventBus: Send + Sync {
    /// Starts the bus; returns when every worker runs, and recovery has begun (L1, R4).
    ///
    /// # Errors
    /// When the bus was started before, or the store cannot be read.
    async fn start(&self) -> Result<(), StartError>;

    /// Stops the bus: refuses new events, drains until `deadline`, saves progress (L2).
    ///
    /// Stopping twice is harmless; the second report is empty.
    ///
    /// # Errors
    /// From inside a handler, which it would wait for.
    async fn stop(&self, deadline: Duration) -> Result<StopReport, StopError>;

    /// Publishes one event, waiting for room (P1, P4). Durable: `Ok` comes after the commit.
    ///
    /// # Errors
    /// [`PublishError`] says what did not happen.
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    async fn publish(&self, event: NewEvent) -> Result<Receipt, PublishError>;

    /// Publishes events atomically and consecutively (P3).
    ///
    /// # Errors
    /// As [`publish`](Self::publish); no event of the batch is published then.
    ///
    /// # Cancellation
    /// A dropped future has either published the batch or touched nothing.
    async fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError>;

    /// Publishes one event if there is room now, else gives it back in the error (P4).
    ///
    /// # Errors
    /// [`PublishError::Full`] with the event, or as [`publish`](Self::publish).
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    async fn try_publish(&self, event: NewEvent) -> Result<Receipt, PublishError>;

    /// Publishes one event, waiting for room up to `timeout`; then gives it back in the error (P4).
    ///
    /// Only the wait for room is limited: durable, the commit is waited for.
    ///
    /// # Errors
    /// As [`try_publish`](Self::try_publish).
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    async fn publish_timeout(
        &self,
        event: NewEvent,
        timeout: Duration,
    ) -> Result<Receipt, PublishError>;

    /// Adds a subscription, before or after the start (L4).
    ///
    /// # Errors
    /// When the name, or a former one, is taken, also by a removed subscription whose last attempt this
    /// call is in, or the subscription cannot work.
    ///
    /// # Cancellation
    /// A dropped future may still have subscribed.
    async fn subscribe(&self, subscription: Subscription) -> Result<(), SubscribeError>;

    /// As [`subscribe`](Self::subscribe), for as long as the guard lives: dropped, it removes the
    /// subscription without waiting for a running attempt (L4).
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    ///
    /// # Cancellation
    /// A dropped future may still have subscribed.
    async fn subscribe_guarded(
        &self,
        subscription: Subscription,
    ) -> Result<SubscriptionGuard, SubscribeError>;

    /// Removes a subscription and waits for its running attempts; from inside one of its handlers
    /// it does not wait (L4). Returns whether there was one of the name.
    ///
    /// # Cancellation
    /// A dropped future has removed it.
    async fn unsubscribe(&self, name: &str) -> bool;

    /// Pauses a subscription: its deliveries wait until it is [resumed](Self::resume). Returns
    /// after its running attempts, except from inside a handler; `false` where none has the name.
    /// Durable, it is committed then, and lasts until it is resumed, be it by a later run.
    ///
    /// # Cancellation
    /// A dropped future has paused it.
    async fn pause(&self, name: &str) -> bool;

    /// Lets a paused subscription go on, where it stopped and in order; harmless where it is not
    /// paused. Returns whether there is one of the name; durable, once that is committed.
    async fn resume(&self, name: &str) -> bool;

    /// Has a subscription begin anew at another place of the log: a projection that is built again
    /// (D8). Its waiting, blocked and dead deliveries from there on are forgotten; it waits for the
    /// attempts that run, and nobody needs to be subscribed by the name.
    ///
    /// # Errors
    /// When the bus has no store or is not running, the store does not know the name, the log was pruned
    /// there ([`StoreErrorKind::Pruned`](crate::StoreErrorKind::Pruned)), or the call comes from inside a
    /// handler. Where the store fails, the subscription goes on where it was; that is waited for. A
    /// projection that does not begin is gone ([`PlaceError::Subscribe`]).
    ///
    /// # Cancellation
    /// A dropped future may have reset it, and still does.
    async fn reset(&self, name: &str, start: StartFrom) -> Result<(), PlaceError>;

    /// Removes what the store keeps of a subscription that nobody is subscribed by, its dead letters too
    /// (D8).
    ///
    /// # Errors
    /// When the bus has no store or is not running, the store does not know the name, somebody is
    /// subscribed by it, or the call comes from inside a handler.
    async fn forget(&self, name: &str) -> Result<(), PlaceError>;

    /// What the store keeps of every subscription, also of those that nobody is subscribed by; empty
    /// without a store (D8).
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn stored_subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError>;

    /// Removes from the log the events that are not to be kept, as far as every subscription that the
    /// store knows, be it that nobody is subscribed by the name, has finished them (R8). Events of dead
    /// letters stay. Without a store there is nothing to remove.
    ///
    /// # Errors
    /// When the store cannot be read or written; some events may be removed then.
    ///
    /// # Cancellation
    /// A dropped future may have removed some of the events.
    async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError>;

    /// Up to `limit` of the dead letters that `query` means, oldest first (F6). The next page is that of
    /// the query [after](DeadLetterQuery::after) the last letter.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Writes the dead letters that `query` means to `out`, oldest first, a line of JSON each (see
    /// [`DeadLetter::to_json_line`]); in pages, so that any number takes little memory. Returns how many.
    ///
    /// Writing blocks the thread as `out` does, which is flushed at the end.
    ///
    /// # Errors
    /// When the store cannot be read or `out` not be written to; some of the letters are written then.
    async fn export_dead_letters(
        &self,
        query: &DeadLetterQuery,
        out: &mut (dyn Write + Send),
    ) -> Result<u64, ExportError> {
        const PAGE: usize = 100;
        let (mut query, mut written) = (query.clone(), 0);
        loop {
            let page = self.dead_letters(&query, PAGE).await?;
            for letter in &page {
                writeln!(out, "{}", letter.to_json_line())?;
            }
            written += page.len() as u64;
            match page.last() {
                Some(last) if page.len() == PAGE => query = query.after(last),
                _ => {
                    out.flush()?;
                    return Ok(written);
                }
            }
        }
    }

    /// The dead letters that `query` means, grouped by subscription and error (F6).
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError>;

    /// Delivers a dead letter again, with a fresh attempt count; it is a dead letter no more (F6).
    ///
    /// What is parked behind it goes on after it. Under [`Skip`](crate::FailurePolicy::Skip) it
    /// comes after newer events, but never beside another delivery of its aggregate.
    ///
    /// # Errors
    /// When there is no such dead letter or no such subscription, the bus is not running, or the store
    /// could not be read.
    async fn replay(&self, subscription: &str, event: EventId) -> Result<(), LetterError>;

    /// [Replays](Self::replay) all dead letters that `query` means, oldest first. Returns how many.
    ///
    /// # Errors
    /// As [`replay`](Self::replay), for the first that cannot be replayed; then none is.
    async fn replay_all(&self, query: &DeadLetterQuery) -> Result<usize, LetterError>;

    /// Gives a dead letter up for good; what is parked behind it goes on (F6). The reason is said in
    /// the log of the program, and durable kept with the letter until its event is pruned (R8).
    ///
    /// # Errors
    /// When there is no such dead letter; durable also where the bus is not running, or the store could
    /// not be read.
    async fn discard(
        &self,
        subscription: &str,
        event: EventId,
        reason: &str,
    ) -> Result<(), LetterError>;

    /// [Discards](Self::discard) all dead letters that `query` means. Returns how many.
    ///
    /// # Errors
    /// Durable: when the bus is not running, or the store could not be read.
    async fn discard_all(
        &self,
        query: &DeadLetterQuery,
        reason: &str,
    ) -> Result<usize, LetterError>;

    /// Up to `limit` of the attempts that the processing log keeps, of one subscription or of all, the
    /// latest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError>;

    /// Waits until nothing is queued, running, waiting for a retry or behind in the log, and
    /// progress is saved (L3). What is parked or paused does not count. Durable, the log is looked at
    /// first, as by [`wake`](Self::wake).
    ///
    /// # Errors
    /// From inside a handler, which it would wait for.
    ///
    /// # Cancellation
    /// Dropping the future changes nothing.
    async fn wait_idle(&self) -> Result<(), WaitError>;

    /// Tells the bus that somebody else has committed events to its log, as the application in a
    /// transaction of its own: they are delivered at once (P7). Waits for nothing, and may be called
    /// anywhere; without a store there is nothing to be told.
    fn wake(&self) {}

    /// The figures of the bus at this moment (N1, N2).
    fn statistics(&self) -> BusStatistics;

    /// Whether the bus is well at this moment, and if not, why (N3); by the default limits.
    fn health(&self) -> Health {
        self.statistics().health(&HealthLimits::default())
    }
}
