//! How long a batch waits for company (D9), by a clock that is paused.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{Batch, BatchVerdicts, DeliveryOutcome, HandlerError, Subscription};
use tokio::time::{Instant, sleep};

use super::{BusHarness, Noted, noted, started, timing::assert_times};

/// D9: a batch waits for company only where it is told to, no longer than told, and no more once it is
/// full.
pub async fn d9_a_batch_lingers_as_long_as_it_is_told(harness: &dyn BusHarness) {
    let beginning = Instant::now();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let batches = |name: &'static str| {
        let seen = Arc::clone(&seen);
        Subscription::from_batch_fn(name, 3, move |batch: Batch<Noted>| {
            let at = beginning.elapsed().as_millis();
            seen.lock().unwrap().push((name, batch.len(), at));
            async { Ok(BatchVerdicts::all_handled()) }
        })
    };
    let bus = harness.bus(100, 1);
    let second = Duration::from_secs(1);
    started(
        &bus,
        [batches("at once"), batches("lingers").linger(second)],
    )
    .await;
    let mut number = 0;
    for count in [1, 2, 3, 4] {
        for _ in 0..count {
            bus.publish(noted("a", number)).await.unwrap();
            number += 1;
        }
        bus.wait_idle().await.unwrap();
    }
    bus.publish(noted("a", 99)).await.unwrap();
    sleep(second / 2).await;
    bus.publish(noted("b", 99)).await.unwrap();
    bus.stop(second * 10).await.unwrap();
    let seen = seen.lock().unwrap();
    let of = |name| {
        seen.iter()
            .filter(move |it| it.0 == name)
            .map(|it| (it.1, it.2))
    };
    let (sizes, at): (Vec<_>, Vec<_>) = of("lingers").unzip();
    assert_eq!(sizes, [1, 2, 3, 3, 1, 2]);
    assert_times(&at, &[1_000, 2_000, 2_000, 2_000, 3_000, 3_500]);
    let (sizes, at): (Vec<_>, Vec<_>) = of("at once").unzip();
    assert_eq!(sizes, [1, 2, 3, 3, 1, 1, 1]);
    assert_times(&at, &[0, 1_000, 2_000, 2_000, 2_000, 3_000, 3_500]);
}

/// L4: who unsubscribes does not wait for company that a batch waits for.
pub async fn l4_unsubscribing_does_not_wait_for_company(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let handler = |_: Batch<Noted>| async { Ok(BatchVerdicts::all_handled()) };
    let lingers = Subscription::from_batch_fn("lingers", 10, handler);
    started(&bus, [lingers.linger(Duration::from_secs(60))]).await;
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let beginning = Instant::now();
    assert!(bus.unsubscribe("lingers").await);
    let outcome = receipt.handled().await.unwrap().outcomes[0].1;
    assert_eq!(outcome, DeliveryOutcome::Stopped);
    assert_eq!(beginning.elapsed(), Duration::ZERO);
}

/// A subscription of batches that notes when each began, how large it was, and the number of its first
/// attempt; `answer` gives the verdicts.
fn batches(
    size: usize,
    answer: impl Fn(&Batch<Noted>) -> BatchVerdicts + Send + Sync + 'static,
) -> (Subscription, Seen) {
    let (beginning, seen) = (Instant::now(), Seen::default());
    let noting = Arc::clone(&seen);
    let handler = move |batch: Batch<Noted>| {
        let attempt = batch.iter().map(|(_, cx)| cx.attempt()).max();
        let at = beginning.elapsed().as_millis();
        noting
            .lock()
            .unwrap()
            .push((at, batch.len(), attempt.unwrap_or_default()));
        std::future::ready(Ok(answer(&batch)))
    };
    (Subscription::from_batch_fn("batches", size, handler), seen)
}

type Seen = Arc<Mutex<Vec<(u128, usize, u32)>>>;

/// D9: where the queue has no room for more, a batch waits for no more.
pub async fn d9_a_batch_does_not_wait_for_what_has_no_room(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (batches, seen) = batches(10, |_| BatchVerdicts::all_handled());
    let batches = batches.capacity(2).linger(Duration::from_secs(10));
    started(&bus, [batches]).await;
    for number in 0..6 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    bus.wait_idle().await.unwrap();
    let seen = seen.lock().unwrap();
    let handled: usize = seen.iter().map(|(_, count, _)| count).sum();
    assert_eq!(handled, 6, "{seen:?}");
    assert!(seen.iter().all(|(at, ..)| *at < 100), "{seen:?}");
}

/// D9: what other workers are at is no company.
pub async fn d9_what_others_handle_is_no_company(harness: &dyn BusHarness) {
    let beginning = Instant::now();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&sizes);
    let handler = move |batch: Batch<Noted>| {
        let at = beginning.elapsed().as_millis();
        noting.lock().unwrap().push((at, batch.len()));
        async {
            sleep(Duration::from_secs(20)).await;
            Ok(BatchVerdicts::all_handled())
        }
    };
    let batches = Subscription::from_batch_fn("batches", 3, handler).isolated(2);
    let bus = harness.bus(100, 1);
    started(&bus, [batches.linger(Duration::from_secs(5))]).await;
    for number in 0..3 {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    for (aggregate, pause) in [("b", 1), ("c", 1)] {
        sleep(Duration::from_secs(pause)).await;
        bus.publish(noted(aggregate, 9)).await.unwrap();
    }
    bus.wait_idle().await.unwrap();
    let (at, sizes): (Vec<_>, Vec<_>) = sizes.lock().unwrap().iter().copied().unzip();
    assert_eq!(sizes, [3, 2]);
    assert_times(&at, &[0, 6_000]);
}

/// D9: a delivery that failed comes alone, and waits for no company; nor for what does.
pub async fn d9_a_retry_does_not_wait_for_company(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (batches, seen) = batches(10, |batch| {
        let mut verdicts = BatchVerdicts::all_handled();
        for (place, (event, cx)) in batch.iter().enumerate() {
            if event.number == 0 && cx.attempt() < 3 {
                verdicts.fail(place, HandlerError::transient("no"));
            }
        }
        verdicts
    });
    let minute = Duration::from_secs(60);
    let batches = batches.retry(super::timing::exact()).linger(minute);
    started(&bus, [batches]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    sleep(minute + Duration::from_millis(150)).await;
    bus.publish(noted("b", 1)).await.unwrap();
    bus.wait_idle().await.unwrap();
    let seen = seen.lock().unwrap();
    let attempts: Vec<_> = seen
        .iter()
        .map(|(_, count, attempt)| (*count, *attempt))
        .collect();
    assert_eq!(attempts, [(1, 1), (1, 2), (1, 3), (1, 1)], "{seen:?}");
    let at: Vec<_> = seen.iter().map(|(at, ..)| *at).collect();
    assert_times(&at, &[60_000, 60_100, 60_300, 120_150]);
}

/// D9, D5: a delivery that failed has its turn, however much makes up full batches.
pub async fn d9_a_retry_has_its_turn_among_full_batches(harness: &dyn BusHarness) {
    let beginning = Instant::now();
    let retried: Arc<Mutex<Option<Duration>>> = Arc::default();
    let at = Arc::clone(&retried);
    let handler = move |batch: Batch<Noted>| {
        let at = Arc::clone(&at);
        async move {
            sleep(Duration::from_millis(10)).await;
            let mut verdicts = BatchVerdicts::all_handled();
            for (place, (event, cx)) in batch.iter().enumerate() {
                if event.aggregate().id() != "bad" {
                    // Each aggregate has its next event as long as this lasts.
                    if beginning.elapsed() < Duration::from_secs(5) {
                        cx.publish(noted(event.aggregate().id(), 1)).await?;
                    }
                } else if cx.attempt() == 1 {
                    let later = Duration::from_millis(105);
                    verdicts.fail(place, HandlerError::retry_after(later, "no"));
                } else {
                    *at.lock().unwrap() = Some(beginning.elapsed());
                }
            }
            Ok(verdicts)
        }
    };
    let bus = harness.bus(1_000, 1);
    started(&bus, [Subscription::from_batch_fn("batches", 10, handler)]).await;
    let first = ["bad", "a", "b", "c"].map(|aggregate| noted(aggregate, 0));
    bus.publish_all(first.into()).await.unwrap();
    // From now on two groups take turns, and none is alone.
    sleep(Duration::from_millis(112)).await;
    for aggregate in ["d", "e"] {
        bus.publish(noted(aggregate, 0)).await.unwrap();
    }
    bus.wait_idle().await.unwrap();
    let retried = retried.lock().unwrap().expect("it was retried");
    assert!(retried < Duration::from_millis(200), "{retried:?}");
}
