//! Stopping: what is drained, what is reported, and who is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, Event, EventBus, HandlerContext, HandlerError, PublishError, StopReport,
    Subscription,
};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::{
    BusHarness, HOUR, Journal, Noted, answering, followed, gated, hears, is_pending, journal_of,
    noted, outcome, soon, started,
};

/// A stop that has begun.
async fn stopping(bus: &Arc<dyn EventBus>, deadline: Duration) -> JoinHandle<StopReport> {
    let stopped = Arc::clone(bus);
    let stop = tokio::spawn(async move { stopped.stop(deadline).await.unwrap() });
    let begun = async {
        while bus.statistics().running {
            tokio::task::yield_now().await;
        }
    };
    soon(begun).await;
    stop
}

/// L2: a stop loses no work in hand: it finishes what was accepted, refuses outside events from its
/// beginning, reports what it drained, and may be repeated.
pub async fn l2_a_stop_drains_and_reports(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (gate, journal) = (Arc::new(Semaphore::new(0)), Journal::default());
    started(&bus, [gated(&journal, &gate)]).await;
    for number in 0..5 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    let stop = stopping(&bus, HOUR).await;
    for refused in [
        bus.try_publish(noted("b", 9)).await,
        bus.publish(noted("b", 9)).await,
        bus.publish_timeout(noted("b", 9), HOUR).await,
    ] {
        assert!(matches!(refused, Err(PublishError::Stopped)), "{refused:?}");
    }
    gate.add_permits(100);
    let expected = StopReport {
        drained: 5,
        ..StopReport::default()
    };
    assert_eq!(soon(stop).await.unwrap(), expected);
    assert_eq!(journal.of("seen"), [0, 1, 2, 3, 4]);
    let again = soon(bus.stop(Duration::from_secs(1))).await.unwrap();
    assert_eq!(again, StopReport::default());
}

/// L2: a handler that is still running at the deadline is cut off, and its receipt says so.
pub async fn l2_what_runs_at_the_deadline_is_cut_off(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    started(&bus, [gated(&journal, &Arc::new(Semaphore::new(0)))]).await;
    let first = bus.publish(noted("a", 1)).await.unwrap();
    let second = bus.publish(noted("a", 2)).await.unwrap();
    journal.has(1, "began").await;
    let report = soon(bus.stop(Duration::from_millis(10))).await.unwrap();
    assert_eq!((report.cut_off, report.drained), (1, 0));
    let left = (report.left_in_log, report.abandoned);
    let expected = if harness.is_durable() { (2, 0) } else { (0, 2) };
    assert_eq!(left, expected, "{report:?}");
    for receipt in [first, second] {
        assert_eq!(outcome(&receipt).await, DeliveryOutcome::Stopped);
    }
}

/// L2: what waits for a retry is waited for only until the deadline; what was done before the stop is
/// not of the report.
pub async fn l2_a_retry_past_the_deadline_is_left(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let fails = answering("fails", &journal, |number, _| match number {
        0 => Ok(()),
        _ => Err(HandlerError::retry_after(HOUR, "later")),
    });
    started(&bus, [fails]).await;
    for number in 0..3 {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    journal.has(3, "fails").await;
    let report = soon(bus.stop(Duration::from_millis(10))).await.unwrap();
    let left = (report.left_in_log, report.abandoned);
    let expected = if harness.is_durable() { (2, 0) } else { (0, 2) };
    assert_eq!(left, expected, "{report:?}");
    assert_eq!((report.drained, report.cut_off), (0, 0), "{report:?}");
}

/// L2: several who stop at once all come to an end, and one of them has the report.
pub async fn l2_stops_at_once_are_harmless(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (gate, journal) = (Arc::new(Semaphore::new(0)), Journal::default());
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let first = stopping(&bus, HOUR).await;
    let others = [stopping(&bus, HOUR).await, stopping(&bus, HOUR).await];
    gate.add_permits(1);
    assert_eq!(soon(first).await.unwrap().drained, 1);
    for other in others {
        assert_eq!(soon(other).await.unwrap(), StopReport::default());
    }
    assert_eq!(journal.of("seen"), [0]);
}

/// L2: a stop beside busy publishers loses nothing that was accepted: each publish is refused, or
/// its event is handled.
pub async fn l2_a_stop_beside_publishers_loses_nothing_accepted(harness: &dyn BusHarness) {
    let bus = harness.bus(5, 2);
    let (journal, accepted) = (Journal::default(), Arc::new(AtomicU64::new(0)));
    started(&bus, [journal_of("journal", &journal)]).await;
    let publisher = |aggregate: usize| {
        let (bus, accepted) = (Arc::clone(&bus), Arc::clone(&accepted));
        async move {
            for number in 0.. {
                match bus.publish(noted(format!("a{aggregate}"), number)).await {
                    Ok(_) => accepted.fetch_add(1, SeqCst),
                    Err(PublishError::Stopped) => return,
                    Err(error) => panic!("{error:?}"),
                };
                tokio::task::yield_now().await;
            }
        }
    };
    let publishers = [0, 1, 2].map(|aggregate| tokio::spawn(publisher(aggregate)));
    journal.has(20, "journal").await;
    let report = soon(bus.stop(HOUR)).await.unwrap();
    for publisher in publishers {
        soon(publisher).await.unwrap();
    }
    let accepted = accepted.load(SeqCst);
    let handled = journal.of("journal").len() as u64;
    assert_eq!(report.cut_off + report.abandoned, 0, "{report:?}");
    assert_eq!(handled + report.left_in_log, accepted, "{report:?}");
}

/// L2: who waits for room is told that the bus stops, and their event is not published.
pub async fn l2_who_waits_for_room_is_told(harness: &dyn BusHarness) {
    let bus = harness.bus(1, 1);
    let (gate, journal) = (Arc::new(Semaphore::new(0)), Journal::default());
    started(&bus, [gated(&journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let mut one = bus.publish(noted("a", 1));
    let mut other = bus.publish_timeout(noted("a", 2), HOUR);
    let mut batch = bus.publish_all(vec![noted("a", 3)]);
    assert!(is_pending(&mut one).await && is_pending(&mut other).await);
    assert!(is_pending(&mut batch).await);
    let stop = stopping(&bus, HOUR).await;
    for refused in [soon(one).await.map(drop), soon(other).await.map(drop)] {
        assert!(matches!(refused, Err(PublishError::Stopped)), "{refused:?}");
    }
    let refused = soon(batch).await.map(drop);
    assert!(matches!(refused, Err(PublishError::Stopped)), "{refused:?}");
    gate.add_permits(10);
    assert_eq!(soon(stop).await.unwrap().drained, 1);
    assert_eq!(journal.of("seen"), [0]);
}

/// L2: what a handler publishes while the bus drains is accepted and delivered.
pub async fn l2_what_handlers_publish_during_the_drain_is_delivered(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (gate, journal) = (Arc::new(Semaphore::new(0)), Journal::default());
    let (opened, log) = (Arc::clone(&gate), journal.clone());
    let follows = move |event: Event<Noted>, cx: HandlerContext| {
        let (gate, journal) = (Arc::clone(&opened), log.clone());
        async move {
            journal.write("began", event.number);
            gate.acquire().await?.forget();
            cx.publish(followed("a", event.number)).await?;
            Ok(())
        }
    };
    let follows = Subscription::from_fn("follows", follows);
    started(&bus, [follows, hears("hears", &journal)]).await;
    bus.publish(noted("a", 7)).await.unwrap();
    journal.has(1, "began").await;
    let stop = stopping(&bus, HOUR).await;
    gate.add_permits(1);
    assert_eq!(soon(stop).await.unwrap().drained, 2);
    assert_eq!(journal.of("hears"), [7]);
}

/// L2: a stop of a bus that never started is harmless, and final.
pub async fn l2_a_bus_that_never_ran_is_stopped(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let report = soon(bus.stop(HOUR)).await.unwrap();
    assert_eq!(report, StopReport::default());
    bus.start().await.unwrap_err();
    let refused = bus.publish(noted("a", 0)).await;
    assert!(matches!(refused, Err(PublishError::Stopped)), "{refused:?}");
}
