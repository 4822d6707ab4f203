//! Looking on while a store in memory works.

use domain_events::{
    Appended, DeliveryChange, EventQuery, Position, Pruned, Registration, RunState,
    SubscriptionState,
};

use super::{MemoryStore, State, lock};

/// What a store has just done, whether or not it is ever answered.
#[derive(Debug)]
#[non_exhaustive]
pub enum Done<'a> {
    /// Events were appended.
    Appended(&'a [Appended]),
    /// Events of these were read, after a position.
    Read(&'a EventQuery, Position),
    /// A run was begun.
    RunBegun(&'a [Registration], &'a RunState),
    /// A subscription was made known, or was known.
    Registered(&'a Registration, &'a SubscriptionState),
    /// Changes were made.
    Changed(&'a [DeliveryChange]),
    /// The log was pruned.
    Pruned(Pruned),
}

/// Who looks on.
pub(super) type Watch = Box<dyn Fn(&Done<'_>) + Send>;

impl MemoryStore {
    /// Has somebody told of all that is done, in its order; it must not call the store.
    #[must_use]
    pub fn watched(self, by: impl Fn(&Done<'_>) + Send + 'static) -> Self {
        lock(&self.shared).watch = Some(Box::new(by));
        self
    }
}

impl State {
    pub(super) fn tell(&self, done: &Done<'_>) {
        if let Some(watch) = &self.watch {
            watch(done);
        }
    }
}
