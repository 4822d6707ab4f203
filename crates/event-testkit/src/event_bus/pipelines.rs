//! Pipelines: how many run at once, who holds up whom, and the orders they keep.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use domain_events::{Event, HandlerContext, HandlerError, Ordering, SubscribeError, Subscription};
use tokio::sync::{Barrier, Semaphore};

use super::{
    BusHarness, Fate, HOUR, Journal, Noted, answering, followed, gated, hears, journal_of, noted,
    others_run, quick_retries, soon, started,
};

/// D6: `workers` handlers of a pipeline run at once, and never more: right after the start, and for
/// a subscription with workers of its own.
async fn runs_at_once(harness: &dyn BusHarness, workers: usize, isolated: bool) {
    let bus = harness.bus(100, if isolated { 7 } else { workers });
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let waits = gated(&journal, &gate);
    let waits = if isolated {
        waits.isolated(workers)
    } else {
        waits
    };
    started(&bus, [waits]).await;
    let batch = (0..9).map(|n| noted(format!("a{n}"), n)).collect();
    bus.publish_all(batch).await.unwrap();
    for round in 0..9 {
        let running = workers.min(9 - round);
        journal.has(round + running, "began").await;
        others_run().await;
        assert_eq!(journal.of("began").len(), round + running);
        gate.add_permits(1);
        journal.has(round + 1, "seen").await;
    }
    soon(bus.wait_idle()).await.unwrap();
}

/// D6, L1: right after the start exactly as many handlers run at once as there are workers.
pub async fn d6_as_many_handlers_run_as_there_are_workers(harness: &dyn BusHarness) {
    runs_at_once(harness, 3, false).await;
}

/// D4, D6: the workers of a pipeline of its own bound its concurrency, and not those of the bus.
pub async fn d4_an_isolated_subscription_has_workers_of_its_own(harness: &dyn BusHarness) {
    runs_at_once(harness, 2, true).await;
}

/// D6: a waiting retry holds no worker, however many wait.
pub async fn d6_a_waiting_retry_holds_no_worker(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let fails = answering("fails", &journal, |number, _| {
        if number < 10 {
            return Err(HandlerError::retry_after(HOUR, "later"));
        }
        Ok(())
    });
    started(&bus, [fails]).await;
    for number in 0..10 {
        bus.publish(noted(format!("a{number}"), number))
            .await
            .unwrap();
    }
    let receipt = bus.publish(noted("b", 10)).await.unwrap();
    assert!(soon(receipt.handled()).await.unwrap().is_success());
    journal.has(11, "fails").await;
    soon(bus.stop(std::time::Duration::ZERO)).await.unwrap();
}

/// D4: a subscription of its own pipeline that does not come to an end delays nobody else.
pub async fn d4_a_slow_isolated_subscription_delays_nobody_else(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let slow = gated(&journal, &gate).isolated(1);
    started(&bus, [slow, journal_of("default", &journal)]).await;
    for number in 0..20 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    journal.has(20, "default").await;
    journal.has(1, "began").await;
    assert_eq!(journal.of("began"), [0]);
    gate.add_permits(20);
    soon(bus.wait_idle()).await.unwrap();
    let all: Vec<_> = (0..20).collect();
    assert_eq!(
        (journal.of("default"), journal.of("seen")),
        (all.clone(), all)
    );
}

/// D4: a subscription of its own pipeline that fails for ever delays nobody else.
pub async fn d4_a_failing_isolated_subscription_delays_nobody_else(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let fails = answering("fails", &journal, |_, _| {
        Err(HandlerError::retry_after(HOUR, "later"))
    });
    let other = journal_of("other", &journal).isolated(1);
    started(
        &bus,
        [fails.isolated(1), other, journal_of("default", &journal)],
    )
    .await;
    for number in 0..20 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    journal.has(20, "default").await;
    journal.has(20, "other").await;
    journal.has(1, "fails").await;
    others_run().await;
    assert_eq!(journal.of("fails"), [0]);
    soon(bus.stop(std::time::Duration::ZERO)).await.unwrap();
}

/// D4: nor does the default pipeline delay an isolated subscription, whether its one worker is busy
/// or its queue is full.
pub async fn d4_a_slow_default_pipeline_delays_no_isolated_subscription(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let own = [journal_of("own", &journal), hears("hears", &journal)];
    let own = own.map(|subscription| subscription.isolated(1));
    started(&bus, own.into_iter().chain([gated(&journal, &gate)])).await;
    for number in 0..2 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    journal.has(2, "own").await;
    // Durable, room in the default pipeline comes before the log.
    if !harness.is_durable() {
        for number in 0..5 {
            soon(bus.publish(followed("a", number))).await.unwrap();
        }
        journal.has(5, "hears").await;
    }
    journal.has(1, "began").await;
    assert_eq!(journal.of("began"), [0]);
    gate.add_permits(2);
    soon(bus.wait_idle()).await.unwrap();
}

/// D2: a total order is one order of all events, one at a time, for every subscription that asks for
/// it, also under failures by chance.
pub async fn d2_a_total_order_is_one_order_of_all_events(harness: &dyn BusHarness) {
    let (bus, fate) = (harness.bus(100, 4), Fate::fresh());
    let overlaps = Arc::new(AtomicUsize::new(0));
    let total = |name: &'static str| {
        let (order, running) = (
            Arc::<Mutex<Vec<u64>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (log, overlaps) = (Arc::clone(&order), Arc::clone(&overlaps));
        let handler = move |event: Event<Noted>, cx: HandlerContext| {
            let (log, running) = (Arc::clone(&log), Arc::clone(&running));
            let overlaps = Arc::clone(&overlaps);
            async move {
                overlaps.fetch_add(running.fetch_add(1, SeqCst), SeqCst);
                log.lock().unwrap().push(event.number);
                tokio::task::yield_now().await;
                running.fetch_sub(1, SeqCst);
                if cx.attempt() < 4 && fate.below(4, (name, event.number, cx.attempt())) == 0 {
                    return Err(HandlerError::transient("by chance"));
                }
                Ok(())
            }
        };
        let subscription = Subscription::from_fn(name, handler);
        (
            subscription
                .ordering(Ordering::Total)
                .retry(quick_retries(4)),
            order,
        )
    };
    let ((one, order_of_one), (other, order_of_other)) = (total("one"), total("other"));
    started(
        &bus,
        [one, other, journal_of("default", &Journal::default())],
    )
    .await;
    let publisher = |first: u64| {
        let bus = Arc::clone(&bus);
        async move {
            for number in first..first + 50 {
                let event = noted(format!("a{}", number % 5), number);
                bus.publish(event).await.unwrap();
            }
        }
    };
    for task in [0, 1_000].map(|first| tokio::spawn(publisher(first))) {
        soon(task).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let [one, other] = [order_of_one, order_of_other].map(|order| {
        let mut order = order.lock().unwrap().clone();
        order.dedup();
        order
    });
    assert_eq!(overlaps.load(SeqCst), 0);
    assert_eq!(one.len(), 100);
    assert_eq!(one, other);
    for of_one in [0, 1] {
        assert!(
            one.iter()
                .filter(|&&number| number / 1_000 == of_one)
                .is_sorted(),
            "{one:?}"
        );
    }
}

/// D2: where the order is given up, events of one aggregate run side by side, and none waits for one
/// that failed.
pub async fn d2_without_an_order_events_of_an_aggregate_run_side_by_side(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, all_of_them) = (Journal::default(), Arc::new(Barrier::new(3)));
    let log = journal.clone();
    let meets = move |event: Event<Noted>, _| {
        let (all_of_them, journal) = (Arc::clone(&all_of_them), log.clone());
        async move {
            if event.number == 0 {
                return Err(HandlerError::retry_after(HOUR, "later"));
            }
            all_of_them.wait().await;
            journal.write("met", event.number);
            Ok(())
        }
    };
    let meets = Subscription::from_fn("meets", meets);
    started(&bus, [meets.ordering(Ordering::None).isolated(3)]).await;
    for number in 0..7 {
        bus.publish(noted("same", number)).await.unwrap();
    }
    journal.has(6, "met").await;
    let mut met = journal.of("met");
    met.sort_unstable();
    assert_eq!(met, [1, 2, 3, 4, 5, 6]);
    soon(bus.stop(std::time::Duration::ZERO)).await.unwrap();
}

/// D4: a pipeline that cannot work is refused before anything runs, by the name of what cannot.
pub async fn d4_a_pipeline_that_cannot_work_is_refused(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let one = || journal_of("one", &journal);
    let total = one().ordering(Ordering::Total).isolated(2);
    let wrong = [
        ("subscription.workers", "0", one().isolated(0)),
        ("subscription.capacity", "0", one().capacity(0)),
        ("subscription.capacity", "0", one().isolated(1).capacity(0)),
        ("subscription.workers", "2", total),
    ];
    for (field, value, wrong) in wrong {
        let refused = bus.subscribe(wrong).await.unwrap_err();
        let SubscribeError::Invalid { source, .. } = &refused else {
            panic!("{refused:?}")
        };
        let expected = format!("{field} was not accepted: {value},");
        assert!(source.to_string().starts_with(&expected), "{source}");
    }
    started(&bus, [one().isolated(1).capacity(1)]).await;
}
