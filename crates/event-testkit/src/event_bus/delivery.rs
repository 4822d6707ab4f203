//! What subscribers are promised: everything, in order, by priority.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
};

use domain_events::{
    DomainEvent, Event, EventEnvelope, HandlerContext, HandlerError, NewEvent, Priority,
    Subscription,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Fate, Journal, Noted, answering, followed, gated, journal_of, noted, outcomes,
    quick_retries, soon, started,
};

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

/// D2: order holds under retries, exactly where something fails: nothing of an aggregate overtakes
/// it.
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
    let once = answering("once", &journal, |_, attempt| {
        if attempt == 1 {
            return Err(HandlerError::transient("once"));
        }
        Ok(())
    });
    started(&bus, [once.retry(quick_retries(2))]).await;
    let batch = std::iter::once(noted("a", 0))
        .chain((1..60).map(|number| followed("a", number)))
        .collect();
    bus.publish_all(batch).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("once"), [0, 0]);
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
    journal.has(3, "low").await;
    assert!(journal.of("high").is_empty());
    gate.add_permits(3);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("high"), [0, 1, 2]);
}

/// D7: an event that nobody wants is done when it is accepted, and does not stay unfinished.
pub async fn d7_an_event_without_a_subscription_is_done_at_once(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 1);
    started(&bus, []).await;
    for number in 0..10 {
        let receipt = soon(bus.publish(noted("a", number))).await.unwrap();
        assert_eq!(soon(receipt.handled()).await.unwrap().outcomes, []);
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_eq!((figures.finished, figures.in_flight), (10, 0));
}

/// An event of another kind of aggregate.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.shelved", aggregate = "shelf", id = aggregate)]
struct Shelved {
    aggregate: String,
}

/// D2: an aggregate is a type and an id: another type's with the same id is not waited for.
pub async fn d2_an_aggregate_is_a_type_and_an_id(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let shelved = |_: Event<Shelved>, _| async { Ok(()) };
    let shelved = Subscription::from_fn("shelved", shelved);
    started(&bus, [gated(&journal, &gate), shelved]).await;
    bus.publish(noted("same", 0)).await.unwrap();
    journal.has(1, "began").await;
    let aggregate = "same".to_owned();
    let other = bus.publish(NewEvent::new(Shelved { aggregate })).await;
    assert_eq!(outcomes(&other.unwrap()).await.len(), 1);
    gate.add_permits(1);
    soon(bus.wait_idle()).await.unwrap();
}

/// What the attempts of one subscription looked like.
#[derive(Default)]
struct Observed {
    /// Numbers by aggregate, an entry an attempt, and whether it succeeded.
    attempts: BTreeMap<String, Vec<(u64, bool)>>,
    running: BTreeSet<String>,
    overlaps: u32,
}

/// A subscription whose attempts fail, panic and take turns by chance, and are observed.
fn observed(name: &str, fate: Fate, failures: u64) -> (Subscription, Arc<Mutex<Observed>>) {
    let observed = Arc::new(Mutex::new(Observed::default()));
    let (log, who) = (Arc::clone(&observed), name.to_owned());
    let handler = move |event: Arc<EventEnvelope>, cx: HandlerContext| {
        let (observed, who) = (Arc::clone(&log), who.clone());
        async move {
            let number = event.typed::<Noted>()?.number;
            let aggregate = event.aggregate().id().to_owned();
            let question = (who, number, cx.attempt());
            {
                let mut observed = observed.lock().unwrap();
                let alone = observed.running.insert(aggregate.clone());
                observed.overlaps += u32::from(!alone);
            }
            for _ in 0..fate.below(4, (&question, "turns")) {
                tokio::task::yield_now().await;
            }
            let fails = cx.attempt() < 4 && fate.below(100, (&question, "end")) < failures;
            {
                let mut observed = observed.lock().unwrap();
                observed.running.remove(&aggregate);
                let attempts = observed.attempts.entry(aggregate).or_default();
                attempts.push((number, !fails));
            }
            assert!(!fails || fate.below(3, (&question, "how")) > 0, "by chance");
            if fails {
                return Err(HandlerError::transient("by chance"));
            }
            Ok(())
        }
    };
    (Subscription::to_all(name, handler), observed)
}

/// D1, D2: many publishers, subscriptions and workers, errors and panics by chance: each event is
/// handled once by each, in one order for each aggregate, one at a time, and a failed one before
/// anything later of its aggregate.
pub async fn d2_order_holds_among_many_with_failures_by_chance(harness: &dyn BusHarness) {
    let (bus, fate) = (harness.bus(50, 4), Fate::fresh());
    let plan = [("steady", 0), ("shaky", 25), ("isolated", 25), ("low", 10)];
    let (subscriptions, all): (Vec<_>, Vec<_>) = plan
        .map(|(name, failures)| {
            let (subscription, seen) = observed(name, fate, failures);
            let subscription = subscription.retry(quick_retries(4));
            let subscription = match name {
                "isolated" => subscription.isolated(3),
                "low" => subscription.priority(Priority::LOW),
                _ => subscription,
            };
            (subscription, seen)
        })
        .into_iter()
        .unzip();
    started(&bus, subscriptions).await;
    let publisher = |first: u64| {
        let bus = Arc::clone(&bus);
        async move {
            for number in first..first + 60 {
                let aggregate = fate.below(6, (number, "aggregate"));
                let event = noted(format!("a{aggregate}"), number);
                bus.publish(event).await.unwrap();
            }
        }
    };
    let firsts = [0, 1_000, 2_000, 3_000];
    for task in firsts.map(|first| tokio::spawn(publisher(first))) {
        soon(task).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let handled = |observed: &Observed| {
        let order = observed.attempts.iter().map(|(aggregate, attempts)| {
            let done = attempts.iter().filter(|attempt| attempt.1);
            (
                aggregate.clone(),
                done.map(|attempt| attempt.0).collect::<Vec<_>>(),
            )
        });
        order.collect::<BTreeMap<_, _>>()
    };
    let expected = handled(&all[0].lock().unwrap());
    assert_eq!(expected.values().map(Vec::len).sum::<usize>(), 240);
    for first in firsts {
        for order in expected.values() {
            let own = order
                .iter()
                .filter(|&&number| number / 1_000 == first / 1_000);
            assert!(own.is_sorted(), "one publisher's events: {order:?}");
        }
    }
    for ((name, _), observed) in plan.iter().zip(&all) {
        let observed = observed.lock().unwrap();
        assert_eq!(observed.overlaps, 0, "{name}");
        assert_eq!(handled(&observed), expected, "{name}");
        for attempts in observed.attempts.values() {
            let mut order: Vec<_> = attempts.iter().map(|attempt| attempt.0).collect();
            order.dedup();
            let handled = attempts.iter().filter(|attempt| attempt.1).map(|it| it.0);
            assert_eq!(
                order,
                handled.collect::<Vec<_>>(),
                "{name}: an event overtook"
            );
        }
    }
}
