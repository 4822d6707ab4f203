//! The bus without a store at its edges: who stops, goes, gives up or panics at an awkward moment.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use domain_events::{
    DomainEvent, Event, EventBus, HandlerContext, HandlerError, NewEvent, Priority, PublishError,
    RetryPolicy, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use crate::soon::{is_pending, soon, until};

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Serialize, Deserialize)]
struct Rung {
    bell: String,
    number: u64,
}

impl DomainEvent for Rung {
    const EVENT_TYPE: &'static str = "test.rung";
    const AGGREGATE_TYPE: &'static str = "bell";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.bell)
    }
}

fn rung(bell: &str, number: u64) -> NewEvent {
    NewEvent::new(Rung {
        bell: bell.to_owned(),
        number,
    })
}

fn bus(capacity: usize, workers: usize) -> Arc<InMemoryEventBus> {
    let config = BusConfig {
        capacity,
        workers,
        ..BusConfig::default()
    };
    Arc::new(InMemoryEventBus::new(config).unwrap())
}

async fn started(
    capacity: usize,
    workers: usize,
    subscriptions: impl IntoIterator<Item = Subscription>,
) -> Arc<InMemoryEventBus> {
    let bus = bus(capacity, workers);
    for subscription in subscriptions {
        bus.subscribe(subscription).await.unwrap();
    }
    soon(bus.start()).await.unwrap();
    bus
}

/// A subscription that never comes to an end with what it handles, and counts that.
fn hangs(began: &Arc<AtomicUsize>) -> Subscription {
    let began = Arc::clone(began);
    let handler = move |_: Event<Rung>, _: HandlerContext| {
        began.fetch_add(1, SeqCst);
        std::future::pending()
    };
    Subscription::from_fn("hangs", handler)
}

/// A subscription that counts what it handles, and ends when let through the gate.
fn waits(began: &Arc<AtomicUsize>, gate: &Arc<Semaphore>) -> Subscription {
    let (began, gate) = (Arc::clone(began), Arc::clone(gate));
    let handler = move |_: Event<Rung>, _: HandlerContext| {
        began.fetch_add(1, SeqCst);
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    };
    Subscription::from_fn("waits", handler)
}

#[tokio::test]
async fn p4_who_waits_for_room_is_not_let_in_once_a_stop_has_begun() {
    let (began, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let bus = started(1, 1, [waits(&began, &gate)]).await;
    bus.publish(rung("a", 0)).await.unwrap();
    let mut publish = bus.publish(rung("a", 1));
    assert!(is_pending(&mut publish).await);
    let mut stop = bus.stop(HOUR);
    assert!(is_pending(&mut stop).await);
    until(|| !bus.statistics().running).await;
    gate.add_permits(10);
    soon(stop).await.unwrap();
    let refused = soon(publish).await.map(drop);
    assert!(matches!(refused, Err(PublishError::Stopped)), "{refused:?}");
    assert_eq!(began.load(SeqCst), 1);
}

#[tokio::test]
async fn l4_a_guard_that_is_dropped_while_the_bus_starts_removes_its_subscription() {
    let bus = bus(10, 1);
    let handler = |_: Event<Rung>, _: HandlerContext| async { Ok(()) };
    let subscribe = |name: &str| bus.subscribe_guarded(Subscription::from_fn(name, handler));
    let (goes, stays) = (
        subscribe("goes").await.unwrap(),
        subscribe("stays").await.unwrap(),
    );
    let mut start = Box::pin(bus.start());
    assert!(is_pending(&mut start).await);
    drop(goes);
    soon(start).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let names: Vec<_> = bus
        .statistics()
        .subscriptions
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(names, ["stays".into()]);
    stays.keep();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 10)]
async fn l2_handlers_that_block_outlive_the_stop_and_nothing_follows_them() {
    let (began, followed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (open, gate) = mpsc::channel::<()>();
    let (noted, gate) = (Arc::clone(&began), Arc::new(Mutex::new(gate)));
    let blocks = move |_: Event<Rung>, _: HandlerContext| {
        noted.fetch_add(1, SeqCst);
        drop(gate.lock().map(|gate| gate.recv()));
        std::future::ready(Ok(()))
    };
    let counts = Arc::clone(&followed);
    let follows = move |_: Event<Rung>, _: HandlerContext| {
        counts.fetch_add(1, SeqCst);
        std::future::ready(Ok(()))
    };
    let blocks = Subscription::from_fn("blocks", blocks).priority(Priority::HIGH);
    let follows = Subscription::from_fn("follows", follows);
    let bus = started(10, 8, [blocks, follows]).await;
    for number in 0..8 {
        bus.publish(rung(&number.to_string(), number))
            .await
            .unwrap();
    }
    until(|| began.load(SeqCst) == 8).await;
    let stopped = Instant::now();
    let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(6), "8 times the grace: {took:?}");
    assert_eq!(report.cut_off, 8);
    drop(open);
    let metrics = Handle::current().metrics();
    until(|| metrics.num_alive_tasks() == 0).await;
    assert_eq!((began.load(SeqCst), followed.load(SeqCst)), (8, 0));
}

#[tokio::test]
async fn l2_a_stop_that_nobody_waits_for_does_not_hold_up_the_next() {
    let began = Arc::new(AtomicUsize::new(0));
    let bus = started(10, 1, [hangs(&began)]).await;
    bus.publish(rung("a", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    let given_up = timeout(Duration::from_millis(20), bus.stop(HOUR)).await;
    assert!(given_up.is_err());
    soon(bus.stop(Duration::ZERO)).await.unwrap();
    drop(bus);
    let metrics = Handle::current().metrics();
    until(|| metrics.num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn l1_a_start_that_nobody_waits_for_does_not_hold_up_the_stop() {
    let bus = bus(10, 1);
    let mut start = bus.start();
    is_pending(&mut start).await;
    drop(start);
    soon(bus.stop(Duration::ZERO)).await.unwrap();
}

#[tokio::test]
async fn l1_a_stop_beside_a_start_comes_to_its_end() {
    for _ in 0..200 {
        let bus = bus(1, 1);
        let (starting, stopping) = (Arc::clone(&bus), Arc::clone(&bus));
        let starting = tokio::spawn(async move { starting.start().await });
        let stopping = tokio::spawn(async move { stopping.stop(Duration::ZERO).await });
        drop(soon(starting).await.unwrap());
        soon(stopping).await.unwrap().unwrap();
    }
}

#[test]
fn l1_a_runtime_without_a_timer_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(bus(10, 1).start()).unwrap_err();
}

#[tokio::test]
async fn l4_who_goes_while_a_retry_waits_leaves_no_receipt_and_no_room_behind() {
    let began = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&began);
    let later = move |_: Event<Rung>, _: HandlerContext| {
        counts.fetch_add(1, SeqCst);
        std::future::ready(Err(HandlerError::retry_after(HOUR, "later")))
    };
    let bus = started(1, 1, [Subscription::from_fn("later", later)]).await;
    let receipt = bus.publish(rung("a", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    assert!(soon(bus.unsubscribe("later")).await);
    soon(receipt.handled()).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    soon(bus.publish(rung("b", 0))).await.unwrap();
}

#[tokio::test]
async fn l4_going_during_a_stop_keeps_the_report_right() {
    let (quick, began, gate) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Semaphore::new(0)),
    );
    let counts = Arc::clone(&quick);
    let handler = move |_: Event<Rung>, _: HandlerContext| {
        counts.fetch_add(1, SeqCst);
        std::future::ready(Ok(()))
    };
    let first = Subscription::from_fn("quick", handler).priority(Priority::HIGH);
    let bus = started(10, 2, [first, waits(&began, &gate)]).await;
    for bell in ["a", "b", "c"] {
        bus.publish(rung(bell, 0)).await.unwrap();
    }
    until(|| began.load(SeqCst) == 2).await;
    let stopping = Arc::clone(&bus);
    let stopping = tokio::spawn(async move { stopping.stop(HOUR).await.unwrap() });
    until(|| !bus.statistics().running).await;
    assert!(soon(bus.unsubscribe("quick")).await);
    assert!(!soon(bus.unsubscribe("quick")).await);
    let going = Arc::clone(&bus);
    let going = tokio::spawn(async move { going.unsubscribe("waits").await });
    gate.add_permits(10);
    soon(going).await.unwrap();
    let report = soon(stopping).await.unwrap();
    assert!(report.drained <= 6, "{report:?}");
    assert_eq!((report.abandoned, report.cut_off), (0, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_a_name_is_given_once() {
    let bus = started(10, 1, []).await;
    for _ in 0..200 {
        let come = || {
            let bus = Arc::clone(&bus);
            let came = async move {
                let nothing = |_: Event<Rung>, _: HandlerContext| std::future::ready(Ok(()));
                bus.subscribe(Subscription::from_fn("same", nothing))
                    .await
                    .is_ok()
            };
            tokio::spawn(came)
        };
        let (one, other) = (come(), come());
        assert!(soon(one).await.unwrap() != soon(other).await.unwrap());
        assert!(soon(bus.unsubscribe("same")).await);
    }
}

#[tokio::test]
async fn l4_who_goes_from_inside_its_handler_makes_its_last_attempt() {
    let calls = Arc::new(AtomicUsize::new(0));
    let bus = bus(100, 1);
    let (counts, inside) = (Arc::clone(&calls), Arc::downgrade(&bus));
    let goes = move |_: Event<Rung>, _: HandlerContext| {
        let (calls, bus) = (counts.fetch_add(1, SeqCst), Weak::clone(&inside));
        async move {
            if calls == 0 {
                // The others come to wait behind this one.
                let delay = Duration::from_millis(30);
                return Err(HandlerError::retry_after(delay, "later"));
            }
            if let Some(bus) = bus.upgrade() {
                bus.unsubscribe("goes").await;
            }
            Ok(())
        }
    };
    bus.subscribe(Subscription::from_fn("goes", goes))
        .await
        .unwrap();
    bus.start().await.unwrap();
    for number in 0..10 {
        bus.publish(rung("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test]
async fn p2_a_receipt_of_a_dropped_bus_is_told() {
    let began = Arc::default();
    let bus = started(10, 1, [hangs(&began)]).await;
    let receipt = bus.publish(rung("a", 0)).await.unwrap();
    drop(bus);
    // Told one way or the other.
    drop(soon(receipt.handled()).await);
}

/// A panic's payload whose own drop panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the drop of a payload");
        }
    }
}

#[tokio::test]
async fn f1_a_panic_whose_payload_panics_ends_no_worker() {
    let panics = |event: Event<Rung>, _: HandlerContext| async move {
        if event.number == 0 {
            std::panic::panic_any(Bomb);
        }
        Ok(())
    };
    let panics = Subscription::from_fn("panics", panics).retry(RetryPolicy::never());
    let bus = started(10, 1, [panics]).await;
    bus.publish(rung("a", 0)).await.unwrap();
    let receipt = bus.publish(rung("b", 1)).await.unwrap();
    assert!(soon(receipt.handled()).await.unwrap().is_success());
}

/// A waker that looks at the bus.
struct Looks(Weak<InMemoryEventBus>, mpsc::Sender<()>);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        if let Some(bus) = self.0.upgrade() {
            bus.statistics();
        }
        let _ = self.1.send(());
    }
}

#[test]
fn p2_who_is_told_may_look_at_the_bus() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let closed = Arc::clone(&gate);
    let dies = move |_: Event<Rung>, _: HandlerContext| {
        let gate = Arc::clone(&closed);
        async move {
            gate.acquire().await?.forget();
            Err(HandlerError::permanent("never"))
        }
    };
    let bus = runtime.block_on(started(10, 1, [Subscription::from_fn("dies", dies)]));
    let receipt = runtime.block_on(bus.publish(rung("a", 0))).unwrap();
    let (tell, told) = mpsc::channel();
    let waker = Waker::from(Arc::new(Looks(Arc::downgrade(&bus), tell)));
    let mut handled = Box::pin(receipt.handled());
    let polled = handled.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    gate.add_permits(1);
    let told = told.recv_timeout(Duration::from_secs(30));
    if told.is_err() {
        // Its lock is held for ever; the drop of the bus would wait for it.
        std::mem::forget((runtime, bus));
        panic!("the waker was not called, or runs under the lock");
    }
}

#[tokio::test]
async fn a_receipt_that_is_asked_again_and_again_keeps_one_waker() {
    struct Nothing;
    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }
    let began = Arc::default();
    let bus = started(10, 1, [hangs(&began)]).await;
    let receipt = bus.publish(rung("a", 0)).await.unwrap();
    let nothing = Arc::new(Nothing);
    let waker = Waker::from(Arc::clone(&nothing));
    let mut handled = Box::pin(receipt.handled());
    for _ in 0..1_000 {
        let polled = handled.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    drop(handled);
    assert!(Arc::strong_count(&nothing) < 10);
}

#[test]
fn a_progress_interval_that_never_ends_is_refused() {
    let config = BusConfig {
        progress_interval: Duration::MAX,
        ..BusConfig::default()
    };
    assert!(InMemoryEventBus::new(config).is_err());
}
