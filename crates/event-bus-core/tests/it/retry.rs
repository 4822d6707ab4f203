//! When retries are made, by a clock that is paused (F3), and where failures end.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    DeadLetterReason, DomainEvent, Event, EventBus, HandlerContext, HandlerError, NewEvent,
    RetryPolicy, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

#[derive(Serialize, Deserialize)]
struct Ticked {
    clock: String,
}

impl DomainEvent for Ticked {
    const EVENT_TYPE: &'static str = "test.ticked";
    const AGGREGATE_TYPE: &'static str = "clock";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.clock)
    }
}

fn ticked(clock: &str) -> NewEvent {
    NewEvent::new(Ticked {
        clock: clock.to_owned(),
    })
}

type Times = Arc<Mutex<Vec<Duration>>>;

async fn failing_bus(retry: RetryPolicy, dead_letters: usize) -> (InMemoryEventBus, Times) {
    let config = BusConfig {
        dead_letters,
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::new(config).unwrap();
    let (times, start) = (Times::default(), Instant::now());
    let noted = Arc::clone(&times);
    let fails = move |_: Event<Ticked>, _: HandlerContext| {
        noted.lock().unwrap().push(start.elapsed());
        async { Err(HandlerError::transient("no")) }
    };
    bus.subscribe(Subscription::from_fn("fails", fails).retry(retry))
        .await
        .unwrap();
    bus.start().await.unwrap();
    (bus, times)
}

#[tokio::test(start_paused = true)]
async fn f3_attempts_follow_each_other_at_doubling_delays_up_to_the_cap() {
    let policy = RetryPolicy::exponential()
        .jitter(0.0)
        .max_attempts(6)
        .cap(Duration::from_millis(500));
    let (bus, times) = failing_bus(policy, 10).await;
    bus.publish(ticked("a")).await.unwrap();
    bus.wait_idle().await.unwrap();
    let millis: Vec<_> = times
        .lock()
        .unwrap()
        .iter()
        .map(Duration::as_millis)
        .collect();
    // The paused clock steps in milliseconds, and a timer never fires early.
    let expected = [0, 100, 300, 700, 1_200, 1_700];
    assert_eq!(millis.len(), expected.len());
    for (attempt, expected) in millis.iter().zip(expected) {
        assert!((expected..expected + 10).contains(attempt), "{millis:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn f3_no_attempt_is_made_past_the_age_limit() {
    let policy = RetryPolicy::exponential()
        .jitter(0.0)
        .max_attempts(100)
        .base(Duration::from_secs(1))
        .cap(Duration::from_secs(1))
        .max_age(Duration::ZERO);
    let (bus, times) = failing_bus(policy, 10).await;
    bus.publish(ticked("a")).await.unwrap();
    bus.wait_idle().await.unwrap();
    assert_eq!(times.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn f6_dead_letters_are_kept_up_to_a_bound_and_the_rest_is_counted() {
    let (bus, _) = failing_bus(RetryPolicy::never(), 3).await;
    for clock in ["a", "b", "c", "d", "e"] {
        bus.publish(ticked(clock)).await.unwrap();
        bus.wait_idle().await.unwrap();
    }
    let letters = bus.dead_letters(Some("fails"), 10).await.unwrap();
    let clocks: Vec<_> = letters.iter().map(|letter| letter.aggregate.id()).collect();
    assert_eq!(clocks, ["c", "d", "e"]);
    assert_eq!(bus.evicted_dead_letters(), 2);
    assert_eq!(letters[0].reason, DeadLetterReason::AttemptsExhausted);
    assert_eq!((letters[0].attempts, &*letters[0].error), (1, "no"));
    assert_eq!(bus.dead_letters(Some("other"), 10).await.unwrap(), []);
}

#[tokio::test]
async fn l2_a_dropped_bus_signals_its_tasks() {
    let (bus, _) = failing_bus(RetryPolicy::never(), 3).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    assert!(metrics.num_alive_tasks() > 0);
    drop(bus);
    while metrics.num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}
