//! Who comes first: the priority of subscriptions and the urgency of events.

use serde::{Deserialize, Serialize};

/// The rank of a subscription among those of its pipeline: higher ones see an event first (D3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(pub i32);

impl Priority {
    /// Before the others.
    pub const HIGH: Self = Self(100);
    /// The default.
    pub const NORMAL: Self = Self(0);
    /// After the others.
    pub const LOW: Self = Self(-100);
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

/// The rank of an event: it chooses between aggregates, never within one (D5).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    /// What can wait.
    Low,
    /// The default.
    #[default]
    Normal,
    /// What cannot wait.
    High,
}
