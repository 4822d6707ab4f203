//! When things come, by a clock that is paused: it stands still while anything can run, and then
//! goes to the next timer. A timer may be a millisecond late, as the clock has that grain.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    DeadLetterQuery, DeadLetterReason, Event, EventBus, FailurePolicy, HandlerContext,
    HandlerError, Health, HealthReason, PublishError, RetryPolicy, Subscription,
};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::{
    BusHarness, HOUR, Journal, Noted, answering, gated, is_pending, journal_of, left_out, noted,
    soon, started,
};

/// When each attempt began: the event's number, and the time since the beginning.
#[derive(Clone)]
pub(super) struct Times {
    pub(super) beginning: Instant,
    attempts: Arc<Mutex<Vec<(u64, Duration)>>>,
}

impl Times {
    pub(super) fn new() -> Self {
        Self {
            beginning: Instant::now(),
            attempts: Arc::default(),
        }
    }

    /// A subscription that notes when its attempts begin and ends them as `answer` says.
    pub(super) fn of(
        &self,
        name: &str,
        answer: impl Fn(u64, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
    ) -> Subscription {
        let times = self.clone();
        Subscription::from_fn(name, move |event: Event<Noted>, cx: HandlerContext| {
            let attempt = (event.number, times.beginning.elapsed());
            times.attempts.lock().unwrap().push(attempt);
            std::future::ready(answer(event.number, cx.attempt()))
        })
    }

    /// When the attempts for `number` began, in milliseconds.
    pub(super) fn millis(&self, number: u64) -> Vec<u128> {
        let attempts = self.attempts.lock().unwrap();
        let own = attempts.iter().filter(|attempt| attempt.0 == number);
        own.map(|attempt| attempt.1.as_millis()).collect()
    }
}

/// Checks that these are the times, each at most a few grains late.
#[track_caller]
pub(super) fn assert_times(actual: &[u128], expected: &[u128]) {
    let mut pairs = actual.iter().zip(expected);
    let on_time = pairs.all(|(actual, expected)| (*expected..expected + 10).contains(actual));
    let all = actual.len() == expected.len();
    assert!(on_time && all, "{actual:?} for {expected:?}");
}

pub(super) fn fails() -> Result<(), HandlerError> {
    Err(HandlerError::transient("no"))
}

pub(super) fn exact() -> RetryPolicy {
    RetryPolicy::exponential().jitter(0.0)
}

/// A running bus with one subscription, which has come to rest with one event, number 0.
pub(super) async fn at_rest(
    harness: &dyn BusHarness,
    subscription: Subscription,
) -> Arc<dyn EventBus> {
    let bus = harness.bus(100, 1);
    started(&bus, [subscription]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    bus.wait_idle().await.unwrap();
    bus
}

/// F3: delays double from the base up to the cap, and the number of attempts is limited.
pub async fn f3_delays_double_up_to_the_cap(harness: &dyn BusHarness) {
    let times = Times::new();
    let policy = exact().max_attempts(6).cap(Duration::from_millis(500));
    let bus = at_rest(harness, times.of("fails", |_, _| fails()).retry(policy)).await;
    assert_times(&times.millis(0), &[0, 100, 300, 700, 1_200, 1_700]);
    let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].attempts), (1, 6));
    assert_eq!(letters[0].reason, DeadLetterReason::AttemptsExhausted);
}

/// F3: by default there are four attempts, 100, 200 and 400 ms apart, each up to a tenth more.
pub async fn f3_the_default_is_four_attempts(harness: &dyn BusHarness) {
    let times = Times::new();
    at_rest(harness, times.of("fails", |_, _| fails())).await;
    let times = times.millis(0);
    let delays: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(delays.len(), 3);
    for (delay, least) in delays.iter().zip([100, 200, 400]) {
        assert!(
            (least..=least + least / 10 + 1).contains(delay),
            "{delays:?}"
        );
    }
}

/// F3: jitter stretches delays by up to its factor, and not all alike.
pub async fn f3_jitter_stretches_delays_apart(harness: &dyn BusHarness) {
    let times = Times::new();
    let policy = RetryPolicy::exponential().jitter(0.5).max_attempts(2);
    let bus = harness.bus(100, 8);
    started(&bus, [times.of("fails", |_, _| fails()).retry(policy)]).await;
    for number in 0..50 {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    bus.wait_idle().await.unwrap();
    let retries: Vec<_> = (0..50).map(|number| times.millis(number)[1]).collect();
    assert!(
        retries.iter().all(|at| (100..=151).contains(at)),
        "{retries:?}"
    );
    assert!(retries.iter().any(|at| *at != retries[0]), "{retries:?}");
}

/// F3: where attempts are limited by age, none is made later than that after the first one.
pub async fn f3_no_attempt_is_made_past_the_age_limit(harness: &dyn BusHarness) {
    let times = Times::new();
    let second = Duration::from_secs(1);
    let policy = exact().base(second).cap(second).max_attempts(100);
    let policy = policy.max_age(Duration::from_millis(3_500));
    let bus = at_rest(harness, times.of("fails", |_, _| fails()).retry(policy)).await;
    assert_times(&times.millis(0), &[0, 1_000, 2_000, 3_000]);
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap()[0].attempts,
        4
    );
}

/// F3: a retry that is due in 8 s does not delay one that is due in 1 s, set after it, whether they
/// share a pipeline or not.
pub async fn f3_a_long_wait_does_not_delay_a_short_one(harness: &dyn BusHarness) {
    let (times, own) = (Times::new(), Times::new());
    let bus = harness.bus(100, 1);
    let later = |number: u64, attempt| {
        if attempt == 1 {
            return Err(HandlerError::retry_after(
                Duration::from_secs(number),
                "later",
            ));
        }
        Ok(())
    };
    let own_one = own.of("own", later).isolated(1);
    started(&bus, [times.of("default", later), own_one]).await;
    for number in [8, 1, 3, 2] {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    bus.wait_idle().await.unwrap();
    for number in [8, 1, 3, 2] {
        let expected = [0, u128::from(number) * 1_000];
        assert_times(&times.millis(number), &expected);
        assert_times(&own.millis(number), &expected);
    }
}

/// F2: what asks for a time of its own is retried then, whatever the cap, and counted.
pub async fn f2_a_time_of_its_own_is_kept_whatever_the_cap(harness: &dyn BusHarness) {
    let times = Times::new();
    let later = |_, attempt| match attempt {
        1 => Err(HandlerError::retry_after(HOUR, "in an hour")),
        _ => fails(),
    };
    let policy = exact().max_attempts(3).cap(Duration::from_secs(1));
    at_rest(harness, times.of("later", later).retry(policy)).await;
    assert_times(&times.millis(0), &[0, 3_600_000, 3_600_200]);
}

/// F1: an attempt that runs past its time-out, 30 s unless set, has failed then.
pub async fn f1_an_attempt_fails_at_its_time_out(harness: &dyn BusHarness) {
    for (timeout, expected) in [(None, 30_000), (Some(Duration::from_secs(2)), 2_000)] {
        let (beginning, journal) = (Instant::now(), Journal::default());
        let never = gated(&journal, &Arc::new(Semaphore::new(0))).retry(RetryPolicy::never());
        let never = match timeout {
            Some(timeout) => never.timeout(timeout),
            None => never,
        };
        let bus = at_rest(harness, never).await;
        assert_times(&[beginning.elapsed().as_millis()], &[expected]);
        let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
        assert_eq!(letters.len(), 1);
    }
}

/// F5, D2: while a retry is not due, its aggregate waits and others do not, and it comes when it is
/// due although others keep the worker busy.
pub async fn d2_an_aggregate_waits_for_its_retry(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(100, 1);
    let once = |number, attempt| match (number, attempt) {
        (0, 1) => fails(),
        _ => Ok(()),
    };
    started(&bus, [times.of("once", once).retry(exact())]).await;
    for (aggregate, number) in [("a", 0), ("a", 1), ("b", 2)] {
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    bus.wait_idle().await.unwrap();
    assert_times(&times.millis(0), &[0, 100]);
    assert_times(&[times.millis(2)[0], times.millis(1)[0]], &[0, 100]);
}

/// A retry that comes due while its subscription is paused is made when that is resumed, and not
/// before (F3, F5).
pub async fn f3_a_retry_of_a_paused_subscription_waits(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(100, 1);
    let once = |_, attempt| match attempt {
        1 => fails(),
        _ => Ok(()),
    };
    let noting = times.of("once", once).retry(exact().max_attempts(2));
    started(&bus, [noting]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    assert!(bus.pause("once").await);
    sleep(Duration::from_millis(950)).await;
    assert_eq!(times.millis(0).len(), 1);
    assert!(bus.resume("once").await);
    bus.wait_idle().await.unwrap();
    assert_times(&times.millis(0), &[0, 1_000]);
    assert_eq!(bus.statistics().subscriptions[0].handled, 1);
}

/// P4: `publish_timeout` waits its time and no longer for room, and then gives the event back.
pub async fn p4_publish_timeout_waits_its_time(harness: &dyn BusHarness) {
    let bus = harness.bus(1, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate).timeout(10 * HOUR)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let beginning = Instant::now();
    let waited = bus.publish_timeout(noted("a", 1), HOUR).await.map(drop);
    let Err(PublishError::Full {
        capacity: 1,
        events,
    }) = waited
    else {
        panic!("{waited:?}")
    };
    assert_eq!(events.len(), 1);
    assert_times(&[beginning.elapsed().as_millis()], &[3_600_000]);
    let mut in_time = bus.publish_timeout(noted("a", 2), HOUR);
    assert!(is_pending(&mut in_time).await);
    sleep(HOUR / 2).await;
    gate.add_permits(2);
    in_time.await.unwrap();
    bus.wait_idle().await.unwrap();
    assert_times(&[beginning.elapsed().as_millis()], &[5_400_000]);
    assert_eq!(journal.of("seen"), [0, 2]);
}

/// P4: a publisher whose time is up leaves the line, and who waits behind it is served.
pub async fn p4_a_publisher_that_gives_up_leaves_the_line(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate).timeout(10 * HOUR)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    bus.publish(noted("a", 1)).await.unwrap();
    let mut first = bus.publish_timeout(noted("a", 2), HOUR);
    assert!(is_pending(&mut first).await);
    let mut second = bus.publish(noted("a", 3));
    assert!(is_pending(&mut second).await);
    first.await.unwrap_err();
    gate.add_permits(3);
    soon(second).await.unwrap();
    bus.wait_idle().await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1, 3]);
}

/// P3: a single event is handled at once, and does not wait for others to make up a batch.
pub async fn p3_a_single_event_does_not_wait_for_company(harness: &dyn BusHarness) {
    let times = Times::new();
    at_rest(harness, times.of("seen", |_, _| Ok(()))).await;
    assert_eq!(times.millis(0), [0]);
    assert_eq!(times.beginning.elapsed(), Duration::ZERO);
}

/// L2: a stop cuts off at its deadline what does not come to an end, and does not wait for its
/// deadline where nothing runs.
pub async fn l2_a_stop_ends_at_its_deadline(harness: &dyn BusHarness) {
    let journal = Journal::default();
    let bus = at_rest(harness, journal_of("quick", &journal)).await;
    let beginning = Instant::now();
    bus.stop(HOUR).await.unwrap();
    assert_eq!(beginning.elapsed(), Duration::ZERO);
    let bus = harness.bus(10, 1);
    let hangs = gated(&journal, &Arc::new(Semaphore::new(0))).timeout(10 * HOUR);
    started(&bus, [hangs]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "began").await;
    let report = bus.stop(HOUR).await.unwrap();
    assert_eq!(report.cut_off, 1);
    assert_times(&[beginning.elapsed().as_millis()], &[3_600_000]);
}

/// L2: a stop of a bus without a store waits for retries that are due before its deadline.
pub async fn l2_a_stop_waits_for_retries_that_are_due(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(10, 1);
    let answer = |number, attempt| match (number, attempt) {
        (_, 3) => Ok(()),
        (0, _) => fails(),
        _ => Err(HandlerError::retry_after(10 * HOUR, "too late")),
    };
    started(&bus, [times.of("fails", answer).retry(exact())]).await;
    let kept = bus.publish(noted("a", 0)).await.unwrap();
    bus.publish(noted("b", 1)).await.unwrap();
    let report = bus.stop(HOUR).await.unwrap();
    assert_times(&[times.beginning.elapsed().as_millis()], &[3_600_000]);
    assert_eq!((report.drained, report.abandoned), (1, 1), "{report:?}");
    assert_times(&times.millis(0), &[0, 100, 300]);
    assert!(kept.handled().await.unwrap().is_success());
}

/// N2: how far a subscription is behind is told in events and in time, and when a delivery was given up.
pub async fn n2_ages_are_told(harness: &dyn BusHarness) {
    let times = Times::new();
    let bus = harness.bus(100, 1);
    let answer = |number, attempt| match (number, attempt) {
        (0, 1) => Err(HandlerError::retry_after(HOUR, "in an hour")),
        (1, _) => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    };
    started(&bus, [times.of("late", answer)]).await;
    let minute = Duration::from_secs(60);
    bus.publish(noted("a", 0)).await.unwrap();
    bus.publish(noted("b", 1)).await.unwrap();
    sleep(minute).await;
    bus.publish(noted("a", 2)).await.unwrap();
    sleep(minute).await;
    let figures = bus.statistics();
    let late = figures.of("late").unwrap();
    assert_eq!(
        (late.lag(), late.waiting, late.blocked),
        (2, 1, 1),
        "{late:?}"
    );
    let millis = |age: Option<Duration>| age.unwrap().as_millis();
    assert_times(&[millis(late.oldest_unfinished)], &[120_000]);
    assert_times(&[millis(figures.oldest_unfinished)], &[120_000]);
    assert_times(&[millis(late.last_dead)], &[120_000]);
    let Health::Degraded(reasons) = bus.health() else {
        panic!("{}", bus.health())
    };
    assert!(
        reasons
            .iter()
            .any(|it| matches!(it, HealthReason::Lagging { events: 2, .. }))
    );
    bus.wait_idle().await.unwrap();
    let figures = bus.statistics();
    assert_eq!(
        (figures.of("late").unwrap().lag(), figures.oldest_unfinished),
        (0, None)
    );
    assert_eq!(
        bus.health(),
        Health::Healthy,
        "the dead letter was an hour ago"
    );
}

/// N2: the oldest event is told, also where a replay goes before it.
pub async fn n2_a_replay_hides_no_older_event(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let handler = |event: Event<Noted>, cx: HandlerContext| async move {
        match (event.number, cx.info().is_replay) {
            (0, true) => Err(HandlerError::retry_after(HOUR, "later")),
            (0, false) => Err(HandlerError::permanent("never")),
            _ => Ok(()),
        }
    };
    let parks = Subscription::from_fn("parks", handler);
    started(&bus, [parks.failure_policy(FailurePolicy::ParkAggregate)]).await;
    let dead = bus.publish(noted("a", 0)).await.unwrap();
    bus.publish(noted("a", 1)).await.unwrap();
    sleep(HOUR / 6).await;
    bus.replay("parks", dead.event_id()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let oldest = bus.statistics().oldest_unfinished.unwrap();
    assert_times(&[oldest.as_millis()], &[601_000]);
}

/// L5: nothing polls: with an hour of nothing to do, no timer fires and nothing is woken, also where
/// a publisher waits, a subscription is paused and a retry is due much later.
pub async fn l5_at_rest_nothing_wakes(harness: &dyn BusHarness) {
    if left_out(!harness.is_durable(), "run on the runtime alone") {
        return;
    }
    let bus = harness.bus(3, 4);
    let journal = Journal::default();
    let later = answering("later", &journal, |_, _| {
        Err(HandlerError::retry_after(100 * HOUR, "much later"))
    });
    let paused = journal_of("paused", &journal).isolated(2);
    started(&bus, [later, paused]).await;
    assert!(bus.pause("paused").await);
    for number in 0..3 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    let mut waits = bus.publish(noted("a", 3));
    assert!(is_pending(&mut waits).await);
    journal.has(1, "later").await;
    sleep(HOUR).await;
    let parks = parks_in_an_hour().await;
    // The runtime's own timer takes an hour in a few steps.
    assert!(
        parks < 10,
        "the runtime went to sleep {parks} times in an hour"
    );
}

/// How often the runtime goes to sleep while nobody asks it to do anything for an hour.
async fn parks_in_an_hour() -> u64 {
    let metrics = Handle::current().metrics();
    let before = metrics.worker_park_count(0);
    sleep(HOUR).await;
    metrics.worker_park_count(0) - before
}
