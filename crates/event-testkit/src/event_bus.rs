//! What every event bus promises: one check a promise, named by its number.
//!
//! An adapter's tests describe the adapter by a [`BusHarness`] and run the whole suite with
//! [`event_bus_conformance!`](crate::event_bus_conformance).

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, DomainEvent, Event, EventBus, EventId, HandlerContext, HandlerError, NewEvent,
    Priority, PublishError, RetryPolicy, StartError, StopError, SubscribeError, Subscription,
    WaitError,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

/// How the suite gets a bus to check.
pub trait BusHarness: Send + Sync {
    /// A new bus, not started, with room for `capacity` events and with `workers` workers.
    fn bus(&self, capacity: usize, workers: usize) -> Arc<dyn EventBus>;

    /// Whether the bus keeps events in a store.
    fn is_durable(&self) -> bool;
}

/// The event of the suite: the `number`th of its aggregate.
#[derive(Debug, Serialize, Deserialize)]
pub struct Noted {
    aggregate: String,
    number: u64,
}

impl DomainEvent for Noted {
    const EVENT_TYPE: &'static str = "testkit.noted";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.aggregate)
    }
}

/// An event that follows from [`Noted`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Followed {
    aggregate: String,
    number: u64,
}

impl DomainEvent for Followed {
    const EVENT_TYPE: &'static str = "testkit.followed";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.aggregate)
    }
}

fn noted(aggregate: impl Into<String>, number: u64) -> NewEvent {
    NewEvent::new(Noted {
        aggregate: aggregate.into(),
        number,
    })
}

/// What handlers write down, in order.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<(String, u64)>>>);

impl Journal {
    fn write(&self, who: &str, number: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((who.to_owned(), number));
    }

    fn lines(&self) -> Vec<(String, u64)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn of(&self, who: &str) -> Vec<u64> {
        self.lines()
            .into_iter()
            .filter(|line| line.0 == who)
            .map(|line| line.1)
            .collect()
    }
}

/// Waits for what should come at once; a wait without an end fails the test instead.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what)
        .await
        .expect("did not come within 30 s")
}

fn quick_retries(attempts: u32) -> RetryPolicy {
    RetryPolicy::exponential()
        .base(Duration::from_millis(2))
        .max_attempts(attempts)
}

fn journal_of(name: &str, journal: &Journal) -> Subscription {
    let (journal, who) = (journal.clone(), name.to_owned());
    Subscription::from_fn(name, move |event: Event<Noted>, _| {
        journal.write(&who, event.number);
        async { Ok(()) }
    })
}

async fn started(bus: &Arc<dyn EventBus>, subscriptions: impl IntoIterator<Item = Subscription>) {
    for subscription in subscriptions {
        bus.subscribe(subscription).await.expect("subscribed");
    }
    bus.start().await.expect("started");
}

/// P2: the receipt tells the outcome for each subscription, also when asked late.
pub async fn p2_a_receipt_tells_the_outcome_of_each_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let skips = |_: Event<Noted>, _| async { Err(HandlerError::skip("not needed")) };
    let dies = |_: Event<Noted>, _| async { Err(HandlerError::permanent("never")) };
    let subscriptions = [
        journal_of("handles", &journal).priority(Priority::HIGH),
        Subscription::from_fn("skips", skips),
        Subscription::from_fn("dies", dies).priority(Priority::LOW),
    ];
    started(&bus, subscriptions).await;
    let receipt = bus.publish(noted("a", 1)).await.unwrap();
    assert_eq!(receipt.recorded().is_some(), harness.is_durable());
    soon(bus.wait_idle()).await.unwrap();
    let handled = soon(receipt.handled()).await.unwrap();
    let outcomes: Vec<_> = handled
        .outcomes
        .iter()
        .map(|(name, outcome)| (&**name, *outcome))
        .collect();
    let expected = [
        ("handles", DeliveryOutcome::Handled),
        ("skips", DeliveryOutcome::Skipped),
        ("dies", DeliveryOutcome::Dead),
    ];
    assert_eq!(outcomes, expected);
    assert!(!handled.is_success());
}

/// P2: the receipt also follows a delivery that fails first and waits for its retry.
pub async fn p2_a_receipt_follows_a_delivery_through_its_retries(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let fails_twice = |_: Event<Noted>, cx: HandlerContext| async move {
        if cx.attempt() < 3 {
            Err(HandlerError::transient("not yet"))
        } else {
            Ok(())
        }
    };
    started(
        &bus,
        [Subscription::from_fn("third", fails_twice).retry(quick_retries(3))],
    )
    .await;
    let first = bus.publish(noted("a", 1)).await.unwrap();
    let second = bus.publish(noted("a", 2)).await.unwrap();
    assert!(soon(first.handled()).await.unwrap().is_success());
    assert!(soon(second.handled()).await.unwrap().is_success());
}

/// P3: a batch is consecutive, and what one task publishes keeps its order.
pub async fn p3_a_batch_is_consecutive_and_in_order(harness: &dyn BusHarness) {
    let bus = harness.bus(1_000, 4);
    let journal = Journal::default();
    started(&bus, [journal_of("journal", &journal)]).await;
    let publisher = |first: u64| {
        let bus = Arc::clone(&bus);
        async move {
            for batch in 0..10 {
                let number = |n| first + batch * 10 + n;
                let events = (0..10).map(|n| noted("same", number(n))).collect();
                bus.publish_all(events).await.unwrap();
            }
        }
    };
    let tasks: Vec<_> = (0..4).map(|n| tokio::spawn(publisher(n * 1_000))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let seen = journal.of("journal");
    assert_eq!(seen.len(), 400);
    assert!(
        seen.chunks(10)
            .all(|batch| batch.windows(2).all(|pair| pair[1] == pair[0] + 1)),
        "{seen:?}"
    );
    for first in (0..4).map(|n| n * 1_000) {
        let of_one: Vec<_> = seen
            .iter()
            .copied()
            .filter(|n| (first..first + 1_000).contains(n))
            .collect();
        assert!(of_one.is_sorted(), "{of_one:?}");
    }
}

/// P3: a batch larger than the queue is refused with both numbers (volatile), or left to the log.
pub async fn p3_a_batch_larger_than_the_queue(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 2);
    let journal = Journal::default();
    started(&bus, [journal_of("journal", &journal)]).await;
    let batch: Vec<_> = (0..25).map(|n| noted("a", n)).collect();
    match bus.publish_all(batch).await {
        Ok(receipts) => {
            assert!(harness.is_durable());
            assert!(soon(receipts[24].handled()).await.unwrap().is_success());
            assert_eq!(journal.of("journal"), (0..25).collect::<Vec<_>>());
        }
        Err(error) => {
            assert!(!harness.is_durable(), "{error:?}");
            assert!(matches!(
                error,
                PublishError::BatchTooLarge {
                    batch: 25,
                    capacity: 10
                }
            ));
            assert_eq!(journal.lines(), []);
        }
    }
}

/// P4: where there is no room, `try_publish` gives the event back with the capacity, and `publish`
/// waits.
pub async fn p4_a_full_queue_gives_the_event_back_or_makes_publishers_wait(
    harness: &dyn BusHarness,
) {
    let bus = harness.bus(3, 1);
    let gate = Arc::new(Semaphore::new(0));
    let (journal, opened) = (Journal::default(), Arc::clone(&gate));
    let log = journal.clone();
    let waits = move |event: Event<Noted>, _| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            gate.acquire().await?.forget();
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("waits", waits)]).await;
    for number in 0..3 {
        bus.try_publish(noted("a", number)).await.unwrap();
    }
    let error = bus.try_publish(noted("a", 3)).await.unwrap_err();
    assert!(error.to_string().contains('3'), "{error}");
    let PublishError::Full {
        capacity: 3,
        mut events,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(events.len(), 1);
    let late = tokio::spawn({
        let (bus, event) = (Arc::clone(&bus), events.remove(0));
        async move { bus.publish(event).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(!late.is_finished());
    gate.add_permits(4);
    soon(late).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1, 2, 3]);
}

/// P4: a publish that is dropped while it waits for room has touched nothing.
pub async fn p4_a_dropped_publish_has_touched_nothing(harness: &dyn BusHarness) {
    let bus = harness.bus(1, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let (log, opened) = (journal.clone(), Arc::clone(&gate));
    let waits = move |event: Event<Noted>, _| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            gate.acquire().await?.forget();
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("waits", waits)]).await;
    bus.publish(noted("a", 1)).await.unwrap();
    {
        let mut waiting = std::pin::pin!(bus.publish(noted("a", 2)));
        assert!(
            timeout(Duration::from_millis(5), waiting.as_mut())
                .await
                .is_err()
        );
    }
    gate.add_permits(10);
    soon(bus.publish(noted("a", 3))).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [1, 3]);
}

/// P5: a handler that publishes into a full queue, on a bus with one worker, does not wait for
/// itself.
pub async fn p5_a_handler_publishes_into_a_full_queue(harness: &dyn BusHarness) {
    let bus = harness.bus(4, 1);
    let (journal, other) = (Journal::default(), Arc::downgrade(&bus));
    let follows = move |event: Event<Noted>, cx: HandlerContext| {
        let bus = other.upgrade();
        async move {
            let aggregate = event.aggregate().id().to_owned();
            let followed = Followed {
                aggregate,
                number: event.number,
            };
            // The bus itself is just as safe to use from the handler's own task.
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            if event.number.is_multiple_of(2) {
                cx.publish(followed).await?;
            } else {
                bus.publish(NewEvent::new(followed)).await?;
            }
            Ok(())
        }
    };
    let log = journal.clone();
    let hears = move |event: Event<Followed>, _| {
        log.write("heard", event.number);
        async { Ok(()) }
    };
    let subscriptions = [
        Subscription::from_fn("follows", follows),
        Subscription::from_fn("hears", hears),
    ];
    started(&bus, subscriptions).await;
    let feed = async {
        for number in 0..20 {
            bus.publish(noted(format!("a{}", number % 3), number))
                .await
                .unwrap();
        }
    };
    soon(feed).await;
    soon(bus.wait_idle()).await.unwrap();
    let mut heard = journal.of("heard");
    heard.sort_unstable();
    assert_eq!(heard, (0..20).collect::<Vec<_>>());
}

/// P9: what a handler publishes names its cause, and a repeated attempt derives the same ids.
pub async fn p9_published_events_name_their_cause_and_repeat_their_ids(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let ids: Arc<Mutex<BTreeMap<u32, EventId>>> = Arc::default();
    let published = Arc::clone(&ids);
    let follows = move |event: Event<Noted>, cx: HandlerContext| {
        let ids = Arc::clone(&published);
        async move {
            let aggregate = event.aggregate().id().to_owned();
            let receipt = cx
                .publish(Followed {
                    aggregate,
                    number: 1,
                })
                .await?;
            ids.lock().unwrap().insert(cx.attempt(), receipt.event_id());
            if cx.attempt() == 1 {
                Err(HandlerError::transient("after publishing"))
            } else {
                Ok(())
            }
        }
    };
    let heard: Arc<Mutex<Vec<Arc<domain_events::EventEnvelope>>>> = Arc::default();
    let log = Arc::clone(&heard);
    let hears = move |event: Event<Followed>, _| {
        log.lock().unwrap().push(Arc::clone(event.envelope()));
        async { Ok(()) }
    };
    let follows = Subscription::from_fn("follows", follows).retry(quick_retries(2));
    started(&bus, [follows, Subscription::from_fn("hears", hears)]).await;
    let cause = bus.publish(noted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let ids = ids.lock().unwrap();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[&1], ids[&2]);
    let heard = heard.lock().unwrap();
    assert_eq!(heard[0].metadata().causation_id, Some(cause.event_id()));
    assert_eq!(heard[0].metadata().correlation_id, cause.event_id().into());
    // A store finds the second one there; without one nobody remembers ids.
    assert_eq!(heard.len(), if harness.is_durable() { 1 } else { 2 });
}

/// D1, D2: every subscription gets every event once, in order for each aggregate, with any number
/// of workers.
pub async fn d2_order_holds_per_aggregate_with_many_workers(harness: &dyn BusHarness) {
    let bus = harness.bus(64, 8);
    let journals = [Journal::default(), Journal::default()];
    let subscriptions = journals.each_ref().map(|journal| {
        let journal = journal.clone();
        move |event: Event<Noted>, _: HandlerContext| {
            let journal = journal.clone();
            async move {
                // Gives the other workers every chance to overtake.
                for _ in 0..event.number % 4 {
                    tokio::task::yield_now().await;
                }
                journal.write(event.aggregate().id(), event.number);
                Ok(())
            }
        }
    });
    let [first, second] = subscriptions;
    started(
        &bus,
        [
            Subscription::from_fn("first", first),
            Subscription::from_fn("second", second),
        ],
    )
    .await;
    for number in 0..100 {
        for aggregate in 0..7 {
            bus.publish(noted(format!("a{aggregate}"), number))
                .await
                .unwrap();
        }
    }
    soon(bus.wait_idle()).await.unwrap();
    for journal in journals {
        for aggregate in 0..7 {
            assert_eq!(
                journal.of(&format!("a{aggregate}")),
                (0..100).collect::<Vec<_>>()
            );
        }
    }
}

/// D2: order holds under retries: nothing of an aggregate overtakes what failed.
pub async fn d2_order_holds_under_retries(harness: &dyn BusHarness) {
    let bus = harness.bus(500, 4);
    let (steady, shaky) = (Journal::default(), Journal::default());
    let log = shaky.clone();
    let fails_often = move |event: Event<Noted>, cx: HandlerContext| {
        let journal = log.clone();
        async move {
            if event.number.is_multiple_of(3) && cx.attempt() < 3 {
                return Err(HandlerError::transient("again"));
            }
            journal.write(event.aggregate().id(), event.number);
            Ok(())
        }
    };
    let shaky_one = Subscription::from_fn("shaky", fails_often).retry(quick_retries(5));
    let log = steady.clone();
    let notes = move |event: Event<Noted>, _| {
        log.write(event.aggregate().id(), event.number);
        async { Ok(()) }
    };
    started(&bus, [shaky_one, Subscription::from_fn("steady", notes)]).await;
    for number in 0..40 {
        for aggregate in 0..5 {
            bus.publish(noted(format!("a{aggregate}"), number))
                .await
                .unwrap();
        }
    }
    soon(bus.wait_idle()).await.unwrap();
    for aggregate in 0..5 {
        let all: Vec<_> = (0..40).collect();
        assert_eq!(
            shaky.of(&format!("a{aggregate}")),
            all,
            "the failing subscription"
        );
        assert_eq!(
            steady.of(&format!("a{aggregate}")),
            all,
            "the one beside it"
        );
    }
}

/// D2: a retry comes to its end also where many events that its subscription does not want follow.
pub async fn d2_a_retry_ends_before_events_of_other_types(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let log = journal.clone();
    let fails_once = move |event: Event<Noted>, cx: HandlerContext| {
        let journal = log.clone();
        async move {
            if cx.attempt() == 1 {
                return Err(HandlerError::transient("once"));
            }
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(
        &bus,
        [Subscription::from_fn("once", fails_once).retry(quick_retries(2))],
    )
    .await;
    let other = |number| {
        NewEvent::new(Followed {
            aggregate: "a".to_owned(),
            number,
        })
    };
    let batch = std::iter::once(noted("a", 0))
        .chain((1..60).map(other))
        .collect();
    bus.publish_all(batch).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0]);
}

/// D2: deliveries of an aggregate never run side by side for one subscription.
pub async fn d2_deliveries_of_an_aggregate_run_one_at_a_time(harness: &dyn BusHarness) {
    let bus = harness.bus(500, 8);
    let running: Arc<[AtomicUsize; 3]> = Arc::default();
    let overlaps = Arc::new(AtomicU32::new(0));
    let (now, seen) = (Arc::clone(&running), Arc::clone(&overlaps));
    let handler = move |event: Event<Noted>, cx: HandlerContext| {
        let (running, overlaps) = (Arc::clone(&now), Arc::clone(&seen));
        async move {
            let place = &running[event.aggregate().id().len() - 1];
            if place.fetch_add(1, SeqCst) > 0 {
                overlaps.fetch_add(1, SeqCst);
            }
            tokio::task::yield_now().await;
            place.fetch_sub(1, SeqCst);
            if event.number.is_multiple_of(5) && cx.attempt() == 1 {
                return Err(HandlerError::transient("again"));
            }
            Ok(())
        }
    };
    started(
        &bus,
        [Subscription::from_fn("one", handler).retry(quick_retries(3))],
    )
    .await;
    for number in 0..60 {
        for aggregate in ["a", "aa", "aaa"] {
            bus.publish(noted(aggregate, number)).await.unwrap();
        }
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(overlaps.load(SeqCst), 0);
}

/// D3: first attempts run highest priority first, equal ones in order of registration.
pub async fn d3_priority_orders_the_first_attempts_of_an_event(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 4);
    let journal = Journal::default();
    let subscriptions = [
        journal_of("low", &journal).priority(Priority::LOW),
        journal_of("normal-1", &journal),
        journal_of("high", &journal).priority(Priority::HIGH),
        journal_of("normal-2", &journal),
    ];
    started(&bus, subscriptions).await;
    for number in 0..10 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let lines = journal.lines();
    assert_eq!(lines.len(), 40);
    for (number, round) in lines.chunks(4).enumerate() {
        let expected =
            ["high", "normal-1", "normal-2", "low"].map(|who| (who.to_owned(), number as u64));
        assert_eq!(round, expected);
    }
}

/// D3: priority orders, it never gates: a failed first attempt keeps nobody waiting.
pub async fn d3_a_failed_attempt_does_not_gate_lower_priorities(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let log = journal.clone();
    let fails_first = move |event: Event<Noted>, cx: HandlerContext| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            if cx.attempt() == 1 && event.number == 0 {
                return Err(HandlerError::transient("first"));
            }
            gate.acquire().await?.forget();
            journal.write("high", event.number);
            Ok(())
        }
    };
    let high = Subscription::from_fn("high", fails_first)
        .retry(quick_retries(3))
        .priority(Priority::HIGH);
    started(&bus, [high, journal_of("low", &journal)]).await;
    for number in 0..3 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    let all_low = async {
        while journal.of("low").len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    soon(all_low).await;
    assert!(journal.of("high").is_empty());
    gate.add_permits(3);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("high"), [0, 1, 2]);
}

/// D7: an event that nobody wants is done when it is accepted.
pub async fn d7_an_event_without_a_subscription_is_done_at_once(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 1);
    started(&bus, []).await;
    for number in 0..10 {
        let receipt = soon(bus.publish(noted("a", number))).await.unwrap();
        assert_eq!(soon(receipt.handled()).await.unwrap().outcomes, []);
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(bus.statistics().finished, 10);
}

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

/// F3: other aggregates pass by a delivery that waits for its retry, and a long wait does not
/// delay a short one.
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
    assert_eq!(journal.of("seen"), [0, 3]);
    soon(bus.stop(Duration::ZERO)).await.unwrap();
}

/// L1: publishing before the start and starting twice are typed errors, and every worker runs when
/// `start` returns.
pub async fn l1_misuse_of_the_life_cycle_is_a_typed_error(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 3);
    let early = bus.publish(noted("a", 1)).await;
    assert!(matches!(early, Err(PublishError::NotStarted)));
    bus.start().await.unwrap();
    assert_eq!(bus.statistics().workers, 3);
    assert!(bus.statistics().running);
    assert!(matches!(bus.start().await, Err(StartError::AlreadyStarted)));
    bus.stop(Duration::from_secs(1)).await.unwrap();
    assert!(matches!(
        bus.publish(noted("a", 1)).await,
        Err(PublishError::Stopped)
    ));
}

/// L2: a stop finishes what is in memory, reports it, and may be repeated.
pub async fn l2_a_stop_drains_and_reports(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (gate, journal) = (Arc::new(Semaphore::new(0)), Journal::default());
    let (opened, log) = (Arc::clone(&gate), journal.clone());
    let waits = move |event: Event<Noted>, _| {
        let (gate, journal) = (Arc::clone(&opened), log.clone());
        async move {
            gate.acquire().await?.forget();
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("waits", waits)]).await;
    for number in 0..5 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    let stopping = tokio::spawn({
        let bus = Arc::clone(&bus);
        async move { bus.stop(Duration::from_secs(20)).await.unwrap() }
    });
    let refused = async {
        while !matches!(
            bus.try_publish(noted("b", 9)).await,
            Err(PublishError::Stopped)
        ) {
            tokio::task::yield_now().await;
        }
    };
    soon(refused).await;
    gate.add_permits(100);
    let report = soon(stopping).await.unwrap();
    assert!(report.drained >= 5, "{report:?}");
    assert_eq!(
        (report.abandoned, report.left_in_log, report.cut_off),
        (0, 0, 0)
    );
    assert_eq!(report.unsaved, None);
    assert!(journal.of("seen").starts_with(&[0, 1, 2, 3, 4]));
    let again = soon(bus.stop(Duration::from_secs(1))).await.unwrap();
    assert_eq!(again, domain_events::StopReport::default());
}

/// L2: a handler that is still running at the deadline is cut off, and its receipt says so.
pub async fn l2_what_runs_at_the_deadline_is_cut_off(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let began = Arc::new(Semaphore::new(0));
    let begin = Arc::clone(&began);
    let never = move |_: Event<Noted>, _| {
        begin.add_permits(1);
        std::future::pending()
    };
    started(&bus, [Subscription::from_fn("never", never)]).await;
    let first = bus.publish(noted("a", 1)).await.unwrap();
    let second = bus.publish(noted("a", 2)).await.unwrap();
    soon(began.acquire()).await.unwrap().forget();
    let report = soon(bus.stop(Duration::from_millis(10))).await.unwrap();
    assert_eq!(report.cut_off, 1);
    assert_eq!(report.left_in_log + report.abandoned, 2, "{report:?}");
    assert_eq!(report.left_in_log > 0, harness.is_durable());
    for receipt in [first, second] {
        let handled = soon(receipt.handled()).await.unwrap();
        assert_eq!(handled.outcomes[0].1, DeliveryOutcome::Stopped);
    }
}

/// L4: subscribing and unsubscribing work while events pass.
pub async fn l4_subscriptions_come_and_go(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    started(&bus, [journal_of("first", &journal)]).await;
    bus.publish(noted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    bus.subscribe(journal_of("second", &journal)).await.unwrap();
    let taken = bus.subscribe(journal_of("second", &journal)).await;
    assert!(matches!(taken, Err(SubscribeError::DuplicateName(name)) if &*name == "second"));
    bus.publish(noted("a", 2)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert!(soon(bus.unsubscribe("first")).await);
    assert!(!soon(bus.unsubscribe("first")).await);
    bus.publish(noted("a", 3)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("first"), [1, 2]);
    assert_eq!(journal.of("second"), [2, 3]);
}

/// L4: from inside a handler, whatever would wait for the handler is a typed error.
pub async fn l4_waiting_from_inside_a_handler_is_a_typed_error(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let inside = Arc::downgrade(&bus);
    let results: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&results);
    let waits = move |event: Event<Noted>, cx: HandlerContext| {
        let (bus, results) = (inside.upgrade(), Arc::clone(&log));
        async move {
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            let idle = bus.wait_idle().await;
            let stop = bus.stop(Duration::ZERO).await;
            let aggregate = event.aggregate().id().to_owned();
            let handled = cx
                .publish(Followed {
                    aggregate,
                    number: 1,
                })
                .await?
                .handled()
                .await;
            let mut results = results.lock().unwrap();
            results.push(format!("{}", idle == Err(WaitError::InsideHandler)));
            results.push(format!("{}", matches!(stop, Err(StopError::InsideHandler))));
            results.push(format!("{}", handled == Err(WaitError::InsideHandler)));
            Ok(())
        }
    };
    let hears = |_: Event<Followed>, _| async { Ok(()) };
    started(
        &bus,
        [
            Subscription::from_fn("waits", waits),
            Subscription::from_fn("hears", hears),
        ],
    )
    .await;
    bus.publish(noted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(*results.lock().unwrap(), ["true", "true", "true"]);
}

/// N1: at a quiet moment the figures add up.
pub async fn n1_figures_add_up_at_a_quiet_moment(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 4);
    let mixed = |event: Event<Noted>, cx: HandlerContext| async move {
        match event.number % 4 {
            0 => Err(HandlerError::skip("not needed")),
            1 => Err(HandlerError::permanent("never")),
            2 if cx.attempt() == 1 => Err(HandlerError::transient("once")),
            _ => Ok(()),
        }
    };
    started(
        &bus,
        [Subscription::from_fn("mixed", mixed).retry(quick_retries(2))],
    )
    .await;
    for number in 0..200 {
        bus.publish(noted(format!("a{}", number % 9), number))
            .await
            .unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_eq!(
        (
            figures.accepted,
            figures.finished,
            figures.in_flight,
            figures.lag
        ),
        (200, 200, 0, 0)
    );
    let mixed = &figures.subscriptions[0];
    assert_eq!(
        (mixed.handled, mixed.skipped, mixed.dead, mixed.waiting),
        (100, 50, 50, 0)
    );
    assert_eq!((mixed.failed_attempts, mixed.retries), (100, 50));
    assert_eq!(mixed.publish_to_handled.count, 100);
}

/// Writes one test for each promise of an event bus, run against the given
/// [`BusHarness`](crate::event_bus::BusHarness).
///
/// The calling crate needs `tokio` with its macros and its multi-thread runtime.
#[macro_export]
macro_rules! event_bus_conformance {
    ($harness:expr) => {
        $crate::event_bus_conformance! { $harness =>
            p2_a_receipt_tells_the_outcome_of_each_subscription
            p2_a_receipt_follows_a_delivery_through_its_retries
            p3_a_batch_is_consecutive_and_in_order
            p3_a_batch_larger_than_the_queue
            p4_a_full_queue_gives_the_event_back_or_makes_publishers_wait
            p4_a_dropped_publish_has_touched_nothing
            p5_a_handler_publishes_into_a_full_queue
            p9_published_events_name_their_cause_and_repeat_their_ids
            d2_order_holds_per_aggregate_with_many_workers
            d2_order_holds_under_retries
            d2_a_retry_ends_before_events_of_other_types
            d2_deliveries_of_an_aggregate_run_one_at_a_time
            d3_priority_orders_the_first_attempts_of_an_event
            d3_a_failed_attempt_does_not_gate_lower_priorities
            d7_an_event_without_a_subscription_is_done_at_once
            f1_errors_panics_and_timeouts_stay_in_their_own_delivery
            f2_each_verdict_has_its_consequence
            f3_a_long_wait_delays_nobody_else
            l1_misuse_of_the_life_cycle_is_a_typed_error
            l2_a_stop_drains_and_reports
            l2_what_runs_at_the_deadline_is_cut_off
            l4_subscriptions_come_and_go
            l4_waiting_from_inside_a_handler_is_a_typed_error
            n1_figures_add_up_at_a_quiet_moment
        }
    };
    ($harness:expr => $($promise:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                $crate::event_bus::$promise(&$harness).await;
            }
        )+
    };
}
