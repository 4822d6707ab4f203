//! What a full queue means: who waits, who is told, and that no room is lost.

use std::{pin::Pin, sync::Arc, task::Poll, time::Duration};

use domain_events::{EventBus, HandlerError, NewEvent, PublishError, Receipt};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, yield_now},
};

use super::{
    BusHarness, HOUR, Journal, answering, followed, gated, hears, is_pending, journal_of, left_out,
    noted, others_run, soon, started,
};

/// The event that a full queue of `capacity` events gave back.
pub(super) fn given_back(result: Result<Receipt, PublishError>, capacity: usize) -> NewEvent {
    let error = result.map(drop).expect_err("there was room");
    assert!(error.to_string().contains(&capacity.to_string()), "{error}");
    match error {
        PublishError::Full {
            capacity: full,
            mut events,
        } if full == capacity && events.len() == 1 => events.remove(0),
        error => panic!("{error:?}"),
    }
}

/// A publish that has begun to wait before those that are called later.
async fn waiting(bus: &Arc<dyn EventBus>, event: NewEvent) -> JoinHandle<()> {
    let bus = Arc::clone(bus);
    let mut publish = Box::pin(async move { drop(bus.publish(event).await.unwrap()) });
    assert!(is_pending(&mut publish).await);
    tokio::spawn(publish)
}

/// P4: a full queue can be seen: where there is no room, `try_publish` gives the event back with the
/// capacity, so does `publish_timeout` after its time, and `publish` waits.
pub async fn p4_a_full_queue_gives_the_event_back_or_makes_publishers_wait(
    harness: &dyn BusHarness,
) {
    let bus = harness.bus(3, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    for number in 0..3 {
        bus.try_publish(noted("a", number)).await.unwrap();
    }
    let event = given_back(bus.try_publish(noted("a", 3)).await, 3);
    let at_once = bus.publish_timeout(event, Duration::ZERO);
    let event = given_back(soon(at_once).await, 3);
    let later = bus.publish_timeout(event, Duration::from_millis(2));
    let event = given_back(soon(later).await, 3);
    let late = waiting(&bus, event).await;
    let mut later = bus.publish_timeout(noted("a", 4), HOUR);
    assert!(is_pending(&mut later).await);
    assert!(!late.is_finished());
    gate.add_permits(5);
    soon(late).await.unwrap();
    soon(later).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1, 2, 3, 4]);
}

/// P4: a subscription that fails for ever ends as back-pressure (volatile) or leaves its events to
/// the store; what waits for a retry, and what waits behind that, counts and never grows.
async fn ends_as_back_pressure(harness: &dyn BusHarness, isolated: bool) {
    let bus = harness.bus(3, 2);
    let journal = Journal::default();
    let fails = answering("fails", &journal, |_, _| {
        Err(HandlerError::retry_after(HOUR, "not today"))
    });
    started(&bus, [if isolated { fails.isolated(1) } else { fails }]).await;
    let next = |number: u64| noted(format!("a{}", number % 2), number);
    if harness.is_durable() {
        for number in 0..20 {
            soon(bus.publish(next(number))).await.unwrap();
        }
    } else {
        for number in 0..3 {
            bus.try_publish(next(number)).await.unwrap();
        }
        journal.has(2, "fails").await;
        others_run().await;
        given_back(bus.try_publish(next(3)).await, 3);
        given_back(bus.try_publish(noted("other", 4)).await, 3);
    }
    assert!(bus.statistics().in_flight <= 3);
    assert!(soon(bus.unsubscribe("fails")).await);
    soon(bus.wait_idle()).await.unwrap();
    soon(bus.publish_all((0..3).map(next).collect()))
        .await
        .unwrap();
}

/// P4: a failing subscription ends as back-pressure, never as growth.
pub async fn p4_a_failing_subscription_ends_as_back_pressure(harness: &dyn BusHarness) {
    ends_as_back_pressure(harness, false).await;
}

/// P4: so does a failing subscription with a pipeline of its own.
pub async fn p4_a_failing_isolated_subscription_ends_as_back_pressure(harness: &dyn BusHarness) {
    ends_as_back_pressure(harness, true).await;
}

/// P4: a full pipeline of its own holds back the publishers of what it wants (volatile), or nobody
/// (durable); others pass.
pub async fn p4_a_full_isolated_pipeline_holds_back_only_what_it_wants(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let own = gated(&journal, &gate).isolated(1).capacity(2);
    started(
        &bus,
        [
            own,
            hears("hears", &journal),
            journal_of("default", &journal),
        ],
    )
    .await;
    for number in 0..2 {
        bus.try_publish(noted("a", number)).await.unwrap();
    }
    let mut late = None;
    if harness.is_durable() {
        for number in 2..20 {
            soon(bus.publish(noted("a", number))).await.unwrap();
        }
    } else {
        let event = given_back(bus.try_publish(noted("a", 2)).await, 2);
        let event = given_back(bus.publish_timeout(event, Duration::ZERO).await, 2);
        late = Some(waiting(&bus, event).await);
    }
    for number in 0..20 {
        soon(bus.publish(followed("a", number))).await.unwrap();
    }
    journal.has(20, "hears").await;
    gate.add_permits(20);
    if let Some(late) = late {
        soon(late).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let all = if harness.is_durable() { 20 } else { 3 };
    assert_eq!(journal.of("seen"), (0..all).collect::<Vec<_>>());
    assert_eq!(journal.of("default"), (0..all).collect::<Vec<_>>());
}

/// P3, P4: a batch that never fits into a pipeline of its own is told so at once with both numbers
/// (volatile), or when such a pipeline comes while it waits; it holds up nobody behind it.
pub async fn p4_a_batch_that_will_never_fit_is_told(harness: &dyn BusHarness) {
    if left_out(
        !harness.is_durable(),
        "hold publishers back by an isolated pipeline",
    ) {
        return;
    }
    let bus = harness.bus(4, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let batch = |first: u64| (first..first + 4).map(|n| noted("b", n)).collect();
    let mut waits = bus.publish_all(batch(1));
    assert!(is_pending(&mut waits).await);
    let own = journal_of("own", &journal).isolated(1).capacity(2);
    bus.subscribe(own).await.unwrap();
    gate.add_permits(100);
    let never = |result: Result<Vec<Receipt>, PublishError>| {
        let (batch, capacity) = match result.map(drop) {
            Err(PublishError::BatchTooLarge { batch, capacity }) => (batch, capacity),
            other => panic!("{other:?}"),
        };
        assert_eq!((batch, capacity), (4, 2));
    };
    // It may have come in before the pipeline did.
    if let Err(error) = soon(waits).await {
        never(Err(error));
    }
    never(soon(bus.publish_all(batch(5))).await);
    soon(bus.publish(noted("c", 9))).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("own").last(), Some(&9));
}

/// P4: who waits for room in a pipeline that goes is let in.
pub async fn p4_who_waits_for_a_pipeline_that_goes_is_let_in(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let own = gated(&journal, &gate).isolated(1).capacity(1);
    started(&bus, [own, journal_of("default", &journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "began").await;
    let (mut publish, mut published) = (bus.publish(noted("a", 1)), None);
    // Durable, nobody waits for a pipeline of another's own.
    let waits = is_pending_then(&mut publish, &mut published).await;
    let mut goes = bus.unsubscribe("waits");
    assert!(is_pending(&mut goes).await);
    gate.add_permits(1);
    assert!(soon(goes).await);
    if waits {
        published = Some(soon(publish).await);
    }
    assert!(published.is_some_and(|published| published.is_ok()));
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("default"), [0, 1]);
    assert_eq!(journal.of("seen"), [0]);
}

/// P4: who waits for room is served first come, first served.
pub async fn p4_waiting_publishers_are_served_in_their_order(harness: &dyn BusHarness) {
    let bus = harness.bus(1, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let mut tasks = Vec::new();
    for number in 1..8 {
        tasks.push(waiting(&bus, noted(format!("b{number}"), number)).await);
    }
    gate.add_permits(8);
    for task in tasks {
        soon(task).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), (0..8).collect::<Vec<_>>());
}

/// P4: single events do not overtake a batch that waits for room, and so never starve it.
pub async fn p4_a_waiting_batch_is_not_starved_by_single_events(harness: &dyn BusHarness) {
    let bus = harness.bus(4, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let mut batch = bus.publish_all((1..5).map(|n| noted(format!("b{n}"), n)).collect());
    assert!(is_pending(&mut batch).await);
    let single = waiting(&bus, noted("c", 5)).await;
    drop(given_back(bus.try_publish(noted("d", 6)).await, 4));
    gate.add_permits(10);
    soon(batch).await.unwrap();
    soon(single).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [0, 1, 2, 3, 4, 5]);
}

/// P4: a publish that is dropped while it waits for room has touched nothing, and holds up nobody
/// behind it.
pub async fn p4_a_dropped_publish_has_touched_nothing(harness: &dyn BusHarness) {
    let bus = harness.bus(1, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 1)).await.unwrap();
    let mut dropped = bus.publish(noted("a", 2));
    assert!(is_pending(&mut dropped).await);
    let behind = waiting(&bus, noted("a", 3)).await;
    drop(dropped);
    gate.add_permits(10);
    soon(behind).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("seen"), [1, 3]);
}

/// Publishes `events` in one of four ways, which takes what they need of room one after the other
/// or at once.
async fn publish_by(bus: &dyn EventBus, way: usize, mut events: Vec<NewEvent>) -> bool {
    let event = events.remove(0);
    let published = match way {
        0 => bus.publish(event).await.map(drop),
        1 => bus.publish_timeout(event, HOUR).await.map(drop),
        2 => bus.try_publish(event).await.map(drop),
        _ => {
            events.insert(0, event);
            bus.publish_all(events).await.map(drop)
        }
    };
    published.is_ok()
}

/// P4: a publish dropped at any of its awaits is published wholly and once, or not at all, and the
/// room it had is not lost.
pub async fn p4_a_publish_dropped_at_any_await_is_published_once_or_not_at_all(
    harness: &dyn BusHarness,
) {
    const POLLS: usize = 5;
    let bus = harness.bus(2, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    let mut number = 0;
    let mut expected = Vec::new();
    for way in 0..4 {
        // The room comes free before, between or after the polls.
        for (polls, opened) in (0..POLLS).flat_map(|n| (0..=n).map(move |m| (n, m))) {
            // Two events, so that a batch has something to be torn apart.
            let mine = [number + 2, number + 3];
            let held = [number, number + 1].map(|number| noted("a", number));
            bus.publish_all(held.into()).await.unwrap();
            let events = mine.map(|number| noted("a", number)).into();
            let mut publish = Box::pin(publish_by(&*bus, way, events));
            let mut done = None;
            for poll in 0..polls {
                if poll == opened {
                    gate.add_permits(2);
                }
                if done.is_none() && !is_pending_then(&mut publish, &mut done).await {
                    break;
                }
                yield_now().await;
            }
            drop(publish);
            gate.add_permits(6);
            soon(bus.wait_idle()).await.unwrap();
            gate.forget_permits(gate.available_permits());
            let seen: Vec<_> = journal.of("seen");
            let wanted = if way == 3 { &mine[..] } else { &mine[..1] };
            let seen: Vec<_> = seen.into_iter().filter(|n| mine.contains(n)).collect();
            assert!(
                seen.is_empty() || seen == wanted,
                "{way}/{polls}/{opened}: {seen:?}"
            );
            if let Some(published) = done {
                assert_eq!(published, !seen.is_empty(), "{way}/{polls}/{opened}");
            }
            expected.extend([number, number + 1]);
            expected.extend(seen);
            number += 4;
        }
    }
    assert_eq!(journal.of("seen"), expected);
    // All of the room is there.
    soon(bus.publish_all(vec![noted("a", 0), noted("b", 0)]))
        .await
        .unwrap();
    drop(given_back(bus.try_publish(noted("c", 0)).await, 2));
    gate.add_permits(2);
    soon(bus.wait_idle()).await.unwrap();
}

/// Polls once, and keeps what came. Returns whether nothing did.
async fn is_pending_then<T>(
    future: &mut Pin<Box<impl Future<Output = T> + ?Sized>>,
    came: &mut Option<T>,
) -> bool {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            *came = Some(value);
        }
        Poll::Ready(())
    })
    .await;
    came.is_none()
}
