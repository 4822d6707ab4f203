//! What a step leaves to be done once the lock is released.

use std::{any::Any, sync::Arc, task::Waker};

use domain_events::DeadLetter;
use tokio::sync::Notify;

use crate::{
    admission::Crossing, followed::Followed, pipeline::PipelineId, record::Record, timers::Due,
};

/// Whom a step has set going, what it has to tell, and what it must not drop itself: wakers are
/// anybody's code, and payloads are the user's.
#[derive(Default)]
#[must_use]
pub(crate) struct After {
    pub(crate) first: Option<Waker>,
    pub(crate) wakers: Vec<Waker>,
    /// Records whose receipts may have been waiting for this.
    pub(crate) told: Vec<Arc<Record>>,
    /// Receipts that waited for an event to be read from the log, which part of theirs it is, and
    /// its record.
    pub(crate) found: Vec<(Arc<Followed>, usize, Arc<Record>)>,
    pub(crate) dropped: Vec<Box<dyn Any>>,
    /// Retries to be set on the clock.
    pub(crate) due: Vec<Due>,
    /// Pipelines that have something to read from the log.
    pub(crate) behind: Vec<Arc<Notify>>,
    /// Pipelines that have become nearly full, or are so no more.
    pub(crate) crossings: Vec<(PipelineId, Crossing)>,
    /// Dead letters that were lost to the bound.
    pub(crate) evicted: Vec<DeadLetter>,
    /// Whether there is something new to save.
    pub(crate) saver: bool,
    /// Whether the bus may have become idle.
    pub(crate) quiet: bool,
}

impl After {
    pub(crate) fn wake(&mut self, waker: Option<Waker>) {
        match (waker, &self.first) {
            (waker, None) => self.first = waker,
            (waker, Some(_)) => self.wakers.extend(waker),
        }
    }

    pub(crate) fn tell(&mut self, record: Arc<Record>) {
        self.told.push(record);
    }

    /// Whether there is more to be done than to wake the first.
    pub(crate) fn has_more(&self) -> bool {
        let Self {
            wakers,
            told,
            found,
            dropped,
            due,
            behind,
            crossings,
            evicted,
            first: _,
            saver: _,
            quiet: _,
        } = self;
        // Of all at once, as this is asked after every step.
        let some = wakers.len() | told.len() | found.len() | dropped.len();
        some | due.len() | behind.len() | crossings.len() | evicted.len() != 0
    }
}
