//! Pausing and resuming a subscription.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{
    DeadLetterQuery, DeliveryOutcome, Event, FailurePolicy, HandlerContext, HandlerError, Ordering,
    PauseReason, Priority, PublishError, Subscription,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Fate, HOUR, Journal, Noted, answering, followed, gated, hears, is_pending,
    journal_of, noted, others_run, outcome, outcomes, quick_retries, soon, started,
};

/// D3: a paused subscription is passed over; resumed, it goes on where it stopped and in order, by
/// itself.
pub async fn d3_a_paused_subscription_is_passed_over_and_goes_on_in_order(
    harness: &dyn BusHarness,
) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let high = journal_of("high", &journal).priority(Priority::HIGH);
    let own = journal_of("own", &journal).isolated(1);
    started(&bus, [high, own, journal_of("low", &journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert!(soon(bus.pause("high")).await && soon(bus.pause("own")).await);
    for number in 1..7 {
        bus.publish(noted(format!("a{}", number % 2), number))
            .await
            .unwrap();
    }
    journal.has(7, "low").await;
    others_run().await;
    assert_eq!((journal.of("high"), journal.of("own")), (vec![0], vec![0]));
    assert!(soon(bus.resume("high")).await && soon(bus.resume("own")).await);
    bus.publish(noted("a1", 7)).await.unwrap();
    bus.publish(noted("a0", 8)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    for name in ["high", "own", "low"] {
        let seen = journal.of(name);
        let even = seen.iter().filter(|number| **number % 2 == 0);
        assert_eq!(even.copied().collect::<Vec<_>>(), [0, 2, 4, 6, 8], "{name}");
        let odd = seen.iter().filter(|number| **number % 2 == 1);
        assert_eq!(odd.copied().collect::<Vec<_>>(), [1, 3, 5, 7], "{name}");
    }
}

/// P2: that a delivery is paused is an outcome at once, and it has another one later.
pub async fn p2_a_paused_delivery_has_another_outcome_later(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    started(
        &bus,
        [
            journal_of("paused", &journal),
            journal_of("other", &journal),
        ],
    )
    .await;
    assert!(soon(bus.pause("paused")).await);
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    for _ in 0..2 {
        let mut outcomes = outcomes(&receipt).await;
        outcomes.sort_by(|one, other| one.0.cmp(&other.0));
        let expected = [
            ("other".to_owned(), DeliveryOutcome::Handled),
            ("paused".to_owned(), DeliveryOutcome::Paused),
        ];
        assert_eq!(outcomes, expected);
    }
    assert!(soon(bus.resume("paused")).await);
    journal.has(1, "paused").await;
    soon(bus.wait_idle()).await.unwrap();
    assert!(soon(receipt.handled()).await.unwrap().is_success());
}

/// P2: who waits already when the subscription is paused is told as well.
pub async fn p2_who_waits_is_told_that_the_delivery_is_paused(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let receipt = bus.publish(noted("a", 1)).await.unwrap();
    journal.has(1, "began").await;
    let mut waiting = Box::pin(outcome(&receipt));
    assert!(is_pending(&mut waiting).await);
    let mut pause = bus.pause("waits");
    is_pending(&mut pause).await;
    gate.add_permits(1);
    assert!(soon(pause).await);
    assert_eq!(soon(waiting).await, DeliveryOutcome::Paused);
    gate.add_permits(1);
    soon(bus.resume("waits")).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(outcome(&receipt).await, DeliveryOutcome::Handled);
}

/// L3: what is paused does not count as work to wait for, also where it waits for a retry.
pub async fn l3_what_is_paused_keeps_nobody_waiting(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let fails = answering("fails", &journal, |number, attempt| {
        if number == 0 && attempt == 1 {
            return Err(HandlerError::retry_after(HOUR, "later"));
        }
        Ok(())
    });
    started(&bus, [fails]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "fails").await;
    assert!(soon(bus.pause("fails")).await);
    assert_eq!(
        bus.statistics().subscriptions[0].paused,
        Some(PauseReason::Asked)
    );
    for number in 1..4 {
        bus.publish(noted(format!("b{number}"), number))
            .await
            .unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("fails"), [0]);
    soon(bus.resume("fails")).await;
    assert_eq!(bus.statistics().subscriptions[0].paused, None);
    journal.has(4, "fails").await;
    soon(bus.stop(Duration::ZERO)).await.unwrap();
}

/// L4: pausing returns after the running attempt, which is the last until it is resumed; again, and
/// of a name that nobody has, is harmless.
pub async fn l4_pausing_returns_after_the_running_attempt(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    assert!(!soon(bus.pause("nobody")).await && !soon(bus.resume("nobody")).await);
    assert!(soon(bus.resume("waits")).await, "it was not paused");
    bus.publish(noted("a", 0)).await.unwrap();
    bus.publish(noted("a", 1)).await.unwrap();
    journal.has(1, "began").await;
    let mut pause = bus.pause("waits");
    assert!(is_pending(&mut pause).await);
    others_run().await;
    assert!(is_pending(&mut pause).await);
    gate.add_permits(10);
    assert!(soon(pause).await);
    assert_eq!(journal.of("seen"), [0]);
    assert!(soon(bus.pause("waits")).await);
    others_run().await;
    assert_eq!(journal.of("began"), [0]);
    assert!(soon(bus.resume("waits")).await && soon(bus.resume("waits")).await);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1]);
}

/// F5, L3: an attempt that fails while its subscription is being paused waits with it, and goes on
/// when that is resumed.
pub async fn f5_what_fails_while_it_is_paused_waits(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let (log, opened) = (journal.clone(), Arc::clone(&gate));
    let fails = move |event: Event<Noted>, cx: HandlerContext| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            journal.write("began", u64::from(cx.attempt()));
            gate.acquire().await?.forget();
            if cx.attempt() == 1 {
                return Err(HandlerError::transient("not yet"));
            }
            journal.write("seen", event.number);
            Ok(())
        }
    };
    let fails = Subscription::from_fn("fails", fails).retry(quick_retries(2));
    started(&bus, [fails]).await;
    let receipt = bus.publish(noted("a", 7)).await.unwrap();
    journal.has(1, "began").await;
    let mut pause = bus.pause("fails");
    assert!(is_pending(&mut pause).await);
    gate.add_permits(10);
    assert!(soon(pause).await);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(outcome(&receipt).await, DeliveryOutcome::Paused);
    assert_eq!(journal.of("began"), [1]);
    soon(bus.resume("fails")).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(
        (journal.of("began"), journal.of("seen")),
        (vec![1, 2], vec![7])
    );
}

/// L4: a handler that pauses its own subscription does not wait for itself, and ends what it does.
pub async fn l4_a_handler_pauses_its_own_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, inside) = (Journal::default(), Arc::downgrade(&bus));
    let log = journal.clone();
    let pauses = move |event: Event<Noted>, _| {
        let (bus, journal) = (inside.upgrade(), log.clone());
        async move {
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            if event.number == 0 && !bus.pause("pauses").await {
                return Err(HandlerError::permanent("not paused"));
            }
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("pauses", pauses)]).await;
    let first = bus.publish(noted("a", 0)).await.unwrap();
    let second = bus.publish(noted("a", 1)).await.unwrap();
    assert_eq!(outcome(&first).await, DeliveryOutcome::Handled);
    assert_eq!(outcome(&second).await, DeliveryOutcome::Paused);
    soon(bus.resume("pauses")).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1]);
}

/// P4: what is paused takes room (volatile), or is left to the log and holds nobody back; an
/// isolated subscription holds back only the publishers of what it wants.
pub async fn p4_what_is_paused_counts(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    let own = journal_of("own", &journal).isolated(1).capacity(3);
    started(&bus, [own, hears("hears", &journal)]).await;
    assert!(soon(bus.pause("own")).await);
    if harness.is_durable() {
        for number in 0..20 {
            soon(bus.publish(noted("a", number))).await.unwrap();
        }
    } else {
        for number in 0..3 {
            bus.try_publish(noted("a", number)).await.unwrap();
        }
        let full = bus.try_publish(noted("b", 3)).await.map(drop);
        assert!(
            matches!(full, Err(PublishError::Full { capacity: 3, .. })),
            "{full:?}"
        );
    }
    for number in 0..20 {
        soon(bus.publish(followed("a", number))).await.unwrap();
    }
    soon(bus.resume("own")).await;
    soon(bus.wait_idle()).await.unwrap();
    let all = if harness.is_durable() { 20 } else { 3 };
    assert_eq!(journal.of("own"), (0..all).collect::<Vec<_>>());
    assert_eq!(journal.of("hears").len(), 20);
}

/// L2: a stop does not wait for what is paused, and reports it as abandoned (volatile) or left in
/// the log; removing a paused subscription leaves nothing behind.
pub async fn l2_a_stop_does_not_wait_for_what_is_paused(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    started(
        &bus,
        [journal_of("stays", &journal), journal_of("goes", &journal)],
    )
    .await;
    assert!(soon(bus.pause("stays")).await && soon(bus.pause("goes")).await);
    let mut receipts = Vec::new();
    for number in 0..3 {
        receipts.push(bus.publish(noted("a", number)).await.unwrap());
    }
    assert!(soon(bus.unsubscribe("goes")).await);
    let report = soon(bus.stop(HOUR)).await.unwrap();
    assert_eq!((report.drained, report.cut_off), (0, 0), "{report:?}");
    if harness.is_durable() {
        assert!(
            report.left_in_log > 0 && report.abandoned == 0,
            "{report:?}"
        );
    } else {
        assert_eq!((report.left_in_log, report.abandoned), (0, 3), "{report:?}");
    }
    for receipt in receipts {
        let outcomes = outcomes(&receipt).await;
        assert!(
            outcomes.iter().all(|it| it.1 == DeliveryOutcome::Stopped),
            "{outcomes:?}"
        );
    }
    assert_eq!(journal.lines(), []);
}

/// F5: under `PauseSubscription` everything of the subscription waits behind a dead letter, of
/// whatever aggregate, until it is resumed; others go on.
pub async fn f5_a_dead_letter_pauses_the_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, well) = (Journal::default(), Arc::new(AtomicBool::new(false)));
    let healed = Arc::clone(&well);
    let fails = answering("fails", &journal, move |number, _| {
        if number == 1 && !healed.load(SeqCst) {
            return Err(HandlerError::permanent("not today"));
        }
        Ok(())
    });
    let fails = fails.failure_policy(FailurePolicy::PauseSubscription);
    started(&bus, [fails, journal_of("other", &journal)]).await;
    let mut receipts = Vec::new();
    for (aggregate, number) in [("a", 0), ("a", 1), ("a", 2), ("b", 3), ("b", 4)] {
        receipts.push(bus.publish(noted(aggregate, number)).await.unwrap());
        soon(bus.wait_idle()).await.unwrap();
    }
    assert_eq!(journal.of("fails"), [0, 1]);
    assert_eq!(journal.of("other"), [0, 1, 2, 3, 4]);
    let figures = bus.statistics().subscriptions;
    let fails = figures.iter().find(|it| &*it.name == "fails");
    assert!(
        fails.is_some_and(|it| it.paused == Some(PauseReason::DeadLetter) && it.dead == 1),
        "{fails:?}"
    );
    use DeliveryOutcome::{Dead, Handled, Paused};
    for (receipt, expected) in receipts.iter().zip([Handled, Dead, Paused, Paused, Paused]) {
        let outcomes = outcomes(receipt).await;
        let own = outcomes.iter().find(|it| it.0 == "fails");
        assert_eq!(own.map(|it| it.1), Some(expected));
    }
    well.store(true, SeqCst);
    assert!(soon(bus.resume("fails")).await);
    soon(bus.wait_idle()).await.unwrap();
    let seen = journal.of("fails");
    let of_b: Vec<_> = seen.iter().filter(|number| **number > 2).collect();
    assert_eq!((seen.len(), of_b), (5, vec![&3, &4]), "{seen:?}");
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::of("fails"), 10)
            .await
            .unwrap()
            .len(),
        1
    );
}

/// F5: so it is where events come in one order of all, or in none.
pub async fn f5_a_dead_letter_pauses_whatever_the_order(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let orders = [("total", Ordering::Total), ("none", Ordering::None)];
    let pauses = orders.map(|(name, order)| {
        let dies = answering(name, &journal, |number, _| match number {
            0 => Err(HandlerError::permanent("never")),
            _ => Ok(()),
        });
        let dies = dies.ordering(order).isolated(1);
        dies.failure_policy(FailurePolicy::PauseSubscription)
    });
    started(&bus, pauses).await;
    for number in 0..4 {
        let event = noted(format!("a{number}"), number);
        bus.publish(event).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
    }
    for (name, _) in orders {
        assert_eq!(journal.of(name), [0], "{name}");
        assert!(soon(bus.resume(name)).await);
    }
    soon(bus.wait_idle()).await.unwrap();
    for (name, _) in orders {
        let mut seen = journal.of(name);
        if name == "none" {
            seen.sort_unstable();
        }
        assert_eq!(seen, [0, 1, 2, 3], "{name}");
    }
    assert_eq!(bus.statistics().in_flight, 0);
}

/// D2, D3: pausing and resuming at any moment, under failures by chance, loses nothing, repeats
/// nothing, and disorders nothing.
pub async fn d2_order_holds_while_a_subscription_is_paused_and_resumed(harness: &dyn BusHarness) {
    let (bus, fate) = (harness.bus(30, 3), Fate::fresh());
    let journal = Journal::default();
    let log = journal.clone();
    let shaky = move |event: Event<Noted>, cx: HandlerContext| {
        let journal = log.clone();
        async move {
            tokio::task::yield_now().await;
            if cx.attempt() < 3 && fate.below(4, (event.number, cx.attempt())) == 0 {
                return Err(HandlerError::transient("by chance"));
            }
            journal.write(event.aggregate().id(), event.number);
            Ok(())
        }
    };
    let shaky = Subscription::from_fn("shaky", shaky).retry(quick_retries(3));
    started(&bus, [shaky, journal_of("steady", &journal)]).await;
    let pausing = tokio::spawn({
        let (bus, journal) = (Arc::clone(&bus), journal.clone());
        async move {
            let mut pauses = 0;
            while journal.of("steady").len() < 200 {
                assert!(bus.pause("shaky").await);
                others_run().await;
                assert!(bus.resume("shaky").await);
                journal.has(5 * pauses, "steady").await;
                pauses += 1;
            }
        }
    });
    for number in 0..200 {
        soon(bus.publish(noted(format!("a{}", number % 4), number)))
            .await
            .unwrap();
    }
    soon(pausing).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    for aggregate in 0..4 {
        let all: Vec<_> = (0..200).filter(|number| number % 4 == aggregate).collect();
        assert_eq!(journal.of(&format!("a{aggregate}")), all);
    }
}
