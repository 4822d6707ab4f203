//! The figures of a bus at one moment.

use std::{sync::Arc, time::Duration};

use crate::{PauseReason, StoreErrorKind};

/// Mean and percentiles of a duration; each percentile is the upper end of a bucket at most 1/16
/// wide, and the mean is taken over the middles of buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many durations were measured.
    pub count: u64,
    /// The mean.
    pub mean: Duration,
    /// Half were at most this long.
    pub p50: Duration,
    /// 95 in 100 were at most this long.
    pub p95: Duration,
    /// 99 in 100 were at most this long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Figures of one subscription in this run (N1): at any quiet moment `matching = handled + skipped +
/// dead + discarded + blocked + waiting + running + pending + abandoned`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionStatistics {
    /// The subscription's name.
    pub name: Arc<str>,
    /// Events taken in that are of the type subscribed to.
    pub matching: u64,
    /// Deliveries handled.
    pub handled: u64,
    /// Deliveries that the handler or the filter skipped.
    pub skipped: u64,
    /// Deliveries given up, and neither replayed nor discarded.
    pub dead: u64,
    /// Dead letters of this run that were discarded.
    pub discarded: u64,
    /// Deliveries waiting behind another one of their aggregate, or for a person.
    pub blocked: u64,
    /// Those of the blocked that wait behind a dead letter.
    pub parked: u64,
    /// Deliveries waiting for their next attempt.
    pub waiting: u64,
    /// Deliveries being attempted.
    pub running: u64,
    /// Deliveries that wait for a worker.
    pub pending: u64,
    /// Deliveries that a stop has left unmade; on a bus with a store the next start takes them up.
    pub abandoned: u64,
    /// Failed attempts, whatever followed.
    pub failed_attempts: u64,
    /// Attempts that followed a failed one.
    pub retries: u64,
    /// Why it is paused, if it is.
    pub paused: Option<PauseReason>,
    /// Whether its circuit breaker has tripped (F8).
    pub is_tripped: bool,
    /// Blocking handlers that run past their time-out (F1).
    pub stuck: u64,
    /// How long the oldest event that it has not finished has been accepted.
    pub oldest_unfinished: Option<Duration>,
    /// How long ago a delivery was given up the last time.
    pub last_dead: Option<Duration>,
    /// Time of one attempt.
    pub handling: Latency,
    /// Time from publishing to handled, of events published in this run.
    pub publish_to_handled: Latency,
}

impl SubscriptionStatistics {
    /// How many events the subscription is behind: taken in and not finished.
    pub fn lag(&self) -> u64 {
        self.blocked + self.waiting + self.running + self.pending
    }
}

/// Figures of one pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PipelineStatistics {
    /// The name of the subscription whose own it is, or `"default"`.
    pub name: Arc<str>,
    /// How many handlers of it run at once at the most.
    pub workers: usize,
    /// How many events it holds at the most.
    pub capacity: usize,
    /// How many places are taken, those counted that are reserved.
    pub taken: usize,
    /// Events in the log that it is still to take up.
    pub behind: u64,
}

impl PipelineStatistics {
    /// The part of the places that is taken; above 1 where handlers have published beyond the
    /// capacity (P5).
    pub fn utilization(&self) -> f64 {
        self.taken as f64 / self.capacity.max(1) as f64
    }
}

/// A fault of the store that the bus waits out, trying again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreTrouble {
    /// What can be done about it.
    pub kind: StoreErrorKind,
    /// What did not happen, and why.
    pub error: Arc<str>,
    /// For how long it has lasted.
    pub age: Duration,
}

/// Figures of a bus in this run (N1): `accepted + recovered = finished + in_flight` at any quiet
/// moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusStatistics {
    /// Whether the bus is running.
    pub running: bool,
    /// How many workers the default pipeline has.
    pub workers: usize,
    /// How many events the default pipeline holds.
    pub capacity: usize,
    /// Events accepted from publishers.
    pub accepted: u64,
    /// Events taken up from the log by recovery or catching up, and dead letters replayed.
    pub recovered: u64,
    /// Events that take no memory any more: every subscription is done with them, or has left them to the
    /// log, as behind a dead letter.
    pub finished: u64,
    /// Events that take memory: queued, running, or waiting for a retry.
    pub in_flight: u64,
    /// Events in the log that are still to be taken up.
    pub lag: u64,
    /// Dead letters that a volatile bus keeps at this moment.
    pub dead_letters: u64,
    /// Dead letters that a volatile bus has lost to its bound.
    pub evicted_dead_letters: u64,
    /// How long the bus has been running.
    pub uptime: Duration,
    /// How long the oldest event that is not finished has been accepted.
    pub oldest_unfinished: Option<Duration>,
    /// What keeps the store from serving the bus; `None` where it does, and without a store.
    pub store_trouble: Option<StoreTrouble>,
    /// Resident memory of the process, in bytes; `None` where the platform does not tell.
    pub resident_memory: Option<u64>,
    /// Time of one attempt, over all subscriptions.
    pub handling: Latency,
    /// Time from publishing to handled, over all subscriptions.
    pub publish_to_handled: Latency,
    /// Each pipeline's figures, the default one first.
    pub pipelines: Vec<PipelineStatistics>,
    /// Each subscription's figures, in order of priority.
    pub subscriptions: Vec<SubscriptionStatistics>,
}

impl BusStatistics {
    /// The figures of the subscription with this name.
    pub fn of(&self, subscription: &str) -> Option<&SubscriptionStatistics> {
        self.subscriptions
            .iter()
            .find(|it| &*it.name == subscription)
    }

    /// A figure, summed over all subscriptions.
    pub fn sum(&self, figure: impl Fn(&SubscriptionStatistics) -> u64) -> u64 {
        self.subscriptions.iter().map(figure).sum()
    }

    /// By how much a count has grown a second since `earlier` figures of the same run; since the
    /// start where those are the default.
    ///
    /// ```
    /// # use domain_events::BusStatistics;
    /// # fn show(earlier: BusStatistics, now: BusStatistics) {
    /// println!("{:.0} events/s", now.rate_since(&earlier, |it| it.accepted));
    /// println!("{:.0} deliveries/s", now.rate_since(&earlier, |it| it.sum(|one| one.handled)));
    /// # }
    /// ```
    pub fn rate_since(&self, earlier: &Self, count: impl Fn(&Self) -> u64) -> f64 {
        let seconds = self.uptime.saturating_sub(earlier.uptime).as_secs_f64();
        let grown = count(self).saturating_sub(count(earlier));
        if seconds > 0.0 {
            grown as f64 / seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n2_a_rate_is_growth_by_time() {
        let at = |seconds, accepted| BusStatistics {
            uptime: Duration::from_secs(seconds),
            accepted,
            ..BusStatistics::default()
        };
        let rate = |now: BusStatistics, then| now.rate_since(&then, |it| it.accepted);
        assert_eq!(rate(at(4, 100), at(2, 40)), 30.0);
        assert_eq!(rate(at(4, 100), BusStatistics::default()), 25.0);
        assert_eq!(rate(at(4, 100), at(4, 100)), 0.0);
    }
}
