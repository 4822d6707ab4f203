//! What a handler knows of its attempt besides the event: deadline and cancellation.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use domain_events::{Batch, Cancellation, DeliveryOutcome, Event, HandlerContext, Subscription};

use super::{BusHarness, HOUR, Journal, Noted, noted, outcome, quick_retries, soon, started};

/// A subscription whose handler never ends, but has a task that writes down when it is given up.
fn hangs(journal: &Journal) -> Subscription {
    let journal = journal.clone();
    Subscription::from_fn("hangs", move |event: Event<Noted>, cx: HandlerContext| {
        let log = journal.clone();
        async move {
            let (cancellation, told) = (cx.cancellation().clone(), log.clone());
            tokio::spawn(async move {
                cancellation.cancelled().await;
                told.write("given up", u64::from(cx.attempt()));
            });
            log.write("began", event.number);
            std::future::pending().await
        }
    })
}

/// F1: the context says when the attempt will have failed, and that is when it began and its time-out.
pub async fn f1_the_context_tells_the_deadline(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |timeout: Duration| {
        let told = Arc::clone(&told);
        let name = format!("{timeout:?}");
        let tells = Subscription::from_fn(name, move |_: Event<Noted>, cx: HandlerContext| {
            let (deadline, info) = (cx.deadline(), cx.info().deadline);
            assert_eq!(deadline, info);
            told.lock().unwrap().push((timeout, deadline));
            async { Ok(()) }
        });
        tells.timeout(timeout)
    };
    started(&bus, [tell(HOUR), tell(Duration::MAX)]).await;
    let before = Instant::now();
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let after = Instant::now();
    for (timeout, deadline) in told.lock().unwrap().drain(..) {
        match deadline {
            Some(deadline) => assert!((before + HOUR..=after + HOUR).contains(&deadline)),
            None => assert_eq!(timeout, Duration::MAX, "too far off"),
        }
    }
}

/// F1: an attempt that runs past its time-out tells those who work on it still.
pub async fn f1_what_a_handler_spawned_is_told_of_its_time_out(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    let hangs = hangs(&journal)
        .timeout(Duration::from_millis(20))
        .retry(quick_retries(2));
    started(&bus, [hangs]).await;
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    assert_eq!(outcome(&receipt).await, DeliveryOutcome::Dead);
    journal.has(2, "given up").await;
    assert_eq!(journal.of("given up"), [1, 2]);
}

/// F1, D9: so does a batch, of which all events are given up at once.
pub async fn f1_what_a_batch_spawned_is_told_of_its_time_out(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    let log = journal.clone();
    let handler = move |batch: Batch<Noted>| {
        let of_events = batch.iter().map(|(_, cx)| cx.cancellation().clone());
        for (number, given_up) in (0..).zip(of_events.chain([batch.cancellation()])) {
            let told = log.clone();
            tokio::spawn(async move {
                given_up.cancelled().await;
                told.write("given up", number);
            });
        }
        std::future::pending()
    };
    let hangs = Subscription::from_batch_fn("hangs", 10, handler)
        .timeout(Duration::from_millis(20))
        .retry(quick_retries(1));
    started(&bus, [hangs]).await;
    let batch = vec![noted("a", 0), noted("b", 1)];
    for receipt in bus.publish_all(batch).await.unwrap() {
        assert_eq!(outcome(&receipt).await, DeliveryOutcome::Dead);
    }
    journal.has(3, "given up").await;
    let mut given_up = journal.of("given up");
    given_up.sort_unstable();
    assert_eq!(given_up, [0, 1, 2]);
}

/// L2: so does one that a stop cuts off.
pub async fn l2_what_a_handler_spawned_is_told_of_the_stop(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    started(&bus, [hangs(&journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "began").await;
    assert_eq!(journal.of("given up"), [0; 0]);
    let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
    assert_eq!(report.cut_off, 1);
    journal.has(1, "given up").await;
}

/// An attempt that came to its end is never given up, whatever becomes of later ones.
pub async fn f1_an_attempt_that_ended_is_not_given_up(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 1);
    let held = Arc::new(Mutex::new(Vec::<Cancellation>::new()));
    let holds = Arc::clone(&held);
    let handler = move |event: Event<Noted>, cx: HandlerContext| {
        holds.lock().unwrap().push(cx.cancellation().clone());
        async move {
            if event.number == 1 {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    };
    let sometimes = Subscription::from_fn("sometimes", handler)
        .timeout(Duration::from_millis(20))
        .retry(quick_retries(1));
    started(&bus, [sometimes]).await;
    for number in 0..3 {
        let receipt = bus.publish(noted("a", number)).await.unwrap();
        outcome(&receipt).await;
    }
    let held = held.lock().unwrap();
    let given_up: Vec<_> = held.iter().map(Cancellation::is_cancelled).collect();
    assert_eq!(given_up, [false, true, false]);
}
