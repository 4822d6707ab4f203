//! Handlers that write to a store's own database, in the transaction that says that they have handled
//! the event: exactly once (R7).

use std::{
    any::{Any, TypeId, type_name},
    fmt,
    sync::Arc,
};

use crate::{
    AggregateRef, DomainEvent, Event, HandlerContext, HandlerError, Position, Progress, StoreError,
    SubscriptionId, Version,
};

/// Reacts to events of type `E` in a transaction of the store, of whose connection the type is `C`
/// (R7).
///
/// What it writes there is committed together with the fact that the event is handled, or not at all:
/// over crashes and retries its effect in the database is there exactly once. It runs on the thread
/// that writes, in a savepoint, and everybody who publishes waits for it: it should be quick, and do
/// nothing but use the connection, nor wait for a thread that does more. It must not end the transaction, and may be called again for the
/// same attempt, where somebody else's failure has undone what it wrote.
///
/// It publishes by the store's `append_in` on this connection, with what
/// [`caused`](HandlerContext::caused) makes of an event; the bus's own `publish` is an error there, as
/// is whatever else would wait for the store.
pub trait TransactionalHandler<E: DomainEvent, C>: Send + Sync + 'static {
    /// Handles one event. An error undoes what was written, also that of
    /// [`skip`](HandlerError::skip).
    ///
    /// # Errors
    /// As of every handler (F2).
    fn handle(
        &self,
        event: Event<E>,
        conn: &mut C,
        cx: &HandlerContext,
    ) -> Result<(), HandlerError>;
}

/// What becomes of what was written in a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is kept, and the delivery is over.
    All,
    /// It is undone, and the delivery is over all the same.
    Nothing,
    /// It is undone, and the delivery is not over.
    Failed,
}

/// Something to be done in a transaction, with the connection that a store supplies; once more in
/// another one, where the first is not committed.
pub type InTransaction = Box<dyn FnMut(&mut dyn Any) -> Kept + Send>;

/// A delivery to be made in a transaction; for stores.
pub struct TransactionalDelivery {
    /// The event.
    pub position: Position,
    /// The event's aggregate.
    pub aggregate: AggregateRef,
    /// The event's place in the history of that.
    pub version: Version,
    /// The handler's part.
    pub work: InTransaction,
}

/// Deliveries of one subscription, to be made in one transaction; for stores.
pub struct TransactionalDeliveries {
    /// Whose they are.
    pub subscription: SubscriptionId,
    /// How far it has come, as long as none of them is over.
    pub progress: Progress,
    /// Those of each run are made in their order, and none behind one that failed.
    pub runs: Vec<Vec<TransactionalDelivery>>,
}

/// How a delivery ended that was to be made in a transaction, which is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionalEnd {
    /// It is over, and the handler has said what is kept.
    Over,
    /// It was over before: an earlier transaction, of which nobody knew whether it was committed, was.
    OverBefore,
    /// The handler has failed.
    Failed,
    /// The handler, or a fault that it has met, has ended the transaction, which was made again without
    /// it.
    EndedTransaction,
    /// One before it in its run has failed.
    NotMade,
}

/// How deliveries ended that were made in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionalEnds {
    /// One end for each delivery.
    pub runs: Vec<Vec<TransactionalEnd>>,
    /// The last position of the log, with what the handlers have appended.
    pub head: Position,
}

/// Deliveries that were not made in a transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransactionError {
    /// Nothing was committed.
    #[error("the deliveries were not made")]
    NotCommitted(#[source] StoreError),
    /// Nothing was committed, as what a handler has written breaks a constraint that the commit looks at.
    #[error("the deliveries were not made: the commit refused what was written")]
    Refused(#[source] StoreError),
    /// The commit itself failed: the same deliveries again settle it.
    #[error("nobody knows whether the deliveries were made")]
    OutcomeUnknown(#[source] StoreError),
}

impl TransactionError {
    /// The fault of the store.
    pub fn store_error(&self) -> &StoreError {
        match self {
            Self::NotCommitted(error) | Self::Refused(error) | Self::OutcomeUnknown(error) => error,
        }
    }
}

/// What is called when a transaction is committed or failed; as [`AppendDone`](crate::AppendDone).
pub type TransactionDone = Box<dyn FnOnce(Result<TransactionalEnds, TransactionError>) + Send>;

/// The type of the connection that a store supplies, or a handler wants.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionType {
    id: TypeId,
    name: &'static str,
}

impl ConnectionType {
    /// That of `C`.
    pub fn of<C: 'static>() -> Self {
        Self {
            id: TypeId::of::<C>(),
            name: type_name::<C>(),
        }
    }
}

impl PartialEq for ConnectionType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for ConnectionType {}

impl fmt::Display for ConnectionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How a projection begins, before it is given the first event.
pub(crate) type Begin = dyn Fn(&mut dyn Any) -> Result<(), HandlerError> + Send + Sync;

/// A projection to be made known to a store: its version, and how it begins (R7).
#[derive(Clone)]
pub struct ProjectionStart {
    version: u32,
    begin: Arc<Begin>,
}

impl ProjectionStart {
    pub(crate) fn new(version: u32, begin: Arc<Begin>) -> Self {
        Self { version, begin }
    }

    /// The version of its tables.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The same, called by `around`; for buses.
    #[must_use]
    pub fn around(
        self,
        around: impl Fn(&mut dyn FnMut() -> Result<(), HandlerError>) -> Result<(), HandlerError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let Self { version, begin } = self;
        let begin = move |conn: &mut dyn Any| around(&mut || begin(conn));
        Self::new(version, Arc::new(begin))
    }

    /// Makes its tables anew, with the connection that a store supplies. Runs the user's code.
    ///
    /// # Errors
    /// Those of the user's code.
    pub fn begin(&self, conn: &mut dyn Any) -> Result<(), HandlerError> {
        (self.begin)(conn)
    }
}

impl fmt::Debug for ProjectionStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProjectionStart")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TransactionalDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalDelivery")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TransactionalDeliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalDeliveries")
            .field("subscription", &self.subscription)
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

/// The connection as the type that the handler wants.
///
/// # Errors
/// Where a store supplies another, which a bus finds out before it takes the subscription aboard.
pub(crate) fn connection<C: 'static>(conn: &mut dyn Any) -> Result<&mut C, HandlerError> {
    conn.downcast_mut::<C>()
        .ok_or_else(|| HandlerError::permanent("the store has another type of connection"))
}
