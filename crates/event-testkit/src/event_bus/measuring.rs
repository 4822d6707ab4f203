//! What is measured of deliveries, by a clock that is paused (N2, F6).

use std::time::Duration;

use domain_events::{
    Batch, BatchVerdicts, DeadLetterQuery, Event, HandlerContext, Latency, Subscription, Timestamp,
};
use tokio::time::sleep;

use super::{
    BusHarness, Noted, noted, started,
    timing::{Times, at_rest, exact, fails},
};

/// Checks that a duration is this many milliseconds, as exactly as it is kept: a sixteenth, and a few
/// grains of the clock.
#[track_caller]
fn assert_about(actual: Duration, millis: u64) {
    let (expected, grains) = (Duration::from_millis(millis), Duration::from_millis(10));
    let inexact = expected / 16 + grains;
    let about = expected.saturating_sub(inexact)..=expected + inexact;
    assert!(about.contains(&actual), "{actual:?} for {expected:?}");
}

/// Checks how many durations were measured, and their median and longest, in milliseconds.
#[track_caller]
fn assert_measured(latency: &Latency, count: u64, median: u64, longest: u64) {
    assert_eq!(latency.count, count, "{latency:?}");
    assert_about(latency.p50, median);
    assert_about(latency.max, longest);
    let mean = latency.mean;
    assert!(
        latency.p50 / 2 <= mean && mean <= latency.max,
        "{latency:?}"
    );
}

/// N2: how long attempts take, and how long it is from publishing to handled, is told of each
/// subscription and of all; the processing log has the time of each attempt that it keeps.
pub async fn n2_times_are_measured(harness: &dyn BusHarness) {
    let second = Duration::from_secs(1);
    let bus = harness.bus(100, 1);
    let slow = move |event: Event<Noted>, cx: HandlerContext| async move {
        sleep(second).await;
        match (event.number, cx.attempt()) {
            (1, 1) => fails(),
            _ => Ok(()),
        }
    };
    let batches = move |_: Batch<Noted>| async move {
        sleep(second).await;
        Ok(BatchVerdicts::all_handled())
    };
    let subscriptions = [
        Subscription::from_fn("slow", slow).retry(exact()),
        Subscription::from_batch_fn("batches", 10, batches),
    ];
    started(&bus, subscriptions).await;
    for number in 0..2 {
        bus.publish(noted("a", number)).await.unwrap();
        bus.wait_idle().await.unwrap();
    }
    let figures = bus.statistics();
    let slow = figures.of("slow").unwrap();
    assert_measured(&slow.handling, 3, 1_000, 1_000);
    assert_measured(&slow.publish_to_handled, 2, 1_000, 2_100);
    let batches = figures.of("batches").unwrap();
    assert_measured(&batches.handling, 2, 1_000, 1_000);
    assert_measured(&batches.publish_to_handled, 2, 1_000, 1_000);
    assert_measured(&figures.handling, 5, 1_000, 1_000);
    assert_measured(&figures.publish_to_handled, 4, 1_000, 2_100);
    let log = bus.processing_log(None, 10).await.unwrap();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_about(log[0].took, 1_000);
}

/// F6: a dead letter tells when its first attempt began and when it was given up.
pub async fn f6_a_dead_letter_tells_its_times(harness: &dyn BusHarness) {
    let policy = exact().max_attempts(3);
    let fails = Times::new().of("fails", |_, _| fails()).retry(policy);
    let bus = at_rest(harness, fails).await;
    let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    let letter = &letters[0];
    let retried = Duration::from_millis(300);
    assert!(letter.first_attempt_at.after(retried) <= letter.dead_at);
    assert!(letter.dead_at <= Timestamp::now());
}
