//! The processing log of a bus: its latest attempts, in memory; durable, those that go to the store next.

use std::collections::VecDeque;

use domain_events::{DeliveryChange, ProcessingLog, ProcessingOutcome};

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

    /// Takes out all there are, to be stored; and how many of them all the log is to keep.
    pub(crate) fn take(&self) -> Option<DeliveryChange> {
        let attempts: Vec<_> = std::mem::take(&mut *lock(&self.kept)).into();
        let keep = self.limit;
        (!attempts.is_empty()).then_some(DeliveryChange::Processed { attempts, keep })
    }

    /// Puts back what was not stored, before what has come since; the oldest go where that is too much.
    pub(crate) fn put_back(&self, attempts: Vec<ProcessingOutcome>) {
        let mut kept = lock(&self.kept);
        let room = self.limit.saturating_sub(kept.len());
        let latest = attempts.into_iter().rev().take(room);
        latest.for_each(|attempt| kept.push_front(attempt));
    }

    /// Up to `limit` of them, of one subscription or of all, the latest first.
    pub(crate) fn list(&self, subscription: Option<&str>, limit: usize) -> Vec<ProcessingOutcome> {
        let kept = lock(&self.kept);
        let of =
            |it: &&ProcessingOutcome| subscription.is_none_or(|name| name == &*it.subscription);
        kept.iter().rev().filter(of).take(limit).cloned().collect()
    }
}
