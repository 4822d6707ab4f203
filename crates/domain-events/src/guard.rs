//! A subscription that lives as long as a value.

use std::fmt;

/// Removes its subscription when dropped, without waiting for a running attempt (L4).
///
/// It removes the subscription it was given for and no other, also where another one has the name
/// by then. Made by [`EventBus::subscribe_guarded`](crate::EventBus::subscribe_guarded).
#[must_use = "a guard that is dropped removes its subscription"]
pub struct SubscriptionGuard(Option<Box<dyn FnOnce() + Send + Sync>>);

impl SubscriptionGuard {
    /// A guard that calls `remove` when dropped; for buses.
    pub fn new(remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(remove)))
    }

    /// Leaves the subscription where it is: nothing removes it when a value is dropped.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for SubscriptionGuard {
    fn drop(&mut self) {
        if let Some(remove) = self.0.take() {
            remove();
        }
    }
}

impl fmt::Debug for SubscriptionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubscriptionGuard")
    }
}
