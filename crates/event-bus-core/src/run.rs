//! Events of one aggregate that a worker has taken.

use std::sync::Arc;

use domain_events::Urgency;

use crate::{mailboxes::MailboxId, record::Record};

/// Events of one aggregate that a worker has taken, in their order.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) mailbox: MailboxId,
    pub(crate) records: Vec<Arc<Record>>,
    spent: Vec<Arc<Record>>,
    /// The lanes that paid for the events after the first.
    pub(crate) paid: Vec<Urgency>,
    /// The targets that are blocked on the aggregate and passed over; the run is one event then.
    pub(crate) passed_over: Vec<usize>,
    /// How many of the events had their round.
    pub(crate) done: usize,
    /// How many of those are out of the mailbox already.
    pub(crate) settled: usize,
    /// Which of them no delivery holds any more, one bit each.
    pub(crate) finished: u32,
}

impl Run {
    /// Empties it for the next events.
    pub(crate) fn spend(&mut self) {
        (self.done, self.settled, self.finished) = (0, 0, 0);
        self.paid.clear();
        self.passed_over.clear();
        std::mem::swap(&mut self.records, &mut self.spent);
    }

    /// The events of the last run, to be dropped without the lock.
    pub(crate) fn spent(&mut self) -> impl Iterator<Item = Arc<Record>> {
        self.spent.drain(..)
    }
}
