//! Starting, coming to rest, counting.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    Event, HandlerContext, HandlerError, PublishError, StartError, StopError, Subscription,
    WaitError,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Followed, HOUR, Journal, Noted, followed, gated, hears, is_pending, noted,
    quick_retries, soon, started,
};

/// L1: publishing before the start and starting twice are typed errors, and the worker count is right
/// when `start` returns.
pub async fn l1_misuse_of_the_life_cycle_is_a_typed_error(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 3);
    for early in [
        bus.publish(noted("a", 1)).await,
        bus.try_publish(noted("a", 1)).await,
        bus.publish_timeout(noted("a", 1), HOUR).await,
    ] {
        assert!(matches!(early, Err(PublishError::NotStarted)), "{early:?}");
    }
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

/// L3: waiting for rest waits for what is queued, for retries, and for what handlers publish, in
/// every pipeline; several may wait, and whoever gives up changes nothing.
pub async fn l3_rest_comes_after_retries_and_what_follows(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let log = journal.clone();
    let chain = move |event: Event<Noted>, cx: HandlerContext| {
        let journal = log.clone();
        async move {
            if event.number.is_multiple_of(5) && cx.attempt() < 3 {
                return Err(HandlerError::transient("not yet"));
            }
            if event.number < 20 {
                cx.publish(noted("a", event.number + 1)).await?;
                cx.publish(followed("b", event.number)).await?;
            }
            journal.write("chain", event.number);
            Ok(())
        }
    };
    let chain = Subscription::from_fn("chain", chain).retry(quick_retries(3));
    started(&bus, [chain, hears("hears", &journal).isolated(1)]).await;
    soon(bus.wait_idle()).await.unwrap();
    bus.publish(noted("a", 0)).await.unwrap();
    let mut given_up = bus.wait_idle();
    assert!(is_pending(&mut given_up).await);
    drop(given_up);
    let (one, other) = tokio::join!(soon(bus.wait_idle()), soon(bus.wait_idle()));
    assert_eq!((one, other), (Ok(()), Ok(())));
    assert_eq!(journal.of("chain"), (0..=20).collect::<Vec<_>>());
    assert_eq!(journal.of("hears"), (0..20).collect::<Vec<_>>());
    assert_eq!(bus.statistics().in_flight, 0);
}

/// L3: before the start and after the stop there is rest.
pub async fn l3_there_is_rest_before_the_start_and_after_the_stop(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    soon(bus.wait_idle()).await.unwrap();
    let journal = Journal::default();
    let waits = gated(&journal, &Arc::new(Semaphore::new(0)));
    started(&bus, [waits]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    let mut idle = bus.wait_idle();
    assert!(is_pending(&mut idle).await);
    soon(bus.stop(Duration::ZERO)).await.unwrap();
    soon(idle).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
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
