//! Whether a bus is well, and if not, why: a function of its figures (N3).

use std::{fmt, sync::Arc, time::Duration};

use crate::{BusStatistics, PauseReason, PipelineStatistics, StoreTrouble, SubscriptionStatistics};

/// Whether a bus is well.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// It runs, and nothing speaks against it.
    Healthy,
    /// It runs, but not as it should: at least one reason.
    Degraded(Vec<HealthReason>),
    /// It does not run.
    Stopped,
}

/// Why a bus is not well.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HealthReason {
    /// The queue of a pipeline is nearly full: its handlers do not keep up.
    NearlyFull {
        /// The pipeline's name.
        pipeline: Arc<str>,
        /// How many places are taken.
        taken: usize,
        /// Of how many.
        capacity: usize,
    },
    /// A subscription is paused, and waits to be resumed.
    Paused {
        /// Its name.
        subscription: Arc<str>,
        /// Why it is paused.
        why: PauseReason,
    },
    /// Deliveries of a subscription wait behind dead letters, for a person.
    Blocked {
        /// Its name.
        subscription: Arc<str>,
        /// How many deliveries wait.
        deliveries: u64,
    },
    /// The circuit breaker of a subscription has tripped.
    Tripped {
        /// Its name.
        subscription: Arc<str>,
    },
    /// Blocking handlers of a subscription have run past their time-out and do not return.
    Stuck {
        /// Its name.
        subscription: Arc<str>,
        /// How many handlers.
        handlers: u64,
    },
    /// A subscription has not finished an event that was accepted long ago.
    Lagging {
        /// Its name.
        subscription: Arc<str>,
        /// How many events it has not finished.
        events: u64,
        /// How long ago the oldest of them was accepted.
        age: Duration,
    },
    /// Deliveries of a subscription were given up of late.
    DeadLetters {
        /// Its name.
        subscription: Arc<str>,
        /// How many were given up in this run, and neither replayed nor discarded.
        dead: u64,
        /// How long ago the last one was.
        last: Duration,
    },
    /// The store is at fault, be it that its disk is full: progress is not saved, or the log not read.
    Store(StoreTrouble),
    /// The write-ahead log of the store has grown: a reader keeps it from being used again.
    WriteAheadLog {
        /// How many bytes it takes.
        bytes: u64,
    },
}

/// From when on a figure speaks against a bus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HealthLimits {
    /// The part of a queue that may be taken; 0.8 unless set.
    pub utilization: f64,
    /// How long a subscription may take to finish an event; a minute unless set.
    pub lag: Duration,
    /// For how long a dead letter is told of; ten minutes unless set.
    pub dead_letters: Duration,
    /// How many bytes the write-ahead log of a store may take; 256 MiB unless set.
    pub write_ahead_log: u64,
}

impl Default for HealthLimits {
    fn default() -> Self {
        Self {
            utilization: 0.8,
            lag: Duration::from_secs(60),
            dead_letters: Duration::from_secs(600),
            write_ahead_log: 256 * 1024 * 1024,
        }
    }
}

impl Health {
    /// The same, with what is said of the store whose write-ahead log takes so many bytes.
    #[must_use]
    pub fn with_write_ahead_log(self, bytes: u64, limits: &HealthLimits) -> Self {
        if bytes <= limits.write_ahead_log {
            return self;
        }
        let reason = HealthReason::WriteAheadLog { bytes };
        match self {
            Self::Healthy => Self::Degraded(vec![reason]),
            Self::Degraded(mut reasons) => {
                reasons.push(reason);
                Self::Degraded(reasons)
            }
            Self::Stopped => Self::Stopped,
        }
    }
}

impl BusStatistics {
    /// What these figures say of the bus.
    pub fn health(&self, limits: &HealthLimits) -> Health {
        if !self.running {
            return Health::Stopped;
        }
        let pipelines = self
            .pipelines
            .iter()
            .filter_map(|it| it.nearly_full(limits));
        let subscriptions = self.subscriptions.iter().flat_map(|it| it.reasons(limits));
        let store = self.store_trouble.clone().map(HealthReason::Store);
        let reasons: Vec<_> = store
            .into_iter()
            .chain(pipelines)
            .chain(subscriptions)
            .collect();
        if reasons.is_empty() {
            Health::Healthy
        } else {
            Health::Degraded(reasons)
        }
    }
}

impl PipelineStatistics {
    fn nearly_full(&self, limits: &HealthLimits) -> Option<HealthReason> {
        (self.utilization() > limits.utilization).then(|| HealthReason::NearlyFull {
            pipeline: Arc::clone(&self.name),
            taken: self.taken,
            capacity: self.capacity,
        })
    }
}

impl SubscriptionStatistics {
    fn reasons(&self, limits: &HealthLimits) -> impl Iterator<Item = HealthReason> {
        let subscription = || Arc::clone(&self.name);
        let paused = self.paused.map(|why| HealthReason::Paused {
            subscription: subscription(),
            why,
        });
        let blocked = (self.parked > 0).then(|| HealthReason::Blocked {
            subscription: subscription(),
            deliveries: self.parked,
        });
        let tripped = self.is_tripped.then(|| HealthReason::Tripped {
            subscription: subscription(),
        });
        let stuck = (self.stuck > 0).then(|| HealthReason::Stuck {
            subscription: subscription(),
            handlers: self.stuck,
        });
        let late = self.oldest_unfinished.filter(|age| *age > limits.lag);
        let lagging = late.map(|age| HealthReason::Lagging {
            subscription: subscription(),
            events: self.lag(),
            age,
        });
        let late = self.last_dead.filter(|age| *age <= limits.dead_letters);
        let dead = late.filter(|_| self.dead > 0);
        let dead = dead.map(|last| HealthReason::DeadLetters {
            subscription: subscription(),
            dead: self.dead,
            last,
        });
        [paused, blocked, tripped, stuck, lagging, dead]
            .into_iter()
            .flatten()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::Stopped => f.write_str("stopped"),
            Self::Degraded(reasons) => {
                f.write_str("degraded")?;
                for (place, reason) in reasons.iter().enumerate() {
                    write!(f, "{} {reason}", if place == 0 { ":" } else { ";" })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for HealthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(StoreTrouble { error, age, .. }) => {
                write!(f, "the store has been at fault for {age:.1?}: {error}")
            }
            Self::WriteAheadLog { bytes } => {
                let mebibytes = bytes / (1024 * 1024);
                write!(f, "the write-ahead log has grown to {mebibytes} MiB")
            }
            Self::NearlyFull {
                pipeline,
                taken,
                capacity,
            } => write!(
                f,
                "{taken} of {capacity} places of pipeline {pipeline} are taken"
            ),
            Self::Paused { subscription, why } => write!(f, "{subscription} is paused: {why}"),
            Self::Blocked {
                subscription,
                deliveries,
            } => write!(
                f,
                "deliveries of {subscription} that wait behind dead letters: {deliveries}"
            ),
            Self::Tripped { subscription } => {
                write!(f, "the circuit breaker of {subscription} has tripped")
            }
            Self::Stuck {
                subscription,
                handlers,
            } => write!(
                f,
                "blocking handlers of {subscription} that do not return: {handlers}"
            ),
            Self::Lagging {
                subscription,
                events,
                age,
            } => write!(
                f,
                "{subscription} is {age:.1?} behind, with events: {events}"
            ),
            Self::DeadLetters {
                subscription,
                dead,
                last,
            } => write!(
                f,
                "deliveries of {subscription} given up: {dead}, the last one {last:.1?} ago"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus(mail: SubscriptionStatistics) -> BusStatistics {
        BusStatistics {
            running: true,
            pipelines: vec![PipelineStatistics {
                name: "default".into(),
                capacity: 10,
                taken: 8,
                ..PipelineStatistics::default()
            }],
            subscriptions: vec![mail],
            ..BusStatistics::default()
        }
    }

    fn told(statistics: &BusStatistics) -> String {
        statistics.health(&HealthLimits::default()).to_string()
    }

    #[test]
    fn n3_a_bus_that_runs_and_keeps_up_is_healthy() {
        let mut statistics = bus(SubscriptionStatistics {
            name: "mail".into(),
            oldest_unfinished: Some(Duration::from_secs(60)),
            last_dead: Some(Duration::from_secs(601)),
            dead: 3,
            blocked: 2,
            ..SubscriptionStatistics::default()
        });
        assert_eq!(told(&statistics), "healthy");
        statistics.running = false;
        assert_eq!(told(&statistics), "stopped");
    }

    #[test]
    fn n3_a_write_ahead_log_may_grow_so_far() {
        let limits = HealthLimits::default();
        let told = |health: Health, bytes| health.with_write_ahead_log(bytes, &limits).to_string();
        let many = limits.write_ahead_log + 1;
        let grown = "the write-ahead log has grown to 256 MiB";
        assert_eq!(told(Health::Healthy, many - 1), "healthy");
        assert_eq!(told(Health::Healthy, many), format!("degraded: {grown}"));
        assert_eq!(told(Health::Stopped, many), "stopped");
        let trips = HealthReason::Tripped {
            subscription: "mail".into(),
        };
        assert_eq!(
            told(Health::Degraded(vec![trips]), many),
            format!("degraded: the circuit breaker of mail has tripped; {grown}")
        );
    }

    #[test]
    fn n3_each_reason_is_named() {
        let mut statistics = bus(SubscriptionStatistics {
            name: "mail".into(),
            paused: Some(PauseReason::Asked),
            is_tripped: true,
            parked: 2,
            blocked: 2,
            pending: 3,
            stuck: 1,
            oldest_unfinished: Some(Duration::from_secs(61)),
            dead: 4,
            last_dead: Some(Duration::from_secs(5)),
            ..SubscriptionStatistics::default()
        });
        statistics.pipelines[0].taken = 9;
        assert_eq!(
            told(&statistics),
            "degraded: 9 of 10 places of pipeline default are taken; mail is paused: somebody asked for it; \
             deliveries of mail that wait behind dead letters: 2; \
             the circuit breaker of mail has tripped; \
             blocking handlers of mail that do not return: 1; \
             mail is 61.0s behind, with events: 5; \
             deliveries of mail given up: 4, the last one 5.0s ago"
        );
    }
}
