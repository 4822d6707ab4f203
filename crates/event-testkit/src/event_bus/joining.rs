//! Subscriptions that come and go while the bus runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, Event, HandlerContext, HandlerError, SubscribeError, Subscription,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, HOUR, Journal, Noted, gated, is_pending, journal_of, noted, others_run, outcome,
    outcomes, soon, started,
};

/// L4: subscribing and unsubscribing work at any time; what was published before a subscription came
/// was done without it, and does not come to it later.
pub async fn l4_subscriptions_come_and_go(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    started(&bus, []).await;
    let before = bus.publish(noted("a", 0)).await.unwrap();
    assert_eq!(outcomes(&before).await, []);
    bus.subscribe(journal_of("first", &journal)).await.unwrap();
    bus.publish(noted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    bus.subscribe(journal_of("second", &journal).isolated(1))
        .await
        .unwrap();
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

/// L4: before the start, subscriptions come and go as well, and names are given once.
pub async fn l4_subscriptions_come_and_go_before_the_start(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    bus.subscribe(journal_of("goes", &journal)).await.unwrap();
    bus.subscribe(journal_of("stays", &journal)).await.unwrap();
    let taken = bus
        .subscribe(journal_of("stays", &journal).isolated(1))
        .await;
    assert!(
        matches!(taken, Err(SubscribeError::DuplicateName(_))),
        "{taken:?}"
    );
    assert!(bus.unsubscribe("goes").await && !bus.unsubscribe("goes").await);
    started(&bus, [journal_of("comes", &journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.lines().len(), 2);
    assert_eq!(
        (journal.of("stays"), journal.of("comes")),
        (vec![0], vec![0])
    );
}

/// L4: `unsubscribe` returns after the last running attempt; what waited for it is not made, and
/// its events are done.
async fn returns_after_the_last_attempt(harness: &dyn BusHarness, isolated: bool) {
    let bus = harness.bus(3, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let waits = gated(&journal, &gate);
    started(&bus, [if isolated { waits.isolated(1) } else { waits }]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let queued = bus.publish(noted("a", 1)).await.unwrap();
    journal.has(1, "began").await;
    let mut goes = bus.unsubscribe("waits");
    assert!(is_pending(&mut goes).await);
    others_run().await;
    assert!(is_pending(&mut goes).await, "the attempt still runs");
    gate.add_permits(10);
    assert!(soon(goes).await);
    assert_eq!(journal.of("seen"), [0]);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(outcome(&queued).await, DeliveryOutcome::Stopped);
    let batch = (2..5).map(|number| noted("a", number)).collect();
    soon(bus.publish_all(batch)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("began"), [0]);
}

/// L4: `unsubscribe` returns after the last running attempt.
pub async fn l4_unsubscribing_returns_after_the_last_attempt(harness: &dyn BusHarness) {
    returns_after_the_last_attempt(harness, false).await;
}

/// L4: so it does for a subscription with a pipeline of its own.
pub async fn l4_unsubscribing_ends_a_pipeline_of_its_own(harness: &dyn BusHarness) {
    returns_after_the_last_attempt(harness, true).await;
}

/// L4, L3: a subscription that goes while an attempt runs, first or later, which then fails, leaves
/// no retry, no work to wait for and no taken room behind.
pub async fn l4_who_goes_during_a_failing_attempt_leaves_nothing(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let (log, opened) = (journal.clone(), Arc::clone(&gate));
    let fails = move |event: Event<Noted>, cx: HandlerContext| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            if event.number == 0 && cx.attempt() == 1 {
                return Err(HandlerError::retry_after(Duration::ZERO, "at once"));
            }
            journal.write("began", event.number);
            gate.acquire().await?.forget();
            Err(HandlerError::retry_after(HOUR, "later"))
        }
    };
    started(&bus, [Subscription::from_fn("fails", fails)]).await;
    let mut receipts = Vec::new();
    for number in 0..2 {
        let event = noted(format!("a{number}"), number);
        receipts.push(bus.publish(event).await.unwrap());
    }
    journal.has(2, "began").await;
    let mut goes = bus.unsubscribe("fails");
    assert!(is_pending(&mut goes).await);
    gate.add_permits(2);
    assert!(soon(goes).await);
    soon(bus.wait_idle()).await.unwrap();
    for receipt in receipts {
        assert_eq!(outcome(&receipt).await, DeliveryOutcome::Stopped);
    }
    let batch = (2..4).map(|number| noted("a", number)).collect();
    soon(bus.publish_all(batch)).await.unwrap();
}

/// L4: subscriptions that come and go beside busy publishers cost the others nothing, and see no
/// gap and no disorder while they are there.
pub async fn l4_coming_and_going_costs_the_others_nothing(harness: &dyn BusHarness) {
    let bus = harness.bus(20, 3);
    let (journal, done) = (Journal::default(), Arc::new(AtomicBool::new(false)));
    started(&bus, [journal_of("steady", &journal)]).await;
    let comes_and_goes = tokio::spawn({
        let (bus, journal, done) = (Arc::clone(&bus), journal.clone(), Arc::clone(&done));
        async move {
            let mut rounds = 0;
            while rounds < 3 || !done.load(SeqCst) {
                let name = format!("round-{rounds}");
                bus.subscribe(journal_of(&name, &journal)).await.unwrap();
                others_run().await;
                assert!(bus.unsubscribe(&name).await);
                rounds += 1;
            }
            rounds
        }
    });
    for number in 0..200 {
        soon(bus.publish(noted("a", number))).await.unwrap();
    }
    done.store(true, SeqCst);
    let rounds: u64 = soon(comes_and_goes).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("steady"), (0..200).collect::<Vec<_>>());
    for round in 0..rounds {
        let seen = journal.of(&format!("round-{round}"));
        assert!(
            seen.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{seen:?}"
        );
    }
}

/// L4: from inside its handler, a subscription goes without waiting for itself; the running attempt
/// is its last, and another may have the name.
pub async fn l4_a_handler_removes_its_own_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, inside) = (Journal::default(), Arc::downgrade(&bus));
    let log = journal.clone();
    let goes = move |event: Event<Noted>, _: HandlerContext| {
        let (bus, journal) = (inside.upgrade(), log.clone());
        async move {
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            assert!(bus.unsubscribe("goes").await);
            journal.write("goes", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("goes", goes)]).await;
    for number in 0..5 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("goes"), [0]);
    if !harness.is_durable() {
        bus.subscribe(journal_of("goes", &journal)).await.unwrap();
        bus.publish(noted("a", 5)).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
        assert_eq!(journal.of("goes"), [0, 5]);
    }
}
