//! What publishers are promised: receipts, order, room, causation.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, Event, EventEnvelope, EventId, HandlerContext, HandlerError, NewEvent,
    Priority, PublishError, Subscription,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{
    BusHarness, Followed, Journal, Noted, gated, journal_of, noted, quick_retries, soon, started,
};

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
    let journal = Journal::default();
    started(&bus, [gated(&journal, &gate)]).await;
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
    started(&bus, [gated(&journal, &gate)]).await;
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
    let heard: Arc<Mutex<Vec<Arc<EventEnvelope>>>> = Arc::default();
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
