//! What happens to a delivery that fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, Event, HandlerContext, HandlerError, Priority, RetryPolicy, Subscription,
};

use super::{BusHarness, Journal, Noted, journal_of, noted, quick_retries, soon, started};

/// F1: an error, a panic and a time-out are failures, and stop neither a worker nor another
/// subscription.
pub async fn f1_errors_panics_and_timeouts_stay_in_their_own_delivery(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let fails = |_: Event<Noted>, _| async { Err(HandlerError::transient("no")) };
    let panics = |event: Event<Noted>, _| async move {
        assert!(event.number > 1_000, "a message");
        Ok(())
    };
    let panics_before = |_: Event<Noted>, _| -> std::future::Ready<Result<(), HandlerError>> {
        panic!("before there is a future")
    };
    let sleeps = |_: Event<Noted>, _| std::future::pending();
    let once = |subscription: Subscription| subscription.retry(RetryPolicy::never());
    let subscriptions = [
        once(Subscription::from_fn("fails", fails)),
        once(Subscription::from_fn("panics", panics)),
        once(Subscription::from_fn("panics-before", panics_before)),
        once(Subscription::from_fn("sleeps", sleeps)).timeout(Duration::from_millis(5)),
        journal_of("journal", &journal).priority(Priority::LOW),
    ];
    started(&bus, subscriptions).await;
    for number in 0..3 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("journal"), [0, 1, 2]);
    for figures in bus.statistics().subscriptions {
        let expected = if &*figures.name == "journal" {
            (3, 0)
        } else {
            (0, 3)
        };
        assert_eq!((figures.handled, figures.dead), expected, "{figures:?}");
    }
}

/// F2: permanent errors are dead at once, skipped events are done, transient ones are retried.
pub async fn f2_each_verdict_has_its_consequence(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let verdicts = move |event: Event<Noted>, _| {
        count.fetch_add(1, SeqCst);
        async move {
            Err(match event.number {
                0 => HandlerError::permanent("never"),
                1 => HandlerError::skip("not needed"),
                2 => HandlerError::retry_after(Duration::from_millis(1), "soon"),
                _ => HandlerError::transient("again"),
            })
        }
    };
    started(
        &bus,
        [Subscription::from_fn("verdicts", verdicts).retry(quick_retries(3))],
    )
    .await;
    let mut expected_attempts = 0;
    for (number, (outcome, attempts_made)) in [
        (DeliveryOutcome::Dead, 1),
        (DeliveryOutcome::Skipped, 1),
        (DeliveryOutcome::Dead, 3),
        (DeliveryOutcome::Dead, 3),
    ]
    .into_iter()
    .enumerate()
    {
        let receipt = bus.publish(noted("a", number as u64)).await.unwrap();
        assert_eq!(
            soon(receipt.handled()).await.unwrap().outcomes[0].1,
            outcome
        );
        expected_attempts += attempts_made;
        assert_eq!(attempts.load(SeqCst), expected_attempts);
    }
}

/// F3, D6: other aggregates pass by a delivery that waits for its retry, and a long wait does not
/// delay a short one behind it.
pub async fn f3_a_long_wait_delays_nobody_else(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let log = journal.clone();
    let waits = move |event: Event<Noted>, cx: HandlerContext| {
        let journal = log.clone();
        async move {
            if cx.attempt() == 1 && event.number > 0 {
                let delay = Duration::from_millis(event.number);
                return Err(HandlerError::retry_after(delay, "later"));
            }
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("waits", waits)]).await;
    bus.publish(noted("long", 3_600_000)).await.unwrap();
    let short = bus.publish(noted("short", 3)).await.unwrap();
    let none = bus.publish(noted("none", 0)).await.unwrap();
    soon(none.handled()).await.unwrap();
    soon(short.handled()).await.unwrap();
    let mut seen = journal.of("seen");
    seen.sort_unstable();
    assert_eq!(seen, [0, 3]);
    soon(bus.stop(Duration::ZERO)).await.unwrap();
}
