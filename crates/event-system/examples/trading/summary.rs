//! A run as one JSON object.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    inspection::{Findings, Kind},
    run::Traded,
};

/// The figures of a run. Handled, retries, recovered and the throughput are those of this run;
/// everything else is what the files say after all runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    source: String,
    candles: usize,
    events: BTreeMap<String, u64>,
    handled: u64,
    retries: u64,
    dead_letters: i64,
    repeats: i64,
    recovered: u64,
    lost: usize,
    order_violations: usize,
    seconds: f64,
    events_per_second: f64,
    portfolio_checksum: String,
}

impl Summary {
    pub(crate) fn of(source: String, candles: usize, traded: &Traded, findings: &Findings) -> Self {
        let statistics = &traded.statistics;
        let subscriptions = &statistics.subscriptions;
        let seconds = traded.took.as_secs_f64();
        let rounded = |number: f64, parts: f64| (number * parts).round() / parts;
        Self {
            source,
            candles,
            events: findings.events.iter().cloned().collect(),
            handled: subscriptions.iter().map(|it| it.handled + it.skipped).sum(),
            retries: subscriptions.iter().map(|it| it.retries).sum(),
            dead_letters: findings.deliveries.iter().map(|it| it.dead_letters).sum(),
            repeats: findings.deliveries.iter().map(|it| it.repeats).sum(),
            recovered: statistics.recovered,
            lost: findings.against(Kind::Lost),
            order_violations: findings.against(Kind::Order),
            seconds: rounded(seconds, 1_000.0),
            events_per_second: rounded(traded.events_per_second(), 1.0),
            portfolio_checksum: findings.portfolio_checksum(),
        }
    }
}
