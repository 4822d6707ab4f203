//! The knobs of a bus.

use std::time::Duration;

use domain_events::{ConfigError, ProcessingLog};

/// The knobs of a bus; `..BusConfig::default()` for those that may stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusConfig {
    /// How many events the default pipeline holds in memory (P4), and every other one that says
    /// nothing else; 10,000 unless set.
    pub capacity: usize,
    /// How many handlers of the default pipeline run at once (D6), and of every other one that says
    /// nothing else; 8 unless set.
    pub workers: usize,
    /// How long a success may go unsaved (R2); 50 ms unless set.
    pub progress_interval: Duration,
    /// How often to look whether somebody else has appended to the log, as another process (P7); `None`,
    /// the default, for never: then the bus is to be told
    /// ([`wake`](domain_events::EventBus::wake)), or finds it with its next own event.
    pub watch: Option<Duration>,
    /// How many dead letters a bus without a store keeps; the oldest go first. 10,000 unless set.
    pub dead_letters: usize,
    /// Which attempts the processing log keeps; failures unless set.
    pub processing_log: ProcessingLog,
    /// How many attempts the processing log keeps; the oldest go first. 1,000 unless set.
    pub processing_log_entries: usize,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            workers: 8,
            progress_interval: Duration::from_millis(50),
            watch: None,
            dead_letters: 10_000,
            processing_log: ProcessingLog::default(),
            processing_log_entries: 1_000,
        }
    }
}

impl BusConfig {
    /// The largest capacity: handlers may take as much again, which is to be countable.
    const MAX_CAPACITY: usize = usize::MAX / 2;

    /// The longest time that a success may go unsaved.
    const MAX_PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

    /// The shortest time between two looks at the log.
    const MIN_WATCH: Duration = Duration::from_millis(1);

    /// Checks that the configuration can work.
    ///
    /// # Errors
    /// Names the field, its value, and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("capacity", self.capacity, Self::MAX_CAPACITY),
            ("workers", self.workers, 10_000),
            ("dead_letters", self.dead_letters, usize::MAX),
            (
                "processing_log_entries",
                self.processing_log_entries,
                usize::MAX,
            ),
        ];
        if self.progress_interval > Self::MAX_PROGRESS_INTERVAL {
            let value = format!("{:?}", self.progress_interval);
            return Err(ConfigError::new("progress_interval", value, "at most 60 s"));
        }
        if let Some(watch) = self.watch.filter(|it| *it < Self::MIN_WATCH) {
            let value = format!("{watch:?}");
            return Err(ConfigError::new("watch", value, "at least 1 ms, or none"));
        }
        for (field, value, most) in counts {
            if !(1..=most).contains(&value) {
                return Err(ConfigError::new(field, value, format!("1 to {most}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_that_cannot_work_is_refused_by_field_and_value() {
        let refused = |config: BusConfig| config.check().unwrap_err().to_string();
        let config = BusConfig {
            workers: 0,
            ..BusConfig::default()
        };
        assert_eq!(
            refused(config),
            "workers was not accepted: 0, allowed is 1 to 10000"
        );
        let config = BusConfig {
            capacity: 0,
            ..BusConfig::default()
        };
        assert!(refused(config).starts_with("capacity was not accepted: 0"));
        let config = BusConfig {
            capacity: usize::MAX,
            ..BusConfig::default()
        };
        assert!(refused(config).starts_with("capacity was not accepted"));
        let config = BusConfig {
            watch: Some(Duration::ZERO),
            ..BusConfig::default()
        };
        assert!(refused(config).starts_with("watch was not accepted: 0ns"));
        BusConfig::default().check().unwrap();
    }
}
