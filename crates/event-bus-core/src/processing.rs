//! The processing log of a bus: its latest attempts, in memory.

use std::collections::VecDeque;

use domain_events::{ProcessingLog, ProcessingOutcome};

use crate::sync::{Mutex, lock};

/// The latest attempts, up to a bound; the oldest go first.
pub(crate) struct Processing {
    which: ProcessingLog,
    limit: usize,
    kept: Mutex<VecDeque<ProcessingOutcome>>,
}

impl Processing {
    pub(crate) fn new(which: ProcessingLog, limit: usize) -> Self {
        Self {
            which,
            limit,
            kept: Mutex::default(),
        }
    }

    /// Keeps an attempt, if it is one of those that are kept.
    pub(crate) fn keep(&self, is_success: bool, outcome: impl FnOnce() -> ProcessingOutcome) {
        let wanted = match self.which {
            ProcessingLog::Off => false,
            ProcessingLog::Failures => !is_success,
            ProcessingLog::Everything => true,
        };
        if !wanted {
            return;
        }
        let outcome = outcome();
        let mut kept = lock(&self.kept);
        let oldest = (kept.len() == self.limit).then(|| kept.pop_front());
        kept.push_back(outcome);
        drop(kept);
        drop(oldest);
    }

    /// Up to `limit` of them, of one subscription or of all, the latest first.
    pub(crate) fn list(&self, subscription: Option<&str>, limit: usize) -> Vec<ProcessingOutcome> {
        let kept = lock(&self.kept);
        let of =
            |it: &&ProcessingOutcome| subscription.is_none_or(|name| name == &*it.subscription);
        kept.iter().rev().filter(of).take(limit).cloned().collect()
    }
}
