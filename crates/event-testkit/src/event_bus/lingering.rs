//! How long a batch waits for company (D9), by a clock that is paused.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{Batch, BatchVerdicts, DeliveryOutcome, Subscription};
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
