//! What a bus leaves behind: no task once it is gone, and no event once it is done with.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use domain_events::{
    DomainEvent, Event, EventBus, HandlerContext, HandlerError, NewEvent, RetryPolicy, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::soon::until;

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.weighed", aggregate = "scale", id = scale)]
struct Weighed {
    scale: String,
    number: u64,
    /// Alive as long as the event is.
    #[serde(skip)]
    #[expect(dead_code, reason = "it is counted")]
    life: Arc<()>,
}

fn weighed(scale: &str, number: u64) -> (NewEvent, Weak<()>) {
    let (scale, life) = (scale.to_owned(), Arc::default());
    let alive = Arc::downgrade(&life);
    let event = Weighed {
        scale,
        number,
        life,
    };
    (NewEvent::new(event), alive)
}

/// A subscription that handles, skips, gives up, retries soon and retries late, by the number.
fn mixed(name: &str) -> Subscription {
    let handler = |event: Event<Weighed>, cx: HandlerContext| async move {
        match event.number % 5 {
            0 => Ok(()),
            1 => Err(HandlerError::skip("not needed")),
            2 if cx.attempt() == 1 => Err(HandlerError::retry_after(Duration::ZERO, "again")),
            3 => Err(HandlerError::retry_after(HOUR, "later")),
            _ => Ok(()),
        }
    };
    Subscription::from_fn(name, handler).retry(RetryPolicy::exponential())
}

/// A running bus amid work of every kind: queued, waiting for a retry, and paused.
async fn busy() -> (InMemoryEventBus, Vec<Weak<()>>) {
    let bus = InMemoryEventBus::new(BusConfig::default()).unwrap();
    bus.subscribe(mixed("default")).await.unwrap();
    bus.subscribe(mixed("isolated").isolated(3)).await.unwrap();
    bus.subscribe(mixed("paused").isolated(1)).await.unwrap();
    bus.start().await.unwrap();
    bus.pause("paused").await;
    let mut alive = Vec::new();
    for number in 0..20 {
        let (event, life) = weighed(&format!("s{}", number % 3), number);
        bus.publish(event).await.unwrap();
        alive.push(life);
    }
    (bus, alive)
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn l2_a_dropped_bus_signals_its_tasks_and_forgets_its_events() {
    let (bus, alive) = busy().await;
    assert!(tasks() > 0);
    drop(bus);
    until(|| tasks() == 0).await;
    assert!(alive.iter().all(|life| life.upgrade().is_none()));
}

#[tokio::test]
async fn l2_a_stopped_bus_leaves_no_task_and_no_event() {
    let (bus, alive) = busy().await;
    bus.stop(Duration::ZERO).await.unwrap();
    until(|| tasks() == 0).await;
    assert!(alive.iter().all(|life| life.upgrade().is_none()));
}

#[tokio::test]
async fn l4_a_pipeline_goes_with_its_subscription() {
    let bus = InMemoryEventBus::new(BusConfig::default()).unwrap();
    bus.subscribe(mixed("default")).await.unwrap();
    bus.start().await.unwrap();
    let before = tasks();
    for round in 0..5 {
        bus.subscribe(mixed("isolated").isolated(3)).await.unwrap();
        let (event, _) = weighed("s", 5 * round);
        bus.publish(event).await.unwrap();
        bus.wait_idle().await.unwrap();
        assert!(bus.unsubscribe("isolated").await);
        until(|| tasks() == before).await;
    }
}

#[tokio::test]
async fn p4_what_is_done_takes_no_memory() {
    let bus = InMemoryEventBus::new(BusConfig::default()).unwrap();
    bus.subscribe(mixed("default")).await.unwrap();
    bus.subscribe(mixed("isolated").isolated(3)).await.unwrap();
    bus.start().await.unwrap();
    let mut alive = Vec::new();
    for number in (0..50).filter(|number| number % 5 != 3) {
        let (event, life) = weighed(&format!("s{}", number % 3), number);
        bus.publish(event).await.unwrap();
        alive.push(life);
    }
    bus.wait_idle().await.unwrap();
    until(|| alive.iter().all(|life| life.upgrade().is_none())).await;
}
