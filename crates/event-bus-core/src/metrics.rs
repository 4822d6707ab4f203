//! The figures of a bus, exported through the facade of the crate `metrics` under stable names.
#![doc = include_str!("metrics.md")]

use std::{sync::Arc, time::Duration};

use ::metrics::{KeyName, Label, Unit, counter, describe_counter, describe_gauge, gauge};
use domain_events::{
    BusStatistics, Health, HealthLimits, Latency, PipelineStatistics, SubscriptionStatistics,
};

#[cfg(test)]
mod tests;

/// Tells the recorder what each name means, and in which unit; once, after it was installed.
pub fn describe() {
    for (name, kind, meaning) in include_str!("metrics.md").lines().filter_map(row) {
        match kind {
            "counter" => describe_counter!(name, Unit::Count, meaning),
            _ => describe_gauge!(name, unit(name), meaning),
        }
    }
}

/// Name, kind and meaning, where a line of the documentation is a row of the table.
fn row(line: &'static str) -> Option<(&'static str, &'static str, &'static str)> {
    let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
    let name = cells.next()?.strip_suffix('`')?;
    let (kind, _labels) = (cells.next()?, cells.next()?);
    Some((name, kind, cells.next()?))
}

fn unit(name: &str) -> Unit {
    if name.contains("_seconds") {
        Unit::Seconds
    } else if name.ends_with("_bytes") {
        Unit::Bytes
    } else {
        Unit::Count
    }
}

/// Gives the recorder every one of these figures; nothing happens where none is installed.
pub fn export(statistics: &BusStatistics) {
    export_bus(statistics);
    statistics.pipelines.iter().for_each(export_pipeline);
    statistics
        .subscriptions
        .iter()
        .for_each(export_subscription);
}

// Structs are taken apart whole, so that no figure is forgotten.

fn export_bus(statistics: &BusStatistics) {
    let BusStatistics {
        running,
        workers,
        capacity,
        accepted,
        recovered,
        finished,
        in_flight,
        lag,
        dead_letters,
        evicted_dead_letters,
        uptime,
        oldest_unfinished,
        store_trouble,
        resident_memory,
        handling,
        publish_to_handled,
        pipelines: _,
        subscriptions: _,
    } = statistics;
    let bus = Of(Vec::new());
    bus.gauge("event_bus_health", health(statistics));
    bus.flag("event_bus_running", *running);
    bus.gauge("event_bus_workers", *workers as f64);
    bus.gauge("event_bus_capacity", *capacity as f64);
    bus.counter("event_bus_accepted_total", *accepted);
    bus.counter("event_bus_recovered_total", *recovered);
    bus.counter("event_bus_finished_total", *finished);
    bus.gauge("event_bus_in_flight", *in_flight as f64);
    bus.gauge("event_bus_lag", *lag as f64);
    bus.gauge("event_bus_dead_letters", *dead_letters as f64);
    bus.counter(
        "event_bus_evicted_dead_letters_total",
        *evicted_dead_letters,
    );
    bus.seconds("event_bus_uptime_seconds", *uptime);
    let oldest = oldest_unfinished.unwrap_or_default();
    bus.seconds("event_bus_oldest_unfinished_seconds", oldest);
    let trouble = store_trouble.as_ref().map(|trouble| trouble.age);
    bus.seconds(
        "event_bus_store_trouble_seconds",
        trouble.unwrap_or_default(),
    );
    if let Some(bytes) = resident_memory {
        bus.gauge("event_bus_resident_memory_bytes", *bytes as f64);
    }
    bus.latency("event_bus_handling_seconds", handling);
    bus.latency("event_bus_publish_to_handled_seconds", publish_to_handled);
}

fn health(statistics: &BusStatistics) -> f64 {
    match statistics.health(&HealthLimits::default()) {
        Health::Healthy => 0.0,
        Health::Degraded(_) => 1.0,
        Health::Stopped => 2.0,
    }
}

fn export_pipeline(statistics: &PipelineStatistics) {
    let PipelineStatistics {
        name,
        workers,
        capacity,
        taken,
        behind,
    } = statistics;
    let pipeline = Of(vec![Label::new("pipeline", Arc::clone(name))]);
    pipeline.gauge("event_bus_pipeline_workers", *workers as f64);
    pipeline.gauge("event_bus_pipeline_capacity", *capacity as f64);
    pipeline.gauge("event_bus_pipeline_taken", *taken as f64);
    let ratio = statistics.utilization();
    pipeline.gauge("event_bus_pipeline_utilization_ratio", ratio);
    pipeline.gauge("event_bus_pipeline_behind", *behind as f64);
}

fn export_subscription(statistics: &SubscriptionStatistics) {
    let SubscriptionStatistics {
        name,
        matching,
        handled,
        skipped,
        dead,
        discarded,
        blocked,
        parked,
        waiting,
        running,
        pending,
        abandoned,
        failed_attempts,
        retries,
        paused,
        is_tripped,
        stuck,
        oldest_unfinished,
        last_dead,
        handling,
        publish_to_handled,
    } = statistics;
    let one = Of(vec![Label::new("subscription", Arc::clone(name))]);
    one.counter("event_bus_subscription_matching_total", *matching);
    one.counter("event_bus_subscription_handled_total", *handled);
    one.counter("event_bus_subscription_skipped_total", *skipped);
    one.gauge("event_bus_subscription_dead", *dead as f64);
    one.counter("event_bus_subscription_discarded_total", *discarded);
    one.gauge("event_bus_subscription_blocked", *blocked as f64);
    one.gauge("event_bus_subscription_parked", *parked as f64);
    one.gauge("event_bus_subscription_waiting", *waiting as f64);
    one.gauge("event_bus_subscription_running", *running as f64);
    one.gauge("event_bus_subscription_pending", *pending as f64);
    one.gauge("event_bus_subscription_abandoned", *abandoned as f64);
    one.gauge("event_bus_subscription_lag", statistics.lag() as f64);
    one.counter(
        "event_bus_subscription_failed_attempts_total",
        *failed_attempts,
    );
    one.counter("event_bus_subscription_retries_total", *retries);
    one.flag("event_bus_subscription_paused", paused.is_some());
    one.flag("event_bus_subscription_tripped", *is_tripped);
    one.gauge("event_bus_subscription_stuck", *stuck as f64);
    let oldest = oldest_unfinished.unwrap_or_default();
    one.seconds("event_bus_subscription_oldest_unfinished_seconds", oldest);
    if let Some(age) = last_dead {
        one.seconds("event_bus_subscription_last_dead_seconds", *age);
    }
    one.latency("event_bus_subscription_handling_seconds", handling);
    one.latency(
        "event_bus_subscription_publish_to_handled_seconds",
        publish_to_handled,
    );
}

/// What figures are of, as labels.
struct Of(Vec<Label>);

impl Of {
    fn counter(&self, name: impl Into<KeyName>, value: u64) {
        counter!(name, self.0.iter()).absolute(value);
    }

    fn gauge(&self, name: impl Into<KeyName>, value: f64) {
        gauge!(name, self.0.iter()).set(value);
    }

    fn flag(&self, name: &'static str, is_set: bool) {
        self.gauge(name, f64::from(u8::from(is_set)));
    }

    fn seconds(&self, name: impl Into<KeyName>, value: Duration) {
        self.gauge(name, value.as_secs_f64());
    }

    /// In the style of a summary of Prometheus, which has the longest as the quantile 1.
    fn latency(&self, name: &'static str, latency: &Latency) {
        let Latency {
            count,
            mean,
            p50,
            p95,
            p99,
            max,
        } = *latency;
        for (quantile, value) in [("0.5", p50), ("0.95", p95), ("0.99", p99), ("1", max)] {
            let quantile = vec![Label::new("quantile", quantile)];
            Self([self.0.clone(), quantile].concat()).seconds(name, value);
        }
        self.seconds(format!("{name}_mean"), mean);
        self.counter(format!("{name}_count"), count);
    }
}
