//! How much of a log is kept (R8).

use crate::{Position, StartFrom, StoreError, StoreErrorKind, Timestamp};

/// Which events a log keeps at least; those before them may be pruned once every subscription that
/// the store knows has finished them (R8).
///
/// What is pruned is known no more: the history of an aggregate begins later (its first version is then
/// not 1, and a state is to be folded from a snapshot of one's own), and an event with the id of one
/// that was pruned is a new one (P6). So a dead letter that is replayed publishes again what it had
/// published before, where that was pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// So many of the latest.
    Latest(u64),
    /// Those recorded at this time or later.
    Since(Timestamp),
    /// Those after this position.
    After(Position),
}

/// What became of a log that was pruned (R8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many events were removed; those among them that an earlier pruning had kept, for dead letters
    /// that were settled since.
    pub events: u64,
    /// The log is kept after this position.
    pub through: Position,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{subscription:?} was to begin after position {wanted}: it can begin after {kept}, from where the log is kept, or later"
)]
struct BeginsInPruned {
    subscription: Box<str>,
    wanted: Position,
    kept: Position,
}

impl StartFrom {
    /// The last position that a subscription which starts here is not to have, in a log that was pruned
    /// through a position and ends with `head`.
    ///
    /// # Errors
    /// [`Pruned`](StoreErrorKind::Pruned) where events that it is to have were pruned (R8).
    pub fn place(
        self,
        subscription: &str,
        head: Position,
        pruned_through: Position,
    ) -> Result<Position, StoreError> {
        let wanted = match self {
            Self::Now => head,
            Self::Beginning => Position::ZERO,
            Self::After(position) => position,
        };
        if wanted >= pruned_through {
            return Ok(wanted);
        }
        let kind = StoreErrorKind::Pruned(pruned_through);
        let cause = BeginsInPruned {
            subscription: subscription.into(),
            wanted,
            kept: pruned_through,
        };
        Err(StoreError::new(kind, "the subscription was not given its place").caused_by(cause))
    }
}
