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
    /// For each of the events that had their round, whether no delivery holds it any more.
    pub(crate) finished: Vec<bool>,
    /// How many of those are out of the mailbox already.
    pub(crate) settled: usize,
}

impl Run {
    /// How many of the events had their round.
    pub(crate) fn done(&self) -> usize {
        self.finished.len()
    }

    /// Whether the first target is passed over.
    pub(crate) fn is_passed_over(&self) -> bool {
        self.passed_over.contains(&0)
    }

    /// How many events its first target is to have.
    pub(crate) fn wanted(&self) -> usize {
        if self.is_passed_over() {
            0
        } else {
            self.records.len()
        }
    }

    /// Empties it for the next events.
    pub(crate) fn spend(&mut self) {
        self.settled = 0;
        self.finished.clear();
        self.paid.clear();
        self.passed_over.clear();
        std::mem::swap(&mut self.records, &mut self.spent);
    }

    /// The events of the last run, to be dropped without the lock.
    pub(crate) fn spent(&mut self) -> impl Iterator<Item = Arc<Record>> {
        self.spent.drain(..)
    }
}
