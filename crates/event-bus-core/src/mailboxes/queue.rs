//! The queue of one mailbox.

use std::{collections::VecDeque, sync::Arc};

use domain_events::Urgency;

use crate::record::Record;

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
