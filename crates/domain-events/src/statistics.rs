//! The figures of a bus at one moment.

use std::{sync::Arc, time::Duration};

/// Percentiles of a duration; each is the upper end of a bucket at most 1/16 wide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many durations were measured.
    pub count: u64,
    /// Half were at most this long.
    pub p50: Duration,
    /// 95 in 100 were at most this long.
    pub p95: Duration,
    /// 99 in 100 were at most this long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Figures of one subscription in this run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionStatistics {
    /// The subscription's name.
    pub name: Arc<str>,
    /// Deliveries handled.
    pub handled: u64,
    /// Deliveries that their handler skipped.
    pub skipped: u64,
    /// Deliveries given up.
    pub dead: u64,
    /// Failed attempts, whatever followed.
    pub failed_attempts: u64,
    /// Attempts that followed a failed one.
    pub retries: u64,
    /// Deliveries waiting for their next attempt.
    pub waiting: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// Time of one attempt.
    pub handling: Latency,
    /// Time from publishing to handled, of events published in this run.
    pub publish_to_handled: Latency,
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
    /// Events taken up from the log by recovery or catching up.
    pub recovered: u64,
    /// Events with which every subscription is done.
    pub finished: u64,
    /// Events that take memory: queued, running, or waiting for a retry.
    pub in_flight: u64,
    /// Events in the log that are still to be taken up.
    pub lag: u64,
    /// How long the bus has been running.
    pub uptime: Duration,
    /// Time from publishing to handled, over all subscriptions.
    pub publish_to_handled: Latency,
    /// Each subscription's figures, in order of priority.
    pub subscriptions: Vec<SubscriptionStatistics>,
}
