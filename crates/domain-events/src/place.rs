//! Where an event stands: in the whole log, and in its aggregate's history.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

macro_rules! counted_from_one {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The place before the first.
            pub const ZERO: Self = Self(0);

            /// The first place.
            pub const FIRST: Self = Self(1);

            /// The place with this number.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The number of this place.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The place that follows.
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The place before; the place before zero is zero.
            pub const fn previous(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counted_from_one! {
    /// A place in the whole log, from 1, without gaps; 0 is "before everything".
    Position
}

counted_from_one! {
    /// A place in an aggregate's history, from 1, without gaps; 0 is "no history".
    Version
}

/// What the log says of an event once it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The place in the whole log.
    pub position: Position,
    /// The place in the aggregate's history.
    pub version: Version,
    /// When the event was appended.
    pub at: Timestamp,
}

/// What an append requires of its aggregate's history (P6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Nothing.
    #[default]
    Any,
    /// That it is empty.
    NoStream,
    /// That it is not empty.
    Exists,
    /// That its last event has this version.
    Exact(Version),
}

impl ExpectedVersion {
    /// Whether a history whose last version is `actual` (zero for none) is what was expected.
    pub fn allows(self, actual: Version) -> bool {
        match self {
            Self::Any => true,
            Self::NoStream => actual == Version::ZERO,
            Self::Exists => actual != Version::ZERO,
            Self::Exact(version) => actual == version,
        }
    }
}
