//! What was observed of a run, in one order.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use domain_events::{BusStatistics, CorrelationId, DeliveryOutcome, EventId, StopReport};
use tokio::time::Instant;

use super::program::{How, Raised};

/// One observation.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When, from the beginning of the run.
    pub at: Duration,
    /// What.
    pub what: Observed,
}

/// What was observed. Calls have numbers, one for the beginning and the end of a call; events have
/// numbers in the order in which their publishing began, subscriptions those of the program.
#[derive(Clone, Debug)]
pub enum Observed {
    /// A publish began.
    Publishing {
        /// The call.
        call: usize,
        /// The way.
        how: How,
        /// The number of the first event; the others follow.
        first: usize,
        /// The events.
        events: Vec<Raised>,
        /// The subscription and the event whose attempt publishes.
        inside: Option<(usize, usize)>,
    },
    /// A publish was answered.
    Published(usize, Answer),
    /// A handler was called.
    AttemptBegan {
        /// The subscription.
        subscription: usize,
        /// The event.
        event: usize,
        /// The number of the attempt.
        attempt: u32,
        /// Whether the context calls it a replay.
        is_replay: bool,
        /// What the envelope says.
        told: Told,
    },
    /// A handler ended.
    AttemptEnded(usize, usize, Ended),
    /// `subscribe` was called.
    Subscribing(usize),
    /// `subscribe` returned, and whether it did subscribe.
    Subscribed(usize, bool),
    /// `unsubscribe` was called.
    Unsubscribing(usize),
    /// `unsubscribe` returned.
    Unsubscribed(usize, bool),
    /// `pause` was called: call and subscription.
    Pausing(usize, usize),
    /// `pause` returned.
    Paused(usize, usize, bool),
    /// `resume` was called: call and subscription.
    Resuming(usize, usize),
    /// `resume` returned.
    Resumed(usize, usize, bool),
    /// The dead letters of a subscription were listed.
    Letters(usize, Vec<usize>),
    /// `replay` was called: call, subscription, event.
    Replaying(usize, usize, usize),
    /// `replay` returned, and whether it will replay.
    Replayed(usize, bool),
    /// `discard` was called: call, subscription, event.
    Discarding(usize, usize, usize),
    /// `discard` returned, and whether it did discard.
    Discarded(usize, bool),
    /// `wait_idle` was called.
    WaitingIdle(usize),
    /// `wait_idle` returned.
    Idle(usize),
    /// A receipt was asked: call and event.
    Asking(usize, usize),
    /// A receipt told its outcomes.
    Outcomes(usize, Vec<(usize, DeliveryOutcome)>),
    /// `stop` was called.
    Stopping,
    /// `stop` returned.
    Stopped(StopReport),
    /// The figures after all clients have finished and the bus was waited for.
    Quiet(Box<BusStatistics>),
    /// Something never came.
    Stuck(&'static str),
}

/// How a publish was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With receipts of events with these ids.
    Accepted(Vec<EventId>),
    /// With so many events given back, as there was no room.
    Full(usize),
    /// The batch can never fit.
    TooLarge,
    /// The bus is stopped.
    Stopped,
    /// Not at all: the call was dropped.
    Dropped,
    /// With another error.
    Failed(String),
}

/// What an envelope says of its place in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The event's id.
    pub id: EventId,
    /// The id of the event that it follows from.
    pub causation: Option<EventId>,
    /// What the chain has in common.
    pub correlation: CorrelationId,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It handled the event.
    Handled,
    /// It did not need the event.
    Skipped,
    /// It failed, or panicked.
    Failed,
    /// It failed for good.
    FailedForGood,
    /// It failed, and asked for another attempt after so many units of time.
    RetryAfter(u32),
    /// It was dropped while it ran.
    Dropped,
}

/// Where a run is written down.
pub(super) struct Recorder {
    begun: Instant,
    entries: Mutex<Vec<Entry>>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            entries: Mutex::default(),
        }
    }

    pub(super) fn note(&self, what: Observed) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.begun.elapsed();
        entries.push(Entry { at, what });
    }

    pub(super) fn take(&self) -> Vec<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *entries)
    }
}
