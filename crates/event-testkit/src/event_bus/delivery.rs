//! What subscribers are promised: everything, in order, by priority.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
};

use domain_events::{Event, HandlerContext, HandlerError, NewEvent, Priority, Subscription};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Followed, Journal, Noted, journal_of, noted, quick_retries, soon, started,
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
