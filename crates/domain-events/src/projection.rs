//! Read models in a store's own database: tables that are what the log makes of them (R7).

use std::sync::Arc;

use crate::{EventEnvelope, HandlerContext, HandlerError};

/// A read model: tables in the database of the store, which hold what the events of the log make of
/// them, each event exactly once (R7). `C` is the type of the store's connection.
///
/// It is subscribed by [`Subscription::projection`](crate::Subscription::projection), and from then on
/// follows the log by itself, from the beginning. Where its version is not the one that the store
/// knows, or it is [reset](crate::EventBus::reset), it begins anew: [`begin`](Self::begin) makes its
/// tables, in one transaction with its place in the log, and the events come once more. How far it is
/// behind, the statistics of its pipeline say, and what the store says of subscriptions.
pub trait Projection<C>: Send + Sync + 'static {
    /// The version of the tables, and of what is made of events, from 1: another one than the store
    /// knows makes them be built again.
    const VERSION: u32 = 1;

    /// Makes the tables as they are before the first event, whatever is there: drops and creates them,
    /// or empties them. It runs on the thread that writes, and does nothing but use the connection.
    ///
    /// # Errors
    /// Where that cannot be done; the projection is not taken aboard then.
    fn begin(&self, conn: &mut C) -> Result<(), HandlerError>;

    /// Takes an event into the tables; those that mean nothing to it are passed over by doing nothing.
    ///
    /// The events of an aggregate come in their order. An event that cannot be taken in is a dead letter
    /// in the end, and later ones of its aggregate wait for it, unless the subscription says otherwise.
    ///
    /// # Errors
    /// As of every handler (F2); what was written for this event is undone.
    fn apply(
        &self,
        event: &Arc<EventEnvelope>,
        conn: &mut C,
        cx: &HandlerContext,
    ) -> Result<(), HandlerError>;
}
