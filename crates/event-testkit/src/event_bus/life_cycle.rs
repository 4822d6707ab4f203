//! Starting, stopping, subscribing, counting.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, Event, HandlerContext, HandlerError, PublishError, StartError, StopError,
    StopReport, SubscribeError, Subscription, WaitError,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Followed, Journal, Noted, gated, journal_of, noted, quick_retries, soon, started,
};

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
    started(&bus, [gated(&journal, &gate)]).await;
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
    assert_eq!(again, StopReport::default());
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
