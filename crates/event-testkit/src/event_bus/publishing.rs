//! What publishers are promised: receipts, order, causation.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    CorrelationId, DeliveryOutcome, DomainEvent, Event, EventEnvelope, EventId, HandlerContext,
    HandlerError, NewEvent, Priority, PublishError, Subscription,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Followed, HOUR, Journal, Noted, answering, followed, gated, is_pending, journal_of,
    noted, outcome, outcomes, quick_retries, soon, started,
};

/// P2: the receipt tells the outcome for each subscription: the failure of one is not lost by the
/// success of another.
pub async fn p2_a_receipt_tells_the_outcome_of_each_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let subscriptions = [
        answering("dies", &journal, |_, _| {
            Err(HandlerError::permanent("never"))
        })
        .priority(Priority::HIGH),
        answering("skips", &journal, |_, _| {
            Err(HandlerError::skip("not needed"))
        }),
        journal_of("handles", &journal).priority(Priority::LOW),
    ];
    started(&bus, subscriptions).await;
    let receipt = bus.publish(noted("a", 1)).await.unwrap();
    assert_eq!(receipt.recorded().is_some(), harness.is_durable());
    let expected = [
        ("dies", DeliveryOutcome::Dead),
        ("skips", DeliveryOutcome::Skipped),
        ("handles", DeliveryOutcome::Handled),
    ];
    assert_eq!(
        outcomes(&receipt).await,
        expected.map(|(name, outcome)| (name.to_owned(), outcome))
    );
    assert!(!soon(receipt.handled()).await.unwrap().is_success());
}

/// P2: the receipt also follows a delivery that fails first and waits for its retry; a retry that
/// succeeds finishes the event.
pub async fn p2_a_receipt_follows_a_delivery_through_its_retries(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let third = answering("third", &Journal::default(), |_, attempt| {
        if attempt < 3 {
            return Err(HandlerError::transient("not yet"));
        }
        Ok(())
    });
    started(&bus, [third.retry(quick_retries(3))]).await;
    let first = bus.publish(noted("a", 1)).await.unwrap();
    let second = bus.publish(noted("a", 2)).await.unwrap();
    assert!(soon(first.handled()).await.unwrap().is_success());
    assert!(soon(second.handled()).await.unwrap().is_success());
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(bus.statistics().subscriptions[0].waiting, 0);
}

/// P2: a receipt may be asked by several at once, be given up, and be asked late and again.
pub async fn p2_a_receipt_may_be_asked_late_and_several_times(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    let receipt = Arc::new(bus.publish(noted("a", 0)).await.unwrap());
    let ask = || {
        let receipt = Arc::clone(&receipt);
        tokio::spawn(async move { receipt.handled().await })
    };
    let asked = [ask(), ask()];
    let mut given_up = Box::pin(receipt.handled());
    assert!(is_pending(&mut given_up).await);
    drop(given_up);
    gate.add_permits(100);
    for asked in asked {
        assert!(soon(asked).await.unwrap().unwrap().is_success());
    }
    for number in 1..20 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(outcome(&receipt).await, DeliveryOutcome::Handled);
    }
}

/// P2: that the bus stopped is an outcome, beside those that came before, also for who waits.
pub async fn p2_a_stop_is_an_outcome_beside_the_others(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let hangs = gated(&journal, &Arc::new(Semaphore::new(0)));
    let quick = journal_of("quick", &journal).priority(Priority::HIGH);
    started(&bus, [hangs, quick]).await;
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    let mut waiting = Box::pin(receipt.handled());
    assert!(is_pending(&mut waiting).await);
    journal.has(1, "began").await;
    soon(bus.stop(Duration::ZERO)).await.unwrap();
    soon(waiting).await.unwrap();
    let expected = [
        ("quick".to_owned(), DeliveryOutcome::Handled),
        ("waits".to_owned(), DeliveryOutcome::Stopped),
    ];
    assert_eq!(outcomes(&receipt).await, expected);
}

/// P3: a batch is consecutive also beside other publishers, and what one task publishes keeps its
/// order.
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

/// P3: the order of each task's events holds also where publishers wait for room, however they
/// publish.
pub async fn p3_order_holds_while_publishers_wait_for_room(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 4);
    let journal = Journal::default();
    started(&bus, [journal_of("journal", &journal)]).await;
    let publisher = |first: u64| {
        let bus = Arc::clone(&bus);
        async move {
            for number in first..first + 40 {
                let event = noted("same", number);
                match number % 3 {
                    0 => drop(bus.publish(event).await.unwrap()),
                    1 => drop(bus.publish_timeout(event, HOUR).await.unwrap()),
                    _ => drop(bus.publish_all(vec![event]).await.unwrap()),
                }
            }
        }
    };
    let firsts = [0, 1_000, 2_000];
    for task in firsts.map(|first| tokio::spawn(publisher(first))) {
        soon(task).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let seen = journal.of("journal");
    assert_eq!(seen.len(), 120);
    for first in firsts {
        let own = seen.iter().copied();
        let own: Vec<_> = own
            .filter(|number| number / 1_000 == first / 1_000)
            .collect();
        assert_eq!(own, (first..first + 40).collect::<Vec<_>>());
    }
}

/// P3: a batch waits for room for all of it, and nothing of it comes before.
pub async fn p3_a_batch_waits_for_room_as_a_whole(harness: &dyn BusHarness) {
    let bus = harness.bus(3, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let mut batch = bus.publish_all((1..4).map(|n| noted(format!("b{n}"), n)).collect());
    assert!(is_pending(&mut batch).await);
    assert_eq!(bus.statistics().accepted, 1);
    gate.add_permits(4);
    assert_eq!(soon(batch).await.unwrap().len(), 3);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1, 2, 3]);
}

/// P3: a batch larger than the queue is refused with both numbers (volatile), or left to the log.
pub async fn p3_a_batch_larger_than_the_queue(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 2);
    let journal = Journal::default();
    started(&bus, [journal_of("journal", &journal)]).await;
    let batch: Vec<_> = (0..25).map(|n| noted("a", n)).collect();
    match soon(bus.publish_all(batch)).await {
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

/// An event that no bus accepts.
#[derive(Serialize, Deserialize)]
struct Nameless;

impl DomainEvent for Nameless {
    const EVENT_TYPE: &'static str = "";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed("a")
    }
}

/// P3: where one event of a batch cannot be published none is, nothing is dropped silently, and no
/// room is lost.
pub async fn p3_a_refused_batch_leaves_nothing(harness: &dyn BusHarness) {
    let bus = harness.bus(3, 1);
    let journal = Journal::default();
    started(&bus, [journal_of("journal", &journal)]).await;
    for _ in 0..5 {
        let batch = vec![noted("a", 8), noted("a", 9), NewEvent::new(Nameless)];
        let refused = soon(bus.publish_all(batch)).await.map(drop);
        assert!(matches!(refused, Err(PublishError::Name(_))), "{refused:?}");
    }
    assert_eq!(bus.publish_all(Vec::new()).await.unwrap().len(), 0);
    assert_eq!(bus.statistics().accepted, 0);
    soon(bus.publish_all((0..3).map(|n| noted("a", n)).collect()))
        .await
        .unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("journal"), [0, 1, 2]);
}

/// Subscribes to what follows, and keeps the envelopes.
fn keeps(kept: &Arc<Mutex<Vec<Arc<EventEnvelope>>>>) -> Subscription {
    let kept = Arc::clone(kept);
    Subscription::from_fn("keeps", move |event: Event<Followed>, _| {
        kept.lock().unwrap().push(Arc::clone(event.envelope()));
        async { Ok(()) }
    })
}

/// P9: what a handler publishes names its cause, and a repeated attempt derives the same ids.
pub async fn p9_published_events_name_their_cause_and_repeat_their_ids(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let ids: Arc<Mutex<Vec<EventId>>> = Arc::default();
    let published = Arc::clone(&ids);
    let follows = move |_: Event<Noted>, cx: HandlerContext| {
        let ids = Arc::clone(&published);
        async move {
            let one = cx.publish(followed("a", 1)).await?;
            let batch = cx
                .publish_all(vec![followed("b", 2), followed("c", 3)])
                .await?;
            let receipts = std::iter::once(one).chain(batch);
            ids.lock()
                .unwrap()
                .extend(receipts.map(|receipt| receipt.event_id()));
            if cx.attempt() == 1 {
                return Err(HandlerError::transient("after publishing"));
            }
            Ok(())
        }
    };
    let heard = Arc::default();
    let follows = Subscription::from_fn("follows", follows).retry(quick_retries(2));
    started(&bus, [follows, keeps(&heard)]).await;
    let cause = bus.publish(noted("a", 1)).await.unwrap().event_id();
    soon(bus.wait_idle()).await.unwrap();
    let derived = [1, 2, 3].map(|number| EventId::derived(cause, "follows", number));
    assert_eq!(*ids.lock().unwrap(), [derived, derived].concat());
    let heard = heard.lock().unwrap();
    for envelope in &*heard {
        assert_eq!(envelope.metadata().causation_id, Some(cause));
        assert_eq!(envelope.metadata().correlation_id, cause.into());
    }
    // A store finds the repeated ones there; without one nobody remembers ids.
    assert_eq!(heard.len(), if harness.is_durable() { 3 } else { 6 });
}

/// P9: the correlation runs through a chain of events, each names the one before as its cause, and
/// what the publisher says itself is kept.
pub async fn p9_a_chain_keeps_its_correlation(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let follows = |_: Event<Noted>, cx: HandlerContext| async move {
        cx.publish(followed("a", 1)).await?;
        Ok(())
    };
    let (own_id, own_chain) = (EventId::new(), CorrelationId::from(EventId::new()));
    let goes_on = move |event: Event<Followed>, cx: HandlerContext| async move {
        let next = followed("a", event.number + 1);
        match event.number {
            1 => drop(cx.publish(next).await?),
            2 => drop(
                cx.publish(next.id(own_id).correlation_id(own_chain))
                    .await?,
            ),
            _ => {}
        }
        Ok(())
    };
    let heard = Arc::default();
    let subscriptions = [
        Subscription::from_fn("follows", follows),
        keeps(&heard).priority(Priority::HIGH),
        Subscription::from_fn("goes-on", goes_on),
    ];
    started(&bus, subscriptions).await;
    let chain = CorrelationId::from(EventId::new());
    let first = noted("a", 0).correlation_id(chain);
    let first = bus.publish(first).await.unwrap().event_id();
    soon(bus.wait_idle()).await.unwrap();
    let heard = heard.lock().unwrap();
    let chains: Vec<_> = heard
        .iter()
        .map(|it| it.metadata().correlation_id)
        .collect();
    assert_eq!(chains, [chain, chain, own_chain]);
    let causes: Vec<_> = heard.iter().map(|it| it.metadata().causation_id).collect();
    assert_eq!(
        causes,
        [Some(first), Some(heard[0].id()), Some(heard[1].id())]
    );
    assert_eq!(heard[2].id(), own_id);
}
