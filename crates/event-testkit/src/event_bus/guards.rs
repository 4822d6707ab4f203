//! Subscriptions that live as long as a guard, and those that a handler makes (L4).

use std::sync::{Arc, OnceLock, Weak};

use domain_events::{Event, EventBus, SubscribeError, Subscription};
use tokio::sync::Semaphore;

use super::{BusHarness, Journal, Noted, gated, journal_of, noted, soon, started};

/// L4: a dropped guard waits for nothing: the running attempt is the last.
pub async fn l4_a_dropped_guard_removes_its_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [journal_of("stays", &journal)]).await;
    let guard = bus.subscribe_guarded(gated(&journal, &gate)).await.unwrap();
    let again = bus.subscribe_guarded(gated(&journal, &gate)).await;
    assert!(
        matches!(again, Err(SubscribeError::DuplicateName(_))),
        "{again:?}"
    );
    for number in 0..2 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    journal.has(1, "began").await;
    drop(guard);
    assert!(bus.statistics().of("waits").is_none());
    gate.add_permits(9);
    bus.publish(noted("a", 2)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(
        (journal.of("began"), journal.of("seen")),
        (vec![0], vec![0])
    );
    assert_eq!(journal.of("stays"), [0, 1, 2]);
}

/// L4: a guard removes its own subscription, and no other of the same name.
pub async fn l4_a_guard_removes_only_its_own(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    started(&bus, []).await;
    let old = bus
        .subscribe_guarded(journal_of("one", &journal))
        .await
        .unwrap();
    assert!(soon(bus.unsubscribe("one")).await);
    let kept = bus
        .subscribe_guarded(journal_of("one", &journal))
        .await
        .unwrap();
    drop(old);
    kept.keep();
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("one"), [0]);
}

/// L4: so it does before the start, and after the bus is gone it does nothing.
pub async fn l4_a_guard_works_at_any_time(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    let gone = bus
        .subscribe_guarded(journal_of("gone", &journal))
        .await
        .unwrap();
    let stays = bus
        .subscribe_guarded(journal_of("stays", &journal))
        .await
        .unwrap();
    drop(gone);
    started(&bus, []).await;
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!((journal.of("gone"), journal.of("stays")), (vec![], vec![0]));
    soon(bus.stop(super::HOUR)).await.unwrap();
    drop(bus);
    drop(stays);
}

/// L4: a handler subscribes, and what is published after that is delivered to both.
pub async fn l4_a_handler_subscribes(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 2);
    let journal = Journal::default();
    let me: Arc<OnceLock<Weak<dyn EventBus>>> = Arc::default();
    let (log, of_bus) = (journal.clone(), Arc::clone(&me));
    let subscribes = Subscription::from_fn("subscribes", move |event: Event<Noted>, _| {
        let (log, bus) = (log.clone(), of_bus.get().and_then(Weak::upgrade));
        async move {
            log.write("subscribes", event.number);
            if let Some(bus) = bus.filter(|_| event.number == 0) {
                bus.subscribe(journal_of("new", &log)).await?;
            }
            Ok(())
        }
    });
    drop(me.set(Arc::downgrade(&bus)));
    started(&bus, [subscribes]).await;
    for number in 0..2 {
        bus.publish(noted("a", number)).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
    }
    assert_eq!(journal.of("subscribes"), [0, 1]);
    assert_eq!(journal.of("new"), [1]);
}
