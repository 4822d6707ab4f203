//! What is not the bus's own and panics: wakers, panics' payloads, loggers (F1); and threads that are few.

use std::{
    panic::panic_any,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use domain_events::{
    DeadLetterQuery, DomainEvent, Event, EventBus, EventId, HandlerContext, HandlerError, NewEvent,
    RetryPolicy, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Builder, sync::Semaphore};

use crate::soon::{soon, until};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "strangers.called", aggregate = "caller", id = caller)]
struct Called {
    caller: String,
    number: u64,
}

fn called(caller: &str, number: u64) -> NewEvent {
    let caller = caller.to_owned();
    NewEvent::new(Called { caller, number })
}

async fn started(workers: usize, subscription: Subscription) -> Arc<InMemoryEventBus> {
    let config = BusConfig {
        workers,
        ..BusConfig::default()
    };
    let bus = Arc::new(InMemoryEventBus::new(config).unwrap());
    bus.subscribe(subscription).await.unwrap();
    soon(bus.start()).await.unwrap();
    bus
}

/// Publishes an event whose handler does harm, and another one, which is handled all the same.
async fn survives(subscription: Subscription) -> Arc<InMemoryEventBus> {
    let bus = started(1, subscription).await;
    let harm = bus.publish(called("a", 0)).await.unwrap();
    let next = bus.publish(called("b", 1)).await.unwrap();
    assert!(soon(next.handled()).await.unwrap().is_success());
    assert!(!soon(harm.handled()).await.unwrap().is_success());
    bus
}

#[tokio::test]
async fn f1_a_waker_that_panics_at_a_time_out_ends_no_worker() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker's");
        }
    }
    let waits = |event: Event<Called>, cx: HandlerContext| async move {
        if event.number == 0 {
            let waker = Waker::from(Arc::new(Panics));
            let mut cancelled = pin!(cx.cancellation().cancelled());
            let polled = cancelled.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            std::future::pending::<()>().await;
        }
        Ok(())
    };
    let waits = Subscription::from_fn("waits", waits).retry(RetryPolicy::never());
    survives(waits.timeout(Duration::from_millis(10))).await;
}

#[tokio::test]
async fn f1_a_panic_whose_payload_panics_twice_ends_no_worker() {
    struct Inner;
    impl Drop for Inner {
        fn drop(&mut self) {
            panic!("the second");
        }
    }
    struct Outer;
    impl Drop for Outer {
        fn drop(&mut self) {
            panic_any(Inner);
        }
    }
    let bursts = |event: Event<Called>, _| async move {
        if event.number == 0 {
            panic_any(Outer);
        }
        Ok(())
    };
    survives(Subscription::from_fn("bursts", bursts).retry(RetryPolicy::never())).await;
}

#[tokio::test]
async fn f1_a_logger_that_panics_ends_no_worker_and_loses_no_letter() {
    crate::warnings::listen();
    let dies = |event: Event<Called>, _| async move {
        match event.number {
            0 => Err(HandlerError::permanent(crate::warnings::UNSPEAKABLE)),
            _ => Ok(()),
        }
    };
    let bus = survives(Subscription::from_fn("dies", dies)).await;
    let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    assert_eq!(letters.len(), 1);
}

/// F1: the time of a blocking handler runs from when it has a thread, and one that had none when the
/// bus stopped is never called.
#[test]
fn f1_a_blocking_handlers_time_begins_with_its_thread() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let blocks = move |_: Event<Called>, cx: HandlerContext| {
            count.fetch_add(1, SeqCst);
            let until = std::time::Instant::now() + Duration::from_millis(100);
            while std::time::Instant::now() < until && !cx.cancellation().is_cancelled() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            Ok(())
        };
        // Four of them take twice as long as each may.
        let blocks = Subscription::from_blocking_fn("blocks", blocks).retry(RetryPolicy::never());
        let bus = started(8, blocks.timeout(Duration::from_secs(1) / 5)).await;
        for number in 0..4 {
            bus.publish(called(&number.to_string(), number))
                .await
                .unwrap();
        }
        soon(bus.wait_idle()).await.unwrap();
        let figures = bus.statistics().of("blocks").unwrap().clone();
        assert_eq!(
            (figures.handled, figures.failed_attempts),
            (4, 0),
            "{figures:?}"
        );
        for number in 0..3 {
            bus.publish(called(&number.to_string(), number))
                .await
                .unwrap();
        }
        until(|| calls.load(SeqCst) == 5).await;
        let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
        assert_eq!(report.cut_off, 3);
        let last = tokio::task::spawn_blocking(|| {});
        soon(last).await.unwrap();
        assert_eq!(
            calls.load(SeqCst),
            5,
            "two had no thread when the bus stopped"
        );
    });
}

/// F6: of two letters of one event, on a bus that knows no ids, the one that is meant goes.
#[tokio::test]
async fn f6_only_the_letters_that_are_meant_are_settled() {
    let errors = Mutex::new(vec!["second", "first"]);
    let dies = Subscription::from_fn("dies", move |_: Event<Called>, _| {
        let error = errors.lock().unwrap().pop();
        async move { Err(HandlerError::permanent(error.unwrap())) }
    });
    let bus = started(1, dies).await;
    let id = EventId::new();
    for _ in 0..2 {
        bus.publish(called("a", 0).id(id)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let second = DeadLetterQuery::of("dies").error("second");
    assert_eq!(bus.discard_all(&second, "of no use").await.unwrap(), 1);
    let left = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    let left: Vec<_> = left.iter().map(|letter| &*letter.error).collect();
    assert_eq!(left, ["first"]);
}

/// N2: a pipeline keeps its name while its subscription is on its way off.
#[tokio::test]
async fn n2_a_pipeline_that_goes_keeps_its_name() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let own = Subscription::from_fn("own", move |_: Event<Called>, _| {
        let gate = Arc::clone(&held);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    });
    let bus = started(1, own.isolated(1)).await;
    bus.publish(called("a", 0)).await.unwrap();
    until(|| bus.statistics().of("own").unwrap().running == 1).await;
    let leaving = Arc::clone(&bus);
    let leaving = tokio::spawn(async move { leaving.unsubscribe("own").await });
    until(|| bus.statistics().of("own").is_none()).await;
    let names: Vec<_> = bus
        .statistics()
        .pipelines
        .iter()
        .map(|it| it.name.to_string())
        .collect();
    assert_eq!(names, ["default", "own"]);
    gate.add_permits(1);
    assert!(soon(leaving).await.unwrap());
}

/// P4: a dead letter that is delivered again takes memory, and so a place.
#[tokio::test]
async fn p4_a_replay_takes_a_place() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let dies = Subscription::from_fn("dies", move |_: Event<Called>, cx: HandlerContext| {
        let gate = Arc::clone(&held);
        async move {
            if !cx.info().is_replay {
                return Err(HandlerError::permanent("never"));
            }
            gate.acquire().await?.forget();
            Ok(())
        }
    });
    let bus = started(1, dies).await;
    for number in 0..3 {
        bus.publish(called("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(bus.statistics().pipelines[0].taken, 0);
    let replayed = bus.replay_all(&DeadLetterQuery::all()).await.unwrap();
    assert_eq!((replayed, bus.statistics().pipelines[0].taken), (3, 3));
    gate.add_permits(3);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(bus.statistics().pipelines[0].taken, 0);
}
