//! Counters and histograms of deliveries.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use domain_events::Latency;

/// Counters are kept once for every worker, up to so many.
const MOST_SHARDS: usize = 8;

/// The counters of one subscription: one set for each worker, so that they do not pass the memory of
/// one between their processors.
pub(crate) struct Meters(Box<[OnceLock<Box<SubscriptionMeters>>]>);

impl Meters {
    pub(crate) fn new(workers: usize) -> Self {
        let shards = workers.clamp(1, MOST_SHARDS).next_power_of_two();
        Self((0..shards).map(|_| OnceLock::new()).collect())
    }

    pub(crate) fn sets(&self) -> usize {
        self.0.len()
    }

    /// The set of a worker.
    pub(crate) fn of(&self, worker: usize) -> &SubscriptionMeters {
        self.0[self.set_of(worker)].get_or_init(Box::default)
    }

    /// The number of a worker's set; the count of sets is a power of two, as a division takes long.
    pub(crate) fn set_of(&self, worker: usize) -> usize {
        worker & (self.0.len() - 1)
    }

    /// The set for what is counted under the lock.
    pub(crate) fn shared(&self) -> &SubscriptionMeters {
        self.of(0)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &SubscriptionMeters> {
        self.0.iter().filter_map(|set| Some(&**set.get()?))
    }

    /// A counter, over all sets; one that goes up in one and down in another is right in the end.
    pub(crate) fn sum(&self, counter: impl Fn(&SubscriptionMeters) -> &Counter) -> u64 {
        self.all()
            .map(|set| counter(set).get())
            .fold(0, u64::wrapping_add)
    }

    /// How many deliveries were given up.
    pub(crate) fn dead(&self) -> u64 {
        self.sum(|set| &set.dead)
    }

    /// How many of those given up are dead letters still.
    pub(crate) fn dead_letters(&self) -> u64 {
        let settled = self.sum(|set| &set.replayed) + self.sum(|set| &set.discarded);
        self.dead().saturating_sub(settled)
    }

    /// How many deliveries have come to an end, be it for a time.
    pub(crate) fn ended(&self) -> u64 {
        self.sum(|set| &set.handled) + self.sum(|set| &set.skipped) + self.dead()
    }
}

/// One set of counters.
#[derive(Default)]
pub(crate) struct SubscriptionMeters {
    pub(crate) handled: Counter,
    pub(crate) skipped: Counter,
    pub(crate) dead: Counter,
    /// Dead letters that were delivered again.
    pub(crate) replayed: Counter,
    /// Dead letters that were discarded.
    pub(crate) discarded: Counter,
    pub(crate) failed_attempts: Counter,
    pub(crate) retries: Counter,
    pub(crate) handling: Histogram,
    pub(crate) publish_to_handled: Histogram,
}

/// A number that goes up, and where it is a gauge also down.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bits of a duration that a bucket keeps besides its leading one: buckets are 1/16 wide.
const BITS: u32 = 4;
const BUCKETS: usize = ((64 - BITS as usize) << BITS) + (1 << BITS);

/// Durations in nanoseconds, counted in log-linear buckets.
pub(crate) struct Histogram {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self {
            buckets,
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        if self.max.load(Ordering::Relaxed) < nanos {
            self.max.fetch_max(nanos, Ordering::Relaxed);
        }
    }
}

/// Mean and percentiles of what all `histograms` have counted together.
pub(crate) fn latency<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Latency {
    let mut counts = vec![0_u64; BUCKETS];
    let mut max = 0;
    for histogram in histograms {
        for (count, bucket) in counts.iter_mut().zip(&histogram.buckets) {
            *count += bucket.load(Ordering::Relaxed);
        }
        max = max.max(histogram.max.load(Ordering::Relaxed));
    }
    let count: u64 = counts.iter().sum();
    let in_bucket = |(bucket, count): (usize, &u64)| {
        let (first, last) = (
            bucket.checked_sub(1).map_or(0, upper_end),
            upper_end(bucket),
        );
        u128::from(*count) * (u128::from(first) + u128::from(last)) / 2
    };
    let sum: u128 = counts.iter().enumerate().map(in_bucket).sum();
    let mean = sum.checked_div(u128::from(count)).unwrap_or(0);
    let percentile = |percent: u64| {
        let rank = (count * percent).div_ceil(100);
        let mut seen = 0;
        let found = counts.iter().position(|&count| {
            seen += count;
            seen >= rank && seen > 0
        });
        Duration::from_nanos(found.map_or(0, |index| upper_end(index).min(max)))
    };
    Latency {
        count,
        mean: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX).min(max)),
        p50: percentile(50),
        p95: percentile(95),
        p99: percentile(99),
        max: Duration::from_nanos(max),
    }
}

fn bucket(nanos: u64) -> usize {
    let exponent = 63_u32.saturating_sub(nanos.leading_zeros()).max(BITS);
    let shift = exponent - BITS;
    let offset = if nanos < (1 << BITS) {
        0
    } else {
        (shift as usize + 1) << BITS
    };
    offset + ((nanos >> shift) as usize & ((1 << BITS) - 1))
}

fn upper_end(bucket: usize) -> u64 {
    let group = bucket >> BITS;
    let rest = (bucket & ((1 << BITS) - 1)) as u128;
    if group == 0 {
        return rest as u64;
    }
    let end = ((rest + (1 << BITS) + 1) << (group - 1)) - 1;
    u64::try_from(end).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_a_bucket_at_most_a_sixteenth_wide() {
        for nanos in (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, (1 << bit) + 1]) {
            let end = upper_end(bucket(nanos));
            assert!(end >= nanos, "{nanos} ends at {end}");
            assert!(end - nanos <= nanos / 16 + 1, "{nanos} ends at {end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_all_durations_together() {
        let (first, second) = (Histogram::default(), Histogram::default());
        (1..=50).for_each(|n| first.record(Duration::from_nanos(n)));
        (51..=100).for_each(|n| second.record(Duration::from_nanos(n)));
        let latency = latency([&first, &second].into_iter());
        assert_eq!(latency.count, 100);
        assert_eq!(latency.max, Duration::from_nanos(100));
        assert!((48..=53).contains(&latency.mean.as_nanos()), "{latency:?}");
        assert!((50..=53).contains(&latency.p50.as_nanos()), "{latency:?}");
        assert!((99..=100).contains(&latency.p99.as_nanos()), "{latency:?}");
        assert_eq!(super::latency(std::iter::empty()), Latency::default());
    }
}
