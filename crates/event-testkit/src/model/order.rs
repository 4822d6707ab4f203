//! What is known of the order in which calls to publish were accepted (P3).
//!
//! A batch is consecutive, so a call is one place in the order however many events it has.

use super::program::MOST_EVENTS;

/// A partial order of calls, closed under "before and before".
#[derive(Default)]
pub(super) struct Order {
    /// For each call, a bit for every call that comes after it.
    after: Vec<u128>,
}

const _: () = assert!(MOST_EVENTS <= u128::BITS as usize, "a call is a bit");

impl Order {
    /// Adds a call of which nothing is known.
    pub(super) fn add_call(&mut self) {
        self.after.push(0);
    }

    /// Whether `first` is known to come before `second`.
    pub(super) fn knows(&self, first: usize, second: usize) -> bool {
        self.after[first] >> second & 1 == 1
    }

    /// Learns that `first` comes before `second`. Returns whether that can be.
    pub(super) fn learn(&mut self, first: usize, second: usize) -> bool {
        if first == second || self.knows(second, first) {
            return false;
        }
        let news = self.after[second] | 1 << second;
        for call in 0..self.after.len() {
            if call == first || self.knows(call, first) {
                self.after[call] |= news;
            }
        }
        true
    }
}
