//! What a publisher holds after publishing: where the event is, and how it fared.

use std::{fmt, sync::Arc};

use crate::{BoxFuture, EventId, Recorded, WaitError};

/// What became of an event's delivery to one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// Handled.
    Handled,
    /// Not needed, as its handler said.
    Skipped,
    /// Given up and kept as a dead letter.
    Dead,
    /// Not finished when the bus stopped, or its subscription was removed.
    Stopped,
    /// Waiting behind a dead letter of its aggregate, until that is replayed or discarded (F5). It
    /// has another outcome later.
    Parked,
    /// Waiting until its subscription is resumed. It has another outcome later.
    Paused,
}

/// What became of an event: the outcome for each subscription that wanted it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Subscription names and outcomes, by pipeline and priority. Who went before the event was read
    /// from the log is not among them.
    pub outcomes: Vec<(Arc<str>, DeliveryOutcome)>,
}

impl Handled {
    /// Whether every subscription handled or skipped the event.
    pub fn is_success(&self) -> bool {
        use DeliveryOutcome::{Handled, Skipped};
        self.outcomes
            .iter()
            .all(|(_, outcome)| matches!(outcome, Handled | Skipped))
    }
}

/// The record that an event and its receipt share; implemented by buses.
pub trait Handling: Send + Sync {
    /// Resolves when every subscription has an outcome.
    fn handled(self: Arc<Self>) -> BoxFuture<'static, Result<Handled, WaitError>>;
}

/// Proof that an event was accepted (P2).
pub struct Receipt {
    event_id: EventId,
    recorded: Option<Recorded>,
    already_there: bool,
    handling: Arc<dyn Handling>,
}

impl Receipt {
    /// The receipt of an accepted event; made by buses.
    pub fn new(
        event_id: EventId,
        recorded: Option<Recorded>,
        already_there: bool,
        handling: Arc<dyn Handling>,
    ) -> Self {
        Self {
            event_id,
            recorded,
            already_there,
            handling,
        }
    }

    /// The event's id.
    pub fn event_id(&self) -> EventId {
        self.event_id
    }

    /// Where the log has the event; `None` on a volatile bus.
    pub fn recorded(&self) -> Option<Recorded> {
        self.recorded
    }

    /// Whether the log had the same event before, so that it was not appended again (P6). It knows those
    /// that it keeps (R8).
    pub fn was_already_there(&self) -> bool {
        self.already_there
    }

    /// Waits until every subscription has an outcome for the event; may be asked late, and again
    /// where a delivery was parked or paused.
    ///
    /// # Errors
    /// [`WaitError::InsideHandler`] from inside a handler, which it would wait for (L4), and
    /// [`WaitError::NotFollowed`] for an event that was in the log before, whose deliveries this
    /// receipt cannot follow.
    ///
    /// # Cancellation
    /// Dropping the future changes nothing.
    pub async fn handled(&self) -> Result<Handled, WaitError> {
        if self.already_there {
            return Err(WaitError::NotFollowed);
        }
        Arc::clone(&self.handling).handled().await
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("event_id", &self.event_id)
            .field("recorded", &self.recorded)
            .field("already_there", &self.already_there)
            .finish_non_exhaustive()
    }
}
