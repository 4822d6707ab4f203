//! What a system is doing, at one moment.

use std::{fmt, path::PathBuf};

use domain_events::{BusStatistics, DeliveryStore, Health, HealthLimits, StoredSubscription};
use event_store_diesel::SqliteEventStore;

/// What a system is doing, at one moment.
#[derive(Clone, Debug)]
pub struct SystemStatus {
    /// Whether it runs; else it is stopping or stopped.
    pub running: bool,
    /// Whether it is well, and if not, why (N3).
    pub health: Health,
    /// The file of the store; `None` for a store in memory, and for none at all.
    pub file: Option<PathBuf>,
    /// Whether events are kept by a store.
    pub durable: bool,
    /// Events in the log that are still to be read: recovery, or a queue that overflowed.
    pub behind: u64,
    /// All counters.
    pub statistics: BusStatistics,
    /// What the store keeps of every subscription, also of those that nobody is subscribed by (D8); `None`
    /// without a store, and where it could not be read.
    pub stored: Option<Vec<StoredSubscription>>,
}

impl SystemStatus {
    pub(crate) async fn of(statistics: BusStatistics, store: Option<&SqliteEventStore>) -> Self {
        let stored = match store {
            Some(store) => store.subscriptions().await.ok(),
            None => None,
        };
        Self {
            running: statistics.running,
            health: health(&statistics, store),
            file: store.and_then(SqliteEventStore::path).map(Into::into),
            durable: store.is_some(),
            behind: statistics.lag,
            statistics,
            stored,
        }
    }

    /// What the store keeps of subscriptions that nobody is subscribed by: they hold the log back (R8).
    pub fn unsubscribed(&self) -> impl Iterator<Item = &StoredSubscription> {
        let stored = self.stored.iter().flatten();
        stored.filter(|stored| self.statistics.of(&stored.name).is_none())
    }

    /// The projections that the store knows, with their versions, and how far each is behind (R7).
    pub fn projections(&self) -> impl Iterator<Item = &StoredSubscription> {
        let stored = self.stored.iter().flatten();
        stored.filter(|stored| stored.version.is_some())
    }

    /// How many dead letters the store keeps.
    pub fn stored_dead_letters(&self) -> u64 {
        self.stored.iter().flatten().map(|stored| stored.dead).sum()
    }
}

/// Whether bus and store are well.
pub(crate) fn health(statistics: &BusStatistics, store: Option<&SqliteEventStore>) -> Health {
    let limits = HealthLimits::default();
    let bytes = store.map_or(0, SqliteEventStore::write_ahead_log_bytes);
    statistics
        .health(&limits)
        .with_write_ahead_log(bytes, &limits)
}

impl fmt::Display for SystemStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.running { "running" } else { "stopped" };
        let kind = if self.durable { "durable" } else { "volatile" };
        let BusStatistics {
            accepted,
            recovered,
            finished,
            in_flight,
            capacity,
            ..
        } = self.statistics;
        write!(
            f,
            "{state}, {kind}: {accepted} accepted, {recovered} recovered, {finished} finished, \
             {in_flight} of {capacity} in flight, {} behind; {}",
            self.behind, self.health,
        )?;
        match self.stored_dead_letters() {
            0 => {}
            dead => write!(f, "; {dead} dead letters")?,
        }
        for StoredSubscription { name, lag, .. } in self.projections().filter(|it| it.lag > 0) {
            write!(f, "; the projection {name:?} is {lag} behind")?;
        }
        for StoredSubscription { name, lag, .. } in self.unsubscribed() {
            write!(
                f,
                "; nobody is subscribed as {name:?}, which is {lag} behind"
            )?;
        }
        Ok(())
    }
}
