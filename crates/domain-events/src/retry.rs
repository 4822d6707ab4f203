//! When to try again: a function of values.

use std::time::Duration;

use crate::ConfigError;

/// How often, and after what delays, a failed delivery is attempted again (F3).
///
/// The delay before attempt n + 1 is `min(cap, base · 2^(n−1))`, stretched by a random factor in
/// `[1, 1 + jitter]`. By default there are 4 attempts, base 100 ms, cap 30 s, jitter 0.1, and no
/// limit of age.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    max_attempts: u32,
    base: Duration,
    cap: Duration,
    jitter: f64,
    max_age: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential()
    }
}

impl RetryPolicy {
    /// The default: 4 attempts, 100 ms doubling up to 30 s, a tenth of jitter.
    pub const fn exponential() -> Self {
        Self {
            max_attempts: 4,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(30),
            jitter: 0.1,
            max_age: None,
        }
    }

    /// One attempt only.
    pub const fn never() -> Self {
        Self {
            max_attempts: 1,
            ..Self::exponential()
        }
    }

    /// Limits the number of attempts, the first one counted.
    #[must_use]
    pub const fn max_attempts(self, max_attempts: u32) -> Self {
        Self {
            max_attempts,
            ..self
        }
    }

    /// Sets the delay after the first attempt.
    #[must_use]
    pub const fn base(self, base: Duration) -> Self {
        Self { base, ..self }
    }

    /// Sets the longest delay, before jitter.
    #[must_use]
    pub const fn cap(self, cap: Duration) -> Self {
        Self { cap, ..self }
    }

    /// Sets by how much of itself a delay may be stretched.
    #[must_use]
    pub const fn jitter(self, jitter: f64) -> Self {
        Self { jitter, ..self }
    }

    /// Limits the age: no attempt is made later than this after the first one.
    #[must_use]
    pub const fn max_age(self, max_age: Duration) -> Self {
        Self {
            max_age: Some(max_age),
            ..self
        }
    }

    /// Checks that the policy can work.
    ///
    /// # Errors
    /// For no attempts, a base above the cap, or a jitter that is negative or not a number.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.max_attempts == 0 {
            return Err(ConfigError::new("retry.max_attempts", 0, "1 or more"));
        }
        if self.base > self.cap {
            let allowed = format!("at most the cap, {:?}", self.cap);
            return Err(ConfigError::new(
                "retry.base",
                format!("{:?}", self.base),
                allowed,
            ));
        }
        if !(self.jitter >= 0.0 && self.jitter.is_finite()) {
            return Err(ConfigError::new("retry.jitter", self.jitter, "0 or more"));
        }
        Ok(())
    }

    /// The delay before the attempt that follows attempt `attempt` (from 1), which ended `age`
    /// after the first one began; `None` where there is to be none.
    ///
    /// `random` is a number in `[0, 1)`.
    pub fn delay_after(&self, attempt: u32, age: Duration, random: f64) -> Option<Duration> {
        let doublings = attempt.saturating_sub(1);
        let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
        let delay = self.base.saturating_mul(factor).min(self.cap);
        let stretch = self.jitter * random * delay.as_secs_f64();
        let stretched =
            delay.saturating_add(Duration::try_from_secs_f64(stretch).unwrap_or(Duration::MAX));
        self.allows(attempt, age, stretched).then_some(stretched)
    }

    /// Whether another attempt may follow attempt `attempt` after `delay`.
    pub fn allows(&self, attempt: u32, age: Duration, delay: Duration) -> bool {
        attempt < self.max_attempts
            && self
                .max_age
                .is_none_or(|limit| age.saturating_add(delay) <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn f3_delays_double_up_to_the_cap() {
        let policy = RetryPolicy::exponential().max_attempts(u32::MAX);
        let millis = |attempt| policy.delay_after(attempt, NONE, 0.0).unwrap().as_millis();
        assert_eq!([1, 2, 3, 4].map(millis), [100, 200, 400, 800]);
        assert_eq!(
            [9, 10, 33, 1_000_000].map(millis),
            [25_600, 30_000, 30_000, 30_000]
        );
    }

    #[test]
    fn f3_jitter_only_stretches() {
        let policy = RetryPolicy::exponential();
        assert_eq!(
            policy.delay_after(1, NONE, 0.5),
            Some(Duration::from_millis(105))
        );
        assert!(policy.delay_after(1, NONE, 0.999_999).unwrap() <= Duration::from_millis(110));
    }

    #[test]
    fn f3_attempts_and_age_are_limits() {
        let policy = RetryPolicy::exponential().max_age(Duration::from_secs(1));
        assert!(policy.delay_after(3, NONE, 0.0).is_some());
        assert_eq!(policy.delay_after(4, NONE, 0.0), None);
        assert!(
            policy
                .delay_after(1, Duration::from_millis(900), 0.0)
                .is_some()
        );
        assert_eq!(policy.delay_after(1, Duration::from_millis(901), 0.0), None);
        assert_eq!(RetryPolicy::never().delay_after(1, NONE, 0.0), None);
    }

    #[test]
    fn policies_that_cannot_work_are_refused() {
        let field = |policy: RetryPolicy| policy.check().unwrap_err().field;
        assert_eq!(
            field(RetryPolicy::exponential().max_attempts(0)),
            "retry.max_attempts"
        );
        assert_eq!(
            field(RetryPolicy::exponential().jitter(-0.1)),
            "retry.jitter"
        );
        assert_eq!(
            field(RetryPolicy::exponential().jitter(f64::NAN)),
            "retry.jitter"
        );
        assert_eq!(
            field(RetryPolicy::exponential().base(Duration::MAX)),
            "retry.base"
        );
        RetryPolicy::default().check().unwrap();
    }

    #[test]
    fn no_policy_overflows() {
        let policy = RetryPolicy::exponential()
            .cap(Duration::MAX)
            .base(Duration::MAX)
            .jitter(f64::MAX);
        assert_eq!(policy.delay_after(2, NONE, 1.0), Some(Duration::MAX));
    }
}
