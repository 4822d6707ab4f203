//! What governs a subscription's deliveries besides its rank: their order, and what follows a dead
//! letter.

use std::fmt;

/// The order in which a subscription gets its events (D2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// The events of one aggregate come one at a time and in their order; aggregates run side by
    /// side.
    #[default]
    PerAggregate,
    /// All events come one at a time, in one order.
    Total,
    /// Events come in any order, and side by side.
    None,
}

/// What a subscription's later events of an aggregate do once one of it is a dead letter (F5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// They go on.
    #[default]
    Skip,
    /// They wait behind it, in order, until it is replayed or discarded; on a bus without a store also
    /// until it is lost to the bound on dead letters.
    ParkAggregate,
    /// Everything of the subscription waits, until it is resumed.
    PauseSubscription,
}

/// Why a subscription is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseReason {
    /// Somebody asked for it.
    Asked,
    /// A delivery was given up, and its [`FailurePolicy`] pauses it.
    DeadLetter,
    /// An event has a newer schema than this program knows (F7).
    NewerSchema,
}

impl PauseReason {
    /// The reason as stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::DeadLetter => "dead-letter",
            Self::NewerSchema => "newer-schema",
        }
    }

    /// The reason that is stored as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Asked, Self::DeadLetter, Self::NewerSchema]
            .into_iter()
            .find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "somebody asked for it",
            Self::DeadLetter => "one of its deliveries was given up",
            Self::NewerSchema => "an event has a newer schema than this program knows",
        })
    }
}

/// What a subscription with a pipeline of its own asks of it (D4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// How many of its handlers run at once; the bus's number of workers unless set.
    pub workers: Option<usize>,
    /// How many of its events may be in memory at a time; the bus's capacity unless set.
    pub capacity: Option<usize>,
}

impl Isolation {
    /// The most workers that a pipeline has.
    pub const MAX_WORKERS: usize = 10_000;
}

impl fmt::Display for Ordering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for FailurePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
