//! What a subscription cannot be asked for, said before anything runs.

use super::Subscription;
use crate::{
    BatchPolicy, ConfigError, EventRegistry, FailurePolicy, Isolation, Ordering, RegistryError,
    config::check_name,
};

impl Subscription {
    /// Checks that the subscription can work, and makes its event type known to `registry`.
    ///
    /// # Errors
    /// For a name, time-out or retry policy that cannot work, and for an event type name that
    /// another type has.
    pub fn check(&self, registry: &mut EventRegistry) -> Result<(), RegistryError> {
        check_name("subscription.name", &self.name)?;
        for former in &self.former_names {
            check_name("subscription.formerly", former)?;
            if *former == self.name {
                let allowed = "another name than the present one";
                return Err(ConfigError::new("subscription.formerly", former, allowed).into());
            }
        }
        self.retry.check()?;
        if self.timeout.is_zero() {
            return Err(ConfigError::new("subscription.timeout", "0 s", "more than 0").into());
        }
        if self.projection.as_ref().is_some_and(|it| it.version() == 0) {
            return Err(ConfigError::new("projection.VERSION", 0, "1 or more").into());
        }
        self.check_policies()?;
        self.check_batch()?;
        if let Some(breaker) = self.breaker {
            breaker.check()?;
        }
        (self.register)(registry)
    }

    fn check_batch(&self) -> Result<(), ConfigError> {
        let Some(BatchPolicy { size, linger }) = self.batch() else {
            return match self.linger {
                Some(linger) => Err(ConfigError::new(
                    "subscription.linger",
                    format!("{linger:?}"),
                    "nothing, as the handler takes one event at a time",
                )),
                None => Ok(()),
            };
        };
        if !(1..=BatchPolicy::MAX_SIZE).contains(&size) {
            let allowed = format!("1 to {}", BatchPolicy::MAX_SIZE);
            return Err(ConfigError::new("subscription.size", size, allowed));
        }
        if linger > BatchPolicy::MAX_LINGER {
            let (value, allowed) = (format!("{linger:?}"), BatchPolicy::MAX_LINGER);
            let allowed = format!("at most {allowed:?}");
            return Err(ConfigError::new("subscription.linger", value, allowed));
        }
        Ok(())
    }

    fn check_policies(&self) -> Result<(), ConfigError> {
        let parks = self.failure_policy == FailurePolicy::ParkAggregate;
        if parks && self.ordering != Ordering::PerAggregate {
            let allowed = "Skip or PauseSubscription, as the ordering is not per aggregate";
            let value = self.failure_policy;
            return Err(ConfigError::new(
                "subscription.failure_policy",
                value,
                allowed,
            ));
        }
        if let Some(filtered) = self.filtered_type
            && self.event_type != Some(filtered)
        {
            let wanted = self.event_type.unwrap_or("any type, by filter_envelope");
            return Err(ConfigError::new("subscription.filter", filtered, wanted));
        }
        let Isolation { workers, capacity } = self.isolation.unwrap_or_default();
        let only_one = match self.ordering {
            _ if self.connection.is_some() => Some("1, as the store has one thread that writes"),
            Ordering::Total => Some("1, as the ordering is total"),
            _ => None,
        };
        let most = only_one.map_or(Isolation::MAX_WORKERS, |_| 1);
        if let Some(workers) = workers
            && !(1..=most).contains(&workers)
        {
            let allowed = only_one.map_or_else(|| format!("1 to {most}"), str::to_owned);
            return Err(ConfigError::new("subscription.workers", workers, allowed));
        }
        if capacity == Some(0) {
            return Err(ConfigError::new("subscription.capacity", 0, "1 or more"));
        }
        Ok(())
    }
}
