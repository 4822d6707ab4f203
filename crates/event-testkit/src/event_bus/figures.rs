//! Figures that add up, and what they say of the bus (N1–N3).

use std::{sync::Arc, time::Duration};

use domain_events::{
    BusStatistics, Event, FailurePolicy, HandlerContext, HandlerError, Health, HealthReason,
    RetryPolicy, Subscription, SubscriptionStatistics,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, HOUR, Journal, Noted, answering, gated, journal_of, noted, others_run,
    quick_retries, soon, started,
};

/// Checks that everything that was taken in is somewhere.
#[track_caller]
pub(super) fn assert_adds_up(figures: &BusStatistics) {
    let taken_in = figures.accepted + figures.recovered;
    assert_eq!(
        taken_in,
        figures.finished + figures.in_flight,
        "{figures:?}"
    );
    for one in &figures.subscriptions {
        let given_up = one.dead + one.discarded;
        let ended = one.handled + one.skipped + given_up + one.abandoned;
        assert_eq!(one.matching, ended + one.lag(), "{one:?}");
    }
}

fn of(figures: &BusStatistics, name: &str) -> SubscriptionStatistics {
    figures.of(name).expect("subscribed").clone()
}

/// Ends each event as its number says; 4 waits for a permit of `gate`.
fn everything(journal: &Journal, gate: &Arc<Semaphore>) -> Subscription {
    let (journal, gate) = (journal.clone(), Arc::clone(gate));
    Subscription::from_fn(
        "everything",
        move |event: Event<Noted>, _: HandlerContext| {
            let (journal, gate) = (journal.clone(), Arc::clone(&gate));
            async move {
                journal.write("began", event.number);
                match event.number {
                    0 => Err(HandlerError::retry_after(HOUR, "in an hour")),
                    1 => Err(HandlerError::skip("not needed")),
                    2 => Err(HandlerError::permanent("never")),
                    3 => panic!("each time"),
                    4 => {
                        gate.acquire().await?.forget();
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
        },
    )
}

/// The deliveries of a subscription that came to an end: handled, skipped, dead, discarded.
fn ended(one: &SubscriptionStatistics) -> [u64; 4] {
    [one.handled, one.skipped, one.dead, one.discarded]
}

/// Those that did not: waiting, blocked, running, pending, abandoned.
fn open(one: &SubscriptionStatistics) -> [u64; 5] {
    let waits = [one.waiting, one.blocked, one.running];
    [waits[0], waits[1], waits[2], one.pending, one.abandoned]
}

/// N1: at a quiet moment each delivery is in one place, and the places add up; also after a panic, a
/// time-out and a stop.
pub async fn n1_each_delivery_is_in_one_place(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let everything = everything(&journal, &gate).retry(quick_retries(2));
    let sleeps = Subscription::from_fn("sleeps", |_: Event<Noted>, _| std::future::pending());
    let sleeps = sleeps.timeout(Duration::from_millis(5));
    let sleeps = sleeps.retry(RetryPolicy::never()).isolated(1);
    started(&bus, [everything, sleeps]).await;
    // The retry of 0 blocks its aggregate, and 4 keeps the worker.
    for (aggregate, number) in [
        ("a", 0),
        ("a", 5),
        ("a", 6),
        ("b", 1),
        ("c", 2),
        ("d", 7),
        ("g", 3),
    ] {
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    journal.has(6, "began").await;
    for (aggregate, number) in [("e", 4), ("e", 8), ("f", 9)] {
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    journal.has(7, "began").await;
    let figures = || of(&bus.statistics(), "sleeps");
    let overrun = async {
        while figures().lag() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(overrun).await;
    others_run().await;
    let figures = bus.statistics();
    assert_adds_up(&figures);
    let one = of(&figures, "everything");
    assert_eq!((one.matching, ended(&one)), (10, [1, 1, 2, 0]), "{one:?}");
    assert_eq!(open(&one), [1, 2, 1, 2, 0], "{one:?}");
    assert_eq!((one.lag(), one.parked), (6, 0));
    assert_eq!((one.failed_attempts, one.retries), (4, 1), "{one:?}");
    assert!(one.oldest_unfinished.is_some() && one.last_dead.is_some());
    let over_time = of(&figures, "sleeps");
    assert_eq!((over_time.dead, over_time.failed_attempts), (10, 10));
    let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
    let figures = bus.statistics();
    assert_adds_up(&figures);
    let one = of(&figures, "everything");
    assert_eq!((one.matching, ended(&one)), (10, [1, 1, 2, 0]), "{one:?}");
    assert_eq!(open(&one), [0, 0, 0, 0, 6], "{one:?}");
    assert_eq!(ended(&of(&figures, "sleeps")), [0, 0, 10, 0]);
    // Durable, the three of the blocked aggregate count once.
    let left = if harness.is_durable() { (4, 0) } else { (0, 6) };
    assert_eq!((report.left_in_log, report.abandoned), left, "{report:?}");
    assert_eq!((report.drained, report.cut_off), (0, 1), "{report:?}");
}

/// N1: so they do where deliveries are parked or paused, replayed or discarded.
pub async fn n1_what_rests_is_counted_where_it_rests(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let dies = |number, attempt| match (number, attempt) {
        (0, _) => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    };
    let parks = answering("parks", &journal, dies).failure_policy(FailurePolicy::ParkAggregate);
    started(&bus, [parks, journal_of("pauses", &journal).isolated(1)]).await;
    assert!(bus.pause("pauses").await);
    let mut events = Vec::new();
    for (aggregate, number) in [("a", 0), ("a", 1), ("a", 2), ("b", 3)] {
        events.push(
            bus.publish(noted(aggregate, number))
                .await
                .unwrap()
                .event_id(),
        );
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_adds_up(&figures);
    let parked = of(&figures, "parks");
    assert_eq!(ended(&parked), [1, 0, 1, 0], "{parked:?}");
    assert_eq!(
        (open(&parked), parked.parked),
        ([0, 2, 0, 0, 0], 2),
        "{parked:?}"
    );
    let paused = of(&figures, "pauses");
    assert_eq!(
        (paused.blocked, paused.parked, paused.pending),
        (4, 0, 0),
        "{paused:?}"
    );
    let Health::Degraded(reasons) = bus.health() else {
        panic!("{}", bus.health())
    };
    let told: Vec<_> = reasons.iter().map(ToString::to_string).collect();
    assert!(
        told.contains(&"pauses is paused: somebody asked for it".to_owned()),
        "{told:?}"
    );
    let waits = "deliveries of parks that wait behind dead letters: 2".to_owned();
    assert!(told.contains(&waits), "{told:?}");
    bus.replay("parks", events[0]).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_adds_up(&bus.statistics());
    assert_eq!(of(&bus.statistics(), "parks").dead, 1, "it died again");
    assert!(tells_of_letters(&bus.health()), "{}", bus.health());
    bus.discard("parks", events[0], "of no use").await.unwrap();
    assert!(bus.resume("pauses").await);
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_adds_up(&figures);
    let parked = of(&figures, "parks");
    assert_eq!(ended(&parked), [3, 0, 0, 1], "{parked:?}");
    assert_eq!(parked.lag(), 0, "{parked:?}");
    assert_eq!(bus.health(), Health::Healthy, "nobody is to look at it");
    assert_eq!(of(&figures, "pauses").handled, 4);
    assert_eq!(figures.dead_letters, 0);
}

fn tells_of_letters(health: &Health) -> bool {
    let Health::Degraded(reasons) = health else {
        return false;
    };
    let of_letters = |reason: &HealthReason| matches!(reason, HealthReason::DeadLetters { .. });
    reasons.iter().any(of_letters)
}

/// N1: a letter of one that has gone is delivered to whoever has its name now, and counted there.
pub async fn n1_a_letter_of_one_that_has_gone_is_counted_where_it_comes(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let dies = answering("one", &journal, |_, _| {
        Err(HandlerError::permanent("never"))
    });
    started(&bus, [dies]).await;
    let event = bus.publish(noted("a", 0)).await.unwrap().event_id();
    soon(bus.wait_idle()).await.unwrap();
    assert!(soon(bus.unsubscribe("one")).await);
    bus.subscribe(journal_of("one", &journal)).await.unwrap();
    bus.replay("one", event).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_adds_up(&figures);
    let one = of(&figures, "one");
    assert_eq!((one.matching, one.handled, one.dead), (1, 1, 0), "{one:?}");
}

/// N2: figures are told for each pipeline and each subscription, and over all.
pub async fn n2_figures_are_told_of_each_and_of_all(harness: &dyn BusHarness) {
    let bus = harness.bus(50, 3);
    let journal = Journal::default();
    let own = journal_of("own", &journal).isolated(2).capacity(7);
    started(&bus, [journal_of("one", &journal), own]).await;
    let earlier = bus.statistics();
    for number in 0..20 {
        soon(bus.publish(noted("a", number))).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_adds_up(&figures);
    let pipelines: Vec<_> = figures
        .pipelines
        .iter()
        .map(|it| (&*it.name, it.workers))
        .collect();
    assert_eq!(pipelines, [("default", 3), ("own", 2)]);
    assert_eq!(figures.pipelines[1].capacity, 7);
    assert!(
        figures.pipelines.iter().all(|it| it.taken == 0),
        "{figures:?}"
    );
    assert_eq!(figures.sum(|one| one.handled), 40);
    for latency in [figures.handling, figures.publish_to_handled] {
        assert_eq!(latency.count, 40);
        assert!(latency.p50 <= latency.p95 && latency.p95 <= latency.p99);
        assert!(latency.p99 <= latency.max && latency.mean <= latency.max);
    }
    assert_eq!(of(&figures, "own").handling.count, 20);
    assert!(figures.rate_since(&earlier, |it| it.accepted) > 0.0);
    if cfg!(target_os = "linux") {
        assert!(figures.resident_memory.is_some());
    }
    assert_eq!((figures.oldest_unfinished, figures.running), (None, true));
}

/// N3: a bus that keeps up is healthy; one whose queue is nearly full, or that lags or gives up, says so;
/// one that does not run is stopped.
pub async fn n3_health_says_what_is_wrong(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    assert_eq!(bus.health(), Health::Stopped);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(&journal, &gate)]).await;
    assert_eq!(bus.health(), Health::Healthy);
    for number in 0..9 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    journal.has(1, "began").await;
    let full = HealthReason::NearlyFull {
        pipeline: "default".into(),
        taken: 9,
        capacity: 10,
    };
    assert_eq!(bus.health(), Health::Degraded(vec![full]));
    gate.add_permits(9);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(bus.health(), Health::Healthy);
    let dies = answering("dies", &journal, |_, _| {
        Err(HandlerError::permanent("never"))
    });
    bus.subscribe(dies).await.unwrap();
    gate.add_permits(1);
    bus.publish(noted("a", 9)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let Health::Degraded(reasons) = bus.health() else {
        panic!("{}", bus.health())
    };
    assert!(
        matches!(&*reasons, [HealthReason::DeadLetters { subscription, dead: 1, .. }]
            if &**subscription == "dies"),
        "{reasons:?}"
    );
    soon(bus.stop(HOUR)).await.unwrap();
    assert_eq!(bus.health(), Health::Stopped);
}
