//! When the circuit breaker leaves a handler alone, and when it probes (F8), by a clock that is paused.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    Batch, BatchVerdicts, CircuitBreaker, HandlerError, RetryPolicy, Subscription,
};
use tokio::time::{Instant, sleep};

use super::{
    BusHarness, Noted, noted, soon, started,
    timing::{Times, assert_times, exact, fails},
};

/// F8: after so many failures in a row the handler is left alone for the pause, and then probed with one
/// delivery at a time; a probe that fails is no attempt.
pub async fn f8_the_handler_is_left_alone_between_probes(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(100, 4);
    let second = Duration::from_secs(1);
    let well_at = times.beginning + second * 35;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let made = Arc::clone(&attempts);
    let answer = move |number, attempt| {
        made.lock().unwrap().push((number, attempt));
        if Instant::now() < well_at {
            fails()
        } else {
            Ok(())
        }
    };
    let breaks = times
        .of("breaks", answer)
        .retry(exact().max_attempts(2))
        .circuit_breaker(CircuitBreaker::new(3, second * 10));
    started(&bus, [breaks]).await;
    for number in 0..3 {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    sleep(second).await;
    for number in 3..6 {
        bus.publish(noted(format!("a{}", number % 3), number))
            .await
            .unwrap();
    }
    sleep(second * 30).await;
    let all: Vec<_> = (0..6).flat_map(|number| times.millis(number)).collect();
    let mut later: Vec<_> = all.into_iter().filter(|at| *at > 10).collect();
    later.sort_unstable();
    assert_times(&later, &[10_000, 20_000, 30_000]);
    assert!(bus.statistics().of("breaks").unwrap().is_tripped);
    bus.wait_idle().await.unwrap();
    assert_times(&[times.beginning.elapsed().as_millis()], &[40_000]);
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert_eq!((figures.handled, figures.dead), (6, 0), "{figures:?}");
    let attempts = attempts.lock().unwrap();
    assert!(
        attempts.iter().all(|(_, attempt)| *attempt <= 2),
        "{attempts:?}"
    );
}

/// F8: failures count in a row, and one that is for good is about its event and not the handler.
pub async fn f8_only_failures_in_a_row_trip(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(100, 1);
    let answer = |number, attempt| match (number, attempt) {
        (0 | 2 | 4 | 5, 1) => fails(),
        (1, _) => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    };
    let second = Duration::from_secs(1);
    let breaks = times
        .of("breaks", answer)
        .retry(exact().max_attempts(2))
        .circuit_breaker(CircuitBreaker::new(2, second));
    started(&bus, [breaks]).await;
    // A failure, and its retry that is handled: never two in a row.
    for number in [0, 1, 1, 1, 9, 2, 9] {
        bus.publish(noted("a", number)).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
        assert!(!bus.statistics().of("breaks").unwrap().is_tripped);
    }
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert_eq!((figures.dead, figures.handled, figures.retries), (3, 4, 2));
    assert_times(&times.millis(2), &[100, 200]);
    // Two in a row; what is published then waits for the probe.
    let beginning = Instant::now();
    for number in [4, 5] {
        bus.publish(noted(format!("b{number}"), number))
            .await
            .unwrap();
    }
    sleep(second / 20).await;
    assert!(bus.statistics().of("breaks").unwrap().is_tripped);
    bus.publish(noted("b6", 6)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_times(&[beginning.elapsed().as_millis()], &[1_000]);
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert_eq!((figures.dead, figures.handled), (3, 7), "{figures:?}");
    assert!(!figures.is_tripped);
}

/// F8: what the handler skips speaks for it, like what it handles.
pub async fn f8_a_skip_is_no_failure(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let answer = |number, _| match number {
        1 => Err(HandlerError::skip("not needed")),
        _ => fails(),
    };
    let breaks = Times::new().of("breaks", answer);
    let breaks = breaks.retry(RetryPolicy::never());
    let breaks = breaks.circuit_breaker(CircuitBreaker::new(2, Duration::from_secs(1)));
    started(&bus, [breaks]).await;
    for number in [0, 1, 2, 1] {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
        soon(bus.wait_idle()).await.unwrap();
    }
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert_eq!((figures.dead, figures.skipped), (2, 2));
    assert!(!figures.is_tripped, "{figures:?}");
}

/// F8: an event that always fails is not the only one asked: those that wait take turns as the probe.
pub async fn f8_an_event_that_always_fails_keeps_nobody_waiting(harness: &dyn BusHarness) {
    let (times, pause) = (Times::new(), Duration::from_secs(10));
    let bus = harness.bus(100, 2);
    let answer = |number, _| if number == 0 { fails() } else { Ok(()) };
    let breaks = times.of("breaks", answer).retry(exact().max_attempts(4));
    started(
        &bus,
        [breaks.circuit_breaker(CircuitBreaker::new(3, pause))],
    )
    .await;
    bus.publish(noted("poison", 0)).await.unwrap();
    sleep(pause / 2).await;
    assert!(bus.statistics().of("breaks").unwrap().is_tripped);
    for number in 1..20 {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics().of("breaks").unwrap().clone();
    assert_eq!((figures.handled, figures.dead), (19, 1), "{figures:?}");
    assert!(
        times.beginning.elapsed() < pause * 5,
        "{:?}",
        times.beginning.elapsed()
    );
}

/// F8: where no delivery waits that could be the probe, the next one published is; and where the probe is
/// a dead letter, the next one is the probe.
pub async fn f8_whatever_comes_next_is_the_probe(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(100, 1);
    let second = Duration::from_secs(1);
    let well_at = times.beginning + second * 3;
    let answer = move |number, _| match number {
        0 if Instant::now() < well_at => fails(),
        1 => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    };
    let breaks = times.of("breaks", answer).retry(RetryPolicy::never());
    let breaks = breaks.circuit_breaker(CircuitBreaker::new(1, second));
    started(&bus, [breaks]).await;
    let figures = || bus.statistics().of("breaks").unwrap().clone();
    bus.publish(noted("a", 0)).await.unwrap();
    sleep(second / 2).await;
    assert!(figures().is_tripped);
    for aggregate in ["b", "f"] {
        bus.publish(noted(aggregate, 1)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_times(&times.millis(1), &[1_000, 1_000]);
    assert!(figures().is_tripped, "nothing is known of the handler");
    bus.publish(noted("c", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_times(&times.millis(0), &[0, 1_000, 2_000, 3_000]);
    assert_times(&[times.beginning.elapsed().as_millis()], &[3_000]);
    for (aggregate, number) in [("d", 1), ("e", 2)] {
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = figures();
    assert_eq!((figures.dead, figures.handled), (4, 2), "{figures:?}");
    assert!(!figures.is_tripped);
}

/// F8, D9: a batch that fails as a whole is one failure, and one that is handled in part is none.
pub async fn f8_a_batch_is_one_failure(harness: &dyn BusHarness) {
    let (times, second) = (Times::new(), Duration::from_secs(1));
    let well_at = times.beginning + second * 10;
    let bus = harness.bus(100, 1);
    let handler = move |batch: Batch<Noted>| {
        let mut verdicts = BatchVerdicts::all_handled();
        for (place, (event, _)) in batch.iter().enumerate() {
            if event.number > 0 && Instant::now() < well_at {
                verdicts.fail(place, HandlerError::transient("no"));
            }
        }
        std::future::ready(Ok(verdicts))
    };
    let batches = Subscription::from_batch_fn("batches", 10, handler)
        .retry(exact().base(second * 20).cap(second * 20))
        .circuit_breaker(CircuitBreaker::new(2, second));
    started(&bus, [batches]).await;
    let is_tripped = || bus.statistics().of("batches").unwrap().is_tripped;
    let publish = async |numbers: &[u64]| {
        let of = |&number| noted(format!("a{number}"), number);
        bus.publish_all(numbers.iter().map(of).collect())
            .await
            .unwrap();
        sleep(second / 10).await;
    };
    for numbers in [&[1, 2, 3, 4][..], &[5, 0, 6], &[7, 8]] {
        publish(numbers).await;
        assert!(!is_tripped(), "{numbers:?}");
    }
    publish(&[9]).await;
    assert!(is_tripped());
    soon(bus.wait_idle()).await.unwrap();
    assert!(!is_tripped());
    assert_eq!(bus.statistics().of("batches").unwrap().handled, 10);
}
