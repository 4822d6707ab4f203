//! A failing handler is left alone for a while, and probed (F8).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{CircuitBreaker, HandlerError, SubscribeError};

use super::{BusHarness, Journal, answering, journal_of, noted, quick_retries, soon, started};

/// F8: a tripped subscription holds up nobody else, its probes do not count as attempts, and once one
/// is handled everything goes on in order.
pub async fn f8_a_tripped_subscription_goes_on_once_a_probe_is_handled(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 4);
    let journal = Journal::default();
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = Arc::clone(&sick);
    let answer = move |_, _| match is_sick.load(SeqCst) {
        true => Err(HandlerError::transient("the other side does not answer")),
        false => Ok(()),
    };
    let breaker = CircuitBreaker::new(3, Duration::from_millis(5));
    // Four attempts would be used up at once if probes counted.
    let breaks = answering("breaks", &journal, answer)
        .retry(quick_retries(4))
        .circuit_breaker(breaker);
    started(&bus, [breaks, journal_of("other", &journal)]).await;
    for number in 0..30 {
        let aggregate = ["a", "b", "c"][number as usize % 3];
        soon(bus.publish(noted(aggregate, number))).await.unwrap();
    }
    journal.has(30, "other").await;
    // Three failures and a good many probes.
    journal.has(12, "breaks").await;
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert!(
        figures.is_tripped && figures.paused.is_none(),
        "{figures:?}"
    );
    assert_eq!((figures.handled, figures.dead), (0, 0));
    sick.store(false, SeqCst);
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert!(!figures.is_tripped);
    assert_eq!((figures.handled, figures.dead), (30, 0), "{figures:?}");
    for aggregate in 0..3 {
        let mut of: Vec<_> = journal.of("breaks");
        of.retain(|number| number % 3 == aggregate);
        of.dedup();
        let all: Vec<_> = (0..30).filter(|number| number % 3 == aggregate).collect();
        assert_eq!(of, all, "in order, the first as often as it was probed");
    }
}

/// L4, L2: who goes or stops while it is tripped leaves nothing behind.
pub async fn l4_a_tripped_subscription_goes_and_stops(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let fails = |name: &str| {
        let never = CircuitBreaker::new(1, super::HOUR);
        let fails = answering(name, &journal, |_, _| Err(HandlerError::transient("no")));
        fails.circuit_breaker(never)
    };
    started(&bus, [fails("goes"), fails("stops")]).await;
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    bus.publish(noted("b", 1)).await.unwrap();
    journal.has(1, "goes").await;
    journal.has(1, "stops").await;
    assert!(soon(bus.unsubscribe("goes")).await);
    let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
    assert_eq!(report.cut_off, 0);
    assert_eq!(report.abandoned + report.left_in_log, 2, "{report:?}");
    soon(receipt.handled()).await.unwrap();
    assert_eq!(
        (journal.of("goes").len(), journal.of("stops").len()),
        (1, 1)
    );
}

/// A breaker that can never trip or never rest is refused before anything runs.
pub async fn a_breaker_that_cannot_work_is_refused(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let second = Duration::from_secs(1);
    for (field, breaker) in [
        ("breaker.failures", CircuitBreaker::new(0, second)),
        ("breaker.pause", CircuitBreaker::new(1, Duration::ZERO)),
    ] {
        let wrong = journal_of("wrong", &Journal::default()).circuit_breaker(breaker);
        let refused = bus.subscribe(wrong).await.unwrap_err();
        let SubscribeError::Invalid { source, .. } = &refused else {
            panic!("{refused:?}")
        };
        assert!(source.to_string().starts_with(field), "{source}");
    }
}
