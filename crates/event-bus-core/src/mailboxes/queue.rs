//! The queue of one mailbox.

use std::{collections::VecDeque, sync::Arc};

use domain_events::{Recorded, Urgency};

use crate::{record::Record, subscribed::Subscribed};

/// Events in their order, and how many are of each urgency.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) records: VecDeque<Arc<Record>>,
    pub(super) urgencies: Urgencies,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Urgencies([u32; 3]);

impl Queue {
    /// Whether it holds little memory.
    pub(super) fn is_small(&self) -> bool {
        self.records.capacity() <= 64
    }

    pub(super) fn push(&mut self, record: Arc<Record>) {
        self.urgencies.0[record.urgency as usize] += 1;
        self.records.push_back(record);
    }

    /// The first event that a subscription is still to be given.
    pub(super) fn first_open(&self, subscribed: &Arc<Subscribed>) -> Option<Recorded> {
        let is_open = |record: &&Arc<Record>| {
            let target = record.target(subscribed);
            target.is_some_and(|target| record.is_open(target))
        };
        self.records.iter().find(is_open)?.envelope.recorded()
    }

    pub(super) fn pop(&mut self) -> Option<Arc<Record>> {
        let record = self.records.pop_front()?;
        self.urgencies.less(&record);
        Some(record)
    }
}

impl Urgencies {
    pub(super) fn less(&mut self, record: &Record) {
        self.0[record.urgency as usize] -= 1;
    }

    /// The highest urgency of which there is an event.
    pub(super) fn most(&self) -> Option<Urgency> {
        [Urgency::High, Urgency::Normal, Urgency::Low]
            .into_iter()
            .find(|&urgency| self.0[urgency as usize] > 0)
    }
}
