//! When to leave a failing handler alone: values.

use std::time::Duration;

use crate::ConfigError;

/// After how many failures in a row a subscription is *tripped*, and for how long (F8).
///
/// A tripped subscription is given nothing until `pause` is over, and then one delivery at a time, as
/// a probe. One that is handled closes the breaker: everything goes on, in order. One that fails keeps
/// it tripped for another `pause`, and does not count as an attempt.
///
/// `skip` speaks for the handler as handling does: failures before it and after it are not in a row,
/// and a probe that is skipped closes the breaker. `permanent` speaks of the event alone: it neither
/// counts as a failure nor comes between two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    failures: u32,
    pause: Duration,
}

impl CircuitBreaker {
    /// Trips after `failures` in a row, of whatever aggregates, for `pause` at a time.
    pub const fn new(failures: u32, pause: Duration) -> Self {
        Self { failures, pause }
    }

    /// How many failures in a row trip it.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// How long a tripped subscription is left alone.
    pub const fn pause(&self) -> Duration {
        self.pause
    }

    /// Checks that the breaker can work.
    ///
    /// # Errors
    /// For no failures, or no pause.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.failures == 0 {
            return Err(ConfigError::new("breaker.failures", 0, "1 or more"));
        }
        if self.pause.is_zero() {
            return Err(ConfigError::new("breaker.pause", "0 s", "more than 0"));
        }
        Ok(())
    }
}
