//! The port of event stores: append to the log, read it.

use std::{error::Error, fmt, ops::RangeInclusive, sync::Arc};

use async_trait::async_trait;

use crate::{
    AggregateRef, EventEnvelope, EventId, EventQuery, EventSummary, ExpectedVersion, Position,
    StoreStatistics, Version, promise::promise,
};

/// One event to be appended.
#[derive(Debug)]
pub struct Append {
    /// The event, sealed and not yet recorded.
    pub event: Arc<EventEnvelope>,
    /// What it requires of its aggregate's history.
    pub expected: ExpectedVersion,
}

/// One event that is in the log.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The event, with its place in the log.
    pub event: Arc<EventEnvelope>,
    /// Whether the log had the same event before (P6).
    pub already_there: bool,
}

/// What a caller can do about a fault of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Another connection held the lock for longer than the busy time-out: try again.
    Busy,
    /// No space is left, on the disk or within a limit of the store.
    Full,
    /// The store cannot be written to.
    ReadOnly,
    /// The operating system could not read or write.
    Io,
    /// What was read is not what was written.
    Corrupt,
    /// The store is closed.
    Closed,
    /// What was asked for begins where the log was pruned: it is kept after this position (R8).
    Pruned(Position),
    /// The call came from inside a transactional handler, which the store waits for (R7).
    InsideTransaction,
    /// The application's own code failed, which the store has called: a projection did not begin (R7).
    Application,
    /// Anything else.
    Other,
}

/// A fault of a store: what did not happen, and why.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    what: &'static str,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// The error that `what` did not happen; `what` reads like "the log was not read".
    pub fn new(kind: StoreErrorKind, what: &'static str) -> Self {
        Self {
            kind,
            what,
            source: None,
        }
    }

    /// Names the cause.
    #[must_use]
    pub fn caused_by(self, source: impl Error + Send + Sync + 'static) -> Self {
        Self {
            source: Some(Arc::new(source)),
            ..self
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            StoreErrorKind::Pruned(through) => {
                write!(
                    f,
                    "{} (the log is kept after position {through})",
                    self.what
                )
            }
            kind => write!(f, "{} ({kind:?})", self.what),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Events that were not appended. All but [`OutcomeUnknown`](Self::OutcomeUnknown) mean that
/// nothing of the batch is in the log.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The aggregate's history is not what was expected (P6).
    #[error("{aggregate} is at version {actual}, not as expected: {expected:?}")]
    WrongVersion {
        /// The aggregate.
        aggregate: AggregateRef,
        /// What was expected.
        expected: ExpectedVersion,
        /// Its last version, zero for none.
        actual: Version,
    },
    /// The id belongs to an event with another type, aggregate or payload (P6).
    #[error("the id {id} belongs to another event, at position {position}")]
    IdTaken {
        /// The id.
        id: EventId,
        /// Where the other event is; zero where it is in the same batch.
        position: Position,
    },
    /// Some events of the batch are in the log, others are not (P6).
    #[error("{present} of the batch's {batch} events are in the log already")]
    PartlyThere {
        /// How many are there.
        present: usize,
        /// How many the batch has.
        batch: usize,
    },
    /// The payload is larger than the store takes.
    #[error("the payload of {bytes} bytes is over the limit of {limit}")]
    PayloadTooLarge {
        /// The payload's size.
        bytes: usize,
        /// The store's limit.
        limit: usize,
    },
    /// The event could not be written as JSON.
    #[error("the event of type {event_type:?} was not encoded")]
    Encode {
        /// The event type.
        event_type: String,
    },
    /// The commit itself failed, so the events may be in the log or not: appending the same
    /// events again settles it (P6).
    #[error("nobody knows whether the events were appended")]
    OutcomeUnknown(#[source] StoreError),
    /// A fault of the store before the commit.
    #[error("the events were not appended")]
    Store(#[source] StoreError),
}

/// What is called when a batch is committed or refused: once, on a thread of the store, and in the
/// order of the log. It must not block, nor call the store and wait for it.
pub type AppendDone = Box<dyn FnOnce(Result<Vec<Appended>, AppendError>) + Send>;

/// A log of events, each in the history of its aggregate. Implemented by stores.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Hands a batch to the log; it is appended whole or not at all, consecutively (P3).
    ///
    /// `done` is called exactly once, also where the store fails or is closed. All `done`s of a
    /// store are called one after the other, in the order of the log.
    fn submit(&self, batch: Vec<Append>, done: AppendDone);

    /// Appends a batch and waits until it is committed (P1).
    ///
    /// # Errors
    /// [`AppendError`] says what did not happen.
    ///
    /// # Cancellation
    /// The batch is handed over at the first poll, and is then appended whether or not the future
    /// is dropped.
    async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        let (keep, wait) = promise();
        self.submit(batch, Box::new(move |result| keep.keep(result)));
        let broken = || {
            AppendError::Store(StoreError::new(
                StoreErrorKind::Closed,
                "the store is closed",
            ))
        };
        wait.await.unwrap_or_else(|| Err(broken()))
    }

    /// The event with this id, also where the log was pruned and it is kept for a dead letter (R8).
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn get(&self, id: EventId) -> Result<Option<EventEnvelope>, StoreError>;

    /// The event at this position, also where the log was pruned and it is kept for a dead letter or its
    /// replay (R8).
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn at(&self, position: Position) -> Result<Option<EventEnvelope>, StoreError>;

    /// Up to `limit` of the events that `query` means, after `after`, in the order of the log;
    /// fewer only at the end. [`EventStream`](crate::EventStream) reads page after page.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError>;

    /// Up to `limit` events of an aggregate's history, in order, with versions in `versions`.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn read_aggregate(
        &self,
        aggregate: &AggregateRef,
        versions: RangeInclusive<Version>,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        let query = EventQuery::History(aggregate.clone(), versions);
        self.read(&query, Position::ZERO, limit).await
    }

    /// Up to `limit` events of the log after `after`, in order; fewer only at the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn read_log(
        &self,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        self.read(&EventQuery::Log, after, limit).await
    }

    /// How many events `query` means, and where the first and the last of them are.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn summary(&self, query: &EventQuery) -> Result<EventSummary, StoreError>;

    /// What the store holds. Reads much of it, as to count the events of each type and to measure the
    /// tables: for a person who looks, not for every second.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn statistics(&self) -> Result<StoreStatistics, StoreError>;

    /// The greatest position that was given, zero for a log that was always empty.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn head(&self) -> Result<Position, StoreError>;

    /// The position after which the log is kept, zero where it was never pruned (R8).
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn pruned_through(&self) -> Result<Position, StoreError>;
}
