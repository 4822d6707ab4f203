//! What is exported is what the statistics say, under the names of the documentation.

use std::collections::{BTreeMap, BTreeSet};

use ::metrics::with_local_recorder;
use domain_events::{
    DomainEvent, Event, EventBus, HandlerContext, HandlerError, NewEvent, StoreErrorKind,
    StoreTrouble, Subscription,
};
use serde::{Deserialize, Serialize};

use super::*;
use crate::{BusConfig, InMemoryEventBus};

mod recorder;
use recorder::{Kind, Recorded};

fn exported(statistics: &BusStatistics) -> Recorded {
    let recorded = Recorded::default();
    with_local_recorder(&recorded, || export(statistics));
    recorded
}

/// A latency whose figures are all different, of which the first is this.
fn latency(first: u32) -> Latency {
    let seconds = |more| Duration::from_secs(u64::from(first + more));
    Latency {
        count: u64::from(first),
        mean: seconds(1),
        p50: seconds(2),
        p95: seconds(3),
        p99: seconds(4),
        max: seconds(5),
    }
}

/// Figures that are all different.
fn figures() -> BusStatistics {
    BusStatistics {
        running: true,
        workers: 2,
        capacity: 3,
        accepted: 4,
        recovered: 5,
        finished: 6,
        in_flight: 7,
        lag: 8,
        dead_letters: 9,
        evicted_dead_letters: 10,
        uptime: Duration::from_millis(11_500),
        oldest_unfinished: Some(Duration::from_secs(12)),
        store_trouble: Some(StoreTrouble {
            kind: StoreErrorKind::Full,
            error: "no space".into(),
            age: Duration::from_secs(14),
        }),
        resident_memory: Some(13),
        handling: latency(20),
        publish_to_handled: latency(30),
        pipelines: vec![PipelineStatistics {
            name: "default".into(),
            workers: 40,
            capacity: 80,
            taken: 42,
            behind: 43,
        }],
        subscriptions: vec![SubscriptionStatistics {
            name: "mail".into(),
            matching: 50,
            handled: 51,
            skipped: 52,
            dead: 53,
            discarded: 65,
            blocked: 54,
            parked: 55,
            waiting: 56,
            running: 57,
            pending: 58,
            abandoned: 59,
            failed_attempts: 60,
            retries: 61,
            paused: None,
            is_tripped: true,
            stuck: 62,
            oldest_unfinished: Some(Duration::from_secs(63)),
            last_dead: Some(Duration::from_secs(64)),
            handling: latency(70),
            publish_to_handled: latency(80),
        }],
    }
}

#[test]
fn every_figure_is_exported_under_its_own_name() {
    let mut expected = BTreeMap::new();
    let mut expect = |of: &str, labels: &str, figures: &[(&str, f64)]| {
        for (name, value) in figures {
            let (name, quantile) = name.split_once('@').unwrap_or((name, ""));
            let quantile = match quantile {
                "" => String::new(),
                of if labels.is_empty() => format!("quantile={of}"),
                of => format!(",quantile={of}"),
            };
            let name = format!("event_bus_{of}{name}{{{labels}{quantile}}}");
            assert_eq!(expected.insert(name, *value), None);
        }
    };
    let bus = [
        ("health", 1.0),
        ("running", 1.0),
        ("workers", 2.0),
        ("capacity", 3.0),
        ("accepted_total", 4.0),
        ("recovered_total", 5.0),
        ("finished_total", 6.0),
        ("in_flight", 7.0),
        ("lag", 8.0),
        ("dead_letters", 9.0),
        ("evicted_dead_letters_total", 10.0),
        ("uptime_seconds", 11.5),
        ("oldest_unfinished_seconds", 12.0),
        ("store_trouble_seconds", 14.0),
        ("resident_memory_bytes", 13.0),
        ("handling_seconds_count", 20.0),
        ("handling_seconds_mean", 21.0),
        ("handling_seconds@0.5", 22.0),
        ("handling_seconds@0.95", 23.0),
        ("handling_seconds@0.99", 24.0),
        ("handling_seconds@1", 25.0),
        ("publish_to_handled_seconds_count", 30.0),
        ("publish_to_handled_seconds_mean", 31.0),
        ("publish_to_handled_seconds@0.5", 32.0),
        ("publish_to_handled_seconds@0.95", 33.0),
        ("publish_to_handled_seconds@0.99", 34.0),
        ("publish_to_handled_seconds@1", 35.0),
    ];
    expect("", "", &bus);
    let pipeline = [
        ("workers", 40.0),
        ("capacity", 80.0),
        ("taken", 42.0),
        ("utilization_ratio", 0.525),
        ("behind", 43.0),
    ];
    expect("pipeline_", "pipeline=default", &pipeline);
    let subscription = [
        ("matching_total", 50.0),
        ("handled_total", 51.0),
        ("skipped_total", 52.0),
        ("dead", 53.0),
        ("discarded_total", 65.0),
        ("blocked", 54.0),
        ("parked", 55.0),
        ("waiting", 56.0),
        ("running", 57.0),
        ("pending", 58.0),
        ("abandoned", 59.0),
        ("lag", 54.0 + 56.0 + 57.0 + 58.0),
        ("failed_attempts_total", 60.0),
        ("retries_total", 61.0),
        ("paused", 0.0),
        ("tripped", 1.0),
        ("stuck", 62.0),
        ("oldest_unfinished_seconds", 63.0),
        ("last_dead_seconds", 64.0),
        ("handling_seconds_count", 70.0),
        ("handling_seconds_mean", 71.0),
        ("handling_seconds@0.5", 72.0),
        ("handling_seconds@0.95", 73.0),
        ("handling_seconds@0.99", 74.0),
        ("handling_seconds@1", 75.0),
        ("publish_to_handled_seconds_count", 80.0),
        ("publish_to_handled_seconds_mean", 81.0),
        ("publish_to_handled_seconds@0.5", 82.0),
        ("publish_to_handled_seconds@0.95", 83.0),
        ("publish_to_handled_seconds@0.99", 84.0),
        ("publish_to_handled_seconds@1", 85.0),
    ];
    expect("subscription_", "subscription=mail", &subscription);
    assert_eq!(exported(&figures()).page(), expected);
}

#[test]
fn the_documentation_names_exactly_what_is_exported() {
    let rows = include_str!("../metrics.md").lines();
    let rows = rows.filter(|line| line.starts_with("| `event_bus"));
    let documented = rows.map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, _, _] = cells[..] else {
            panic!("{line}")
        };
        let kind = match kind {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            _ => panic!("{line}"),
        };
        (name.trim_matches('`').to_owned(), kind, labels.to_owned())
    });
    let documented: BTreeSet<_> = documented.collect();
    assert_eq!(exported(&figures()).table(), documented);
}

#[test]
fn every_name_is_described_once_with_its_kind_and_its_unit() {
    let recorded = Recorded::default();
    with_local_recorder(&recorded, describe);
    let described = recorded.described.into_inner().unwrap();
    let names: Vec<_> = described.iter().map(|it| (it.0.clone(), it.1)).collect();
    let unique: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(names.len(), unique.len());
    let exported = exported(&figures()).table();
    assert_eq!(
        unique,
        exported.into_iter().map(|it| (it.0, it.1)).collect()
    );
    let of = |name: &str| {
        let one = described.iter().find(|it| it.0 == name).unwrap();
        (one.2.unwrap(), &*one.3)
    };
    assert_eq!(
        of("event_bus_accepted_total"),
        (Unit::Count, "Events accepted from publishers.")
    );
    let count = of("event_bus_handling_seconds_count").0;
    let memory = of("event_bus_resident_memory_bytes").0;
    let mean = of("event_bus_subscription_handling_seconds_mean").0;
    assert_eq!(
        (count, memory, mean),
        (Unit::Count, Unit::Bytes, Unit::Seconds)
    );
}

#[test]
fn what_there_is_not_is_no_figure_and_what_is_finished_has_no_age() {
    let mut statistics = figures();
    let recorded = exported(&statistics);
    statistics.running = false;
    statistics.oldest_unfinished = None;
    statistics.resident_memory = None;
    statistics.subscriptions[0].oldest_unfinished = None;
    statistics.subscriptions[0].last_dead = None;
    let page = exported(&statistics).page();
    let of_mail = |name: &str| format!("event_bus_subscription_{name}{{subscription=mail}}");
    assert_eq!(page.get("event_bus_resident_memory_bytes{}"), None);
    assert_eq!(page.get(&of_mail("last_dead_seconds")), None);
    // And so a recorder that had them is told.
    with_local_recorder(&recorded, || export(&statistics));
    let page = recorded.page();
    assert_eq!(page["event_bus_oldest_unfinished_seconds{}"], 0.0);
    assert_eq!(page[&of_mail("oldest_unfinished_seconds")], 0.0);
    assert_eq!(page["event_bus_health{}"], 2.0);
}

#[test]
fn n3_health_is_a_number_the_higher_the_worse() {
    let mut statistics = BusStatistics::default();
    assert_eq!(health(&statistics), 2.0);
    statistics.running = true;
    assert_eq!(health(&statistics), 0.0);
    statistics.subscriptions = figures().subscriptions;
    assert_eq!(health(&statistics), 1.0);
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.numbered", aggregate = "test", id = aggregate)]
struct Numbered {
    aggregate: String,
    number: u32,
}

/// Handles event 0, fails once with event 1, skips event 2 and gives event 3 up.
fn answer(event: &Numbered, attempt: u32) -> Result<(), HandlerError> {
    match event.number {
        1 if attempt == 1 => Err(HandlerError::retry_after(Duration::ZERO, "again")),
        2 => Err(HandlerError::skip("not needed")),
        3 => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn n1_the_figures_of_a_bus_are_exported_as_they_are() {
    let config = BusConfig {
        capacity: 64,
        workers: 2,
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::new(config).unwrap();
    let answers = |event: Event<Numbered>, cx: HandlerContext| answer(&event, cx.attempt());
    for subscription in [
        Subscription::from_sync_fn("answers", answers),
        Subscription::from_fn("handles", |_: Event<Numbered>, _| async { Ok(()) }).isolated(1),
    ] {
        bus.subscribe(subscription).await.unwrap();
    }
    bus.start().await.unwrap();
    for number in 0..4 {
        let aggregate = number.to_string();
        let event = NewEvent::new(Numbered { aggregate, number });
        bus.publish(event).await.unwrap();
    }
    bus.wait_idle().await.unwrap();

    let statistics = bus.statistics();
    let page = exported(&statistics).page();
    let of = |name: &str, subscription: &str| {
        page[&format!("event_bus_subscription_{name}{{subscription={subscription}}}")]
    };
    assert_eq!(page["event_bus_accepted_total{}"], 4.0);
    assert_eq!(page["event_bus_finished_total{}"], 4.0);
    assert_eq!(page["event_bus_in_flight{}"], 0.0);
    assert_eq!(page["event_bus_dead_letters{}"], 1.0);
    assert_eq!(page["event_bus_capacity{}"], 64.0);
    let names = [
        "matching_total",
        "handled_total",
        "skipped_total",
        "dead",
        "retries_total",
    ];
    assert_eq!(
        names.map(|name| of(name, "answers")),
        [4.0, 2.0, 1.0, 1.0, 1.0]
    );
    assert_eq!(
        names.map(|name| of(name, "handles")),
        [4.0, 4.0, 0.0, 0.0, 0.0]
    );
    assert_eq!(page["event_bus_pipeline_workers{pipeline=default}"], 2.0);
    assert_eq!(page["event_bus_pipeline_workers{pipeline=handles}"], 1.0);
    for one in &statistics.subscriptions {
        let name = &*one.name;
        assert_eq!(
            of("handling_seconds_mean", name),
            one.handling.mean.as_secs_f64()
        );
        assert_eq!(
            of("handling_seconds_count", name),
            one.handling.count as f64
        );
        let key =
            format!("event_bus_subscription_handling_seconds{{subscription={name},quantile=1}}");
        assert_eq!(page[&key], one.handling.max.as_secs_f64());
    }
}
