//! Where the bus lets go of what is the user's, and where who comes and goes meets what is under way.

use std::{
    borrow::Cow,
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use domain_events::{
    DeadLetterQuery, DomainEvent, Event, EventBus, FailurePolicy, HandlerContext, HandlerError,
    NewEvent, RetryPolicy, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::sleep};

use crate::soon::{is_pending, until};

const SOON: Duration = Duration::from_secs(5);

type Bus = Arc<InMemoryEventBus>;

macro_rules! event {
    ($name:ident, $type:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name {
            bell: String,
            number: u64,
        }
        impl DomainEvent for $name {
            const EVENT_TYPE: &'static str = $type;
            const AGGREGATE_TYPE: &'static str = "bell";
            fn aggregate_id(&self) -> Cow<'_, str> {
                Cow::Borrowed(&self.bell)
            }
        }
    };
}
event!(First, "test.first");
event!(Second, "test.second");
event!(Looking, "test.looking");

fn first(bell: &str, number: u64) -> NewEvent {
    let bell = bell.to_owned();
    NewEvent::new(First { bell, number })
}

fn second(bell: &str, number: u64) -> NewEvent {
    let bell = bell.to_owned();
    NewEvent::new(Second { bell, number })
}

fn looking() -> NewEvent {
    NewEvent::new(Looking {
        bell: "a".to_owned(),
        number: 0,
    })
}

/// The bus that the drop of a `Looking` looks at.
static LOOKED_AT: OnceLock<Mutex<Weak<InMemoryEventBus>>> = OnceLock::new();

fn look_at(bus: &Bus) {
    *LOOKED_AT.get_or_init(Mutex::default).lock().unwrap() = Arc::downgrade(bus);
}

impl Drop for Looking {
    fn drop(&mut self) {
        let Some(bus) = LOOKED_AT.get() else { return };
        let bus = bus.lock().unwrap().upgrade();
        if let Some(bus) = bus {
            bus.statistics();
        }
    }
}

fn bus(capacity: usize, workers: usize) -> Bus {
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
) -> Bus {
    let bus = bus(capacity, workers);
    for subscription in subscriptions {
        bus.subscribe(subscription).await.unwrap();
    }
    bus.start().await.unwrap();
    bus
}

/// Runs `work` on a thread and runtime of its own; fails where it does not come to an end.
fn ends(work: impl Future<Output = ()> + Send + 'static) {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work);
        std::mem::forget(runtime);
        let _ = tell.send(());
    });
    told.recv_timeout(SOON).expect("it waits for itself");
}

type Log = Arc<Mutex<Vec<u64>>>;

fn notes(name: &str, log: &Log) -> Subscription {
    let log = Arc::clone(log);
    Subscription::from_fn(name, move |event: Event<First>, _| {
        log.lock().unwrap().push(event.number);
        async { Ok(()) }
    })
}

/// The payload of an event that nobody wants is not dropped under the lock of the bus.
#[test]
fn d7_the_drop_of_an_unwanted_event_may_look_at_the_bus() {
    ends(async {
        let bus = started(10, 1, []).await;
        look_at(&bus);
        bus.publish(looking()).await.unwrap();
    });
}

/// Neither are the events of a batch that is too large.
#[test]
fn p3_the_drop_of_an_event_that_is_refused_may_look_at_the_bus() {
    ends(async {
        let takes = Subscription::from_fn("takes", |_: Event<Looking>, _| async { Ok(()) });
        let bus = started(10, 1, [takes.isolated(1).capacity(1)]).await;
        look_at(&bus);
        assert!(bus.publish_all(vec![looking(), looking()]).await.is_err());
    });
}

/// Looks at the bus when it is dropped.
struct Looks(Weak<InMemoryEventBus>);

impl Drop for Looks {
    fn drop(&mut self) {
        if let Some(bus) = self.0.upgrade() {
            bus.statistics();
        }
    }
}

/// Neither is a handler that is refused.
#[test]
fn l4_the_drop_of_a_handler_that_is_refused_may_look_at_the_bus() {
    ends(async {
        let bus = started(10, 1, [notes("taken", &Log::default())]).await;
        let looks = Looks(Arc::downgrade(&bus));
        let again = Subscription::from_fn("taken", move |_: Event<First>, _| {
            let _ = &looks;
            async { Ok(()) }
        });
        assert!(bus.subscribe(again).await.is_err());
    });
}

/// A dead letter does not keep the handler of a subscription that went, and may itself go later.
#[test]
fn f6_a_dead_letter_outlives_its_handler() {
    ends(async {
        let bus = started(10, 1, []).await;
        let looks = Looks(Arc::downgrade(&bus));
        let life = Arc::new(());
        let alive = Arc::downgrade(&life);
        let dies = Subscription::from_fn("dies", move |_: Event<First>, _| {
            let _ = (&looks, &life);
            async { Err(HandlerError::permanent("never")) }
        })
        .failure_policy(FailurePolicy::ParkAggregate);
        bus.subscribe(dies).await.unwrap();
        let receipt = bus.publish(first("a", 0)).await.unwrap();
        let event = receipt.event_id();
        receipt.handled().await.unwrap();
        drop(receipt);
        assert!(bus.unsubscribe("dies").await);
        until(|| alive.strong_count() == 0).await;
        bus.discard("dies", event, "no").await.unwrap();
    });
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {}
}

/// Neither is a waker that is replaced.
#[test]
fn p4_the_drop_of_a_waker_may_look_at_the_bus() {
    ends(async {
        let (began, gate) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
        let bus = started(1, 1, [waits("waits", &began, &gate)]).await;
        bus.publish(first("a", 0)).await.unwrap();
        let mut publish = bus.publish(first("a", 1));
        let looks = Waker::from(Arc::new(Looks(Arc::downgrade(&bus))));
        let polled = publish.as_mut().poll(&mut Context::from_waker(&looks));
        assert!(polled.is_pending());
        drop(looks);
        let polled = publish
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
    });
}

fn waits(name: &str, began: &Arc<AtomicUsize>, gate: &Arc<Semaphore>) -> Subscription {
    let (began, gate) = (Arc::clone(began), Arc::clone(gate));
    Subscription::from_fn(name, move |_: Event<First>, _| {
        began.fetch_add(1, SeqCst);
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    })
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the drop of a handler");
        }
    }
}

/// The drop of a handler whose subscription went while its retry waited does not end the task of all
/// timers.
#[tokio::test]
async fn f3_the_drop_of_a_handler_that_panics_ends_no_timer() {
    let later = |after| async move {
        Err::<(), _>(HandlerError::retry_after(
            Duration::from_millis(after),
            "later",
        ))
    };
    let bomb = Bomb;
    let bombs = Subscription::from_fn("bombs", move |_: Event<Second>, _| {
        let _ = &bomb;
        later(100)
    });
    let handled = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&handled);
    let retries = move |_: Event<First>, cx: HandlerContext| {
        let again = cx.attempt() == 1;
        counts.fetch_add(usize::from(!again), SeqCst);
        async move {
            if again {
                return later(200).await;
            }
            Ok(())
        }
    };
    let bus = started(10, 1, [bombs, Subscription::from_fn("retries", retries)]).await;
    drop(bus.publish(second("a", 0)).await.unwrap());
    drop(bus.publish(first("a", 0)).await.unwrap());
    until(|| {
        bus.statistics()
            .subscriptions
            .iter()
            .all(|it| it.waiting == 1)
    })
    .await;
    // Whoever drops it last may be told of the panic.
    let going = Arc::clone(&bus);
    let _ = tokio::spawn(async move { going.unsubscribe("bombs").await }).await;
    until(|| handled.load(SeqCst) == 1).await;
}

/// Who goes and comes again from inside its handler does not wait for itself.
#[tokio::test(start_paused = true)]
async fn l4_a_handler_may_go_and_come_again() {
    let cell: Arc<OnceLock<Bus>> = Arc::default();
    let (held, tried) = (Arc::clone(&cell), Arc::new(AtomicUsize::new(0)));
    let ends = Arc::clone(&tried);
    let changes = move |_: Event<First>, _: HandlerContext| {
        let (bus, ends) = (Arc::clone(held.get().unwrap()), Arc::clone(&ends));
        async move {
            bus.unsubscribe("s").await;
            let _ = bus.subscribe(notes("s", &Log::default())).await;
            ends.fetch_add(1, SeqCst);
            Ok(())
        }
    };
    let bus = started(10, 1, [Subscription::from_fn("s", changes)]).await;
    cell.set(Arc::clone(&bus)).ok().unwrap();
    bus.publish(first("a", 0)).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(tried.load(SeqCst), 1, "it ran past its time-out");
}

/// A dead letter of an earlier subscription of the name, replayed, lets nothing go that is parked
/// behind another one.
#[tokio::test]
async fn f5_a_replay_lets_nothing_go_that_another_dead_letter_parks() {
    let parks = |log: &Log| {
        let log = Arc::clone(log);
        Subscription::from_fn("s", move |event: Event<First>, cx: HandlerContext| {
            log.lock().unwrap().push(event.number);
            let dies = event.number < 2 && !cx.info().is_replay;
            async move {
                match dies {
                    true => Err(HandlerError::permanent("never")),
                    false => Ok(()),
                }
            }
        })
        .failure_policy(FailurePolicy::ParkAggregate)
        .retry(RetryPolicy::never())
    };
    let log = Log::default();
    let bus = started(10, 1, [parks(&log)]).await;
    let old = bus.publish(first("a", 0)).await.unwrap();
    old.handled().await.unwrap();
    assert!(bus.unsubscribe("s").await);
    bus.subscribe(parks(&log)).await.unwrap();
    let dead = bus.publish(first("a", 1)).await.unwrap();
    dead.handled().await.unwrap();
    bus.publish(first("a", 2)).await.unwrap();
    bus.wait_idle().await.unwrap();
    assert_eq!(*log.lock().unwrap(), [0, 1]);
    bus.replay("s", old.event_id()).await.unwrap();
    bus.wait_idle().await.unwrap();
    let letters = bus
        .dead_letters(&DeadLetterQuery::of("s"), 10)
        .await
        .unwrap();
    assert_eq!(letters.len(), 1, "event 1 is still a dead letter");
    assert!(
        !log.lock().unwrap().contains(&2),
        "event 2 is parked behind 1"
    );
}

/// Who waits for two pipelines comes in though both are busy with those who want one.
#[tokio::test]
async fn p4_who_waits_for_two_pipelines_is_not_starved() {
    let gates = [Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0))];
    let (shared, own) = (Arc::clone(&gates[0]), Arc::clone(&gates[1]));
    let takes = Subscription::from_fn("shared", move |_: Event<First>, _| {
        let gate = Arc::clone(&shared);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    });
    let takes_own = Subscription::from_fn("own", move |_: Event<Second>, _| {
        let gate = Arc::clone(&own);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    });
    let bus = started(2, 2, [takes, takes_own.isolated(2)]).await;
    for number in 0..2 {
        bus.publish(first(&format!("{number}"), 0)).await.unwrap();
        bus.publish(second(&format!("{number}"), 0)).await.unwrap();
    }
    let mut both = Box::pin({
        let bus = Arc::clone(&bus);
        async move {
            let both = vec![first("x", 0), second("x", 0)];
            drop(bus.publish_all(both).await.unwrap());
        }
    });
    assert!(is_pending(&mut both).await);
    let both = tokio::spawn(both);
    let entered: Arc<AtomicUsize> = Arc::default();
    for number in 0..200 {
        for of_first in [true, false] {
            let (bus, entered) = (Arc::clone(&bus), Arc::clone(&entered));
            tokio::spawn(async move {
                let bell = format!("late {number}");
                let event = if of_first {
                    first(&bell, 0)
                } else {
                    second(&bell, 0)
                };
                bus.publish(event).await.unwrap();
                entered.fetch_add(1, SeqCst);
            });
        }
    }
    for round in 0..200 {
        gates[round % 2].add_permits(1);
        until(|| bus.statistics().finished > round as u64).await;
        if both.is_finished() {
            return;
        }
    }
    let passed = entered.load(SeqCst);
    panic!("{passed} that came later were let in before it");
}

/// A batch that its pipeline can hold is not refused by the capacity of another one.
#[tokio::test]
async fn p3_a_batch_is_too_large_only_for_a_pipeline_that_wants_it() {
    let log = Log::default();
    let bus = started(2, 1, [notes("own", &log).isolated(1).capacity(100)]).await;
    let batch = (0..5).map(|number| first("a", number)).collect();
    let published = bus.publish_all(batch).await.map(drop);
    assert!(published.is_ok(), "{published:?}");
}

/// Neither is a handler that goes before the start dropped under a lock.
#[test]
fn l4_the_drop_of_a_handler_that_goes_before_the_start_may_look_at_the_bus() {
    ends(async {
        let bus = bus(10, 1);
        let looks = Looks(Arc::downgrade(&bus));
        let goes = Subscription::from_fn("goes", move |_: Event<First>, _| {
            let _ = &looks;
            async { Ok(()) }
        });
        bus.subscribe(goes).await.unwrap();
        assert!(bus.unsubscribe("goes").await);
    });
}
