//! What became of each attempt, as a processing log keeps it.

use std::{sync::Arc, time::Duration};

use crate::{EventId, Position, Timestamp};

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessingOutcome {
    /// The name of the subscription.
    pub subscription: Arc<str>,
    /// The event's id.
    pub event_id: EventId,
    /// The event's place in the log; `None` on a volatile bus.
    pub position: Option<Position>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// How the attempt ended.
    pub result: AttemptResult,
    /// When it ended.
    pub ended_at: Timestamp,
    /// How long it took.
    pub took: Duration,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttemptResult {
    /// The event was handled.
    Handled,
    /// The handler, for this reason, or the filter needed nothing done.
    Skipped(Option<String>),
    /// It failed, for this reason; at most 4 KiB.
    Failed(String),
    /// The event could not be read, for this reason.
    Unreadable(String),
}

impl AttemptResult {
    /// The result as stored: what it is, and the text that goes with it.
    pub fn to_stored(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Handled => ("handled", None),
            Self::Skipped(reason) => ("skipped", reason.as_deref()),
            Self::Failed(error) => ("failed", Some(error)),
            Self::Unreadable(error) => ("unreadable", Some(error)),
        }
    }

    /// The result that is stored so.
    pub fn from_stored(result: &str, note: Option<String>) -> Option<Self> {
        match result {
            "handled" => Some(Self::Handled),
            "skipped" => Some(Self::Skipped(note)),
            "failed" => Some(Self::Failed(note.unwrap_or_default())),
            "unreadable" => Some(Self::Unreadable(note.unwrap_or_default())),
            _ => None,
        }
    }

    /// Whether nothing more is to be done for the delivery.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Handled | Self::Skipped(_))
    }
}

/// Which attempts a processing log keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProcessingLog {
    /// None.
    Off,
    /// Those that did not succeed.
    #[default]
    Failures,
    /// All; each costs time and memory.
    Everything,
}
