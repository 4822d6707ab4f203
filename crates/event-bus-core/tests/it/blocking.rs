//! A blocking handler past its time-out, by a clock that is paused.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use domain_events::{
    DomainEvent, Event, EventBus, HandlerContext, NewEvent, RetryPolicy, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, advance};

use crate::soon::until;

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.printed", aggregate = "printer", id = printer)]
struct Printed {
    printer: String,
}

/// F1: the delay before the next attempt counts from the return, be the time-out long past.
#[tokio::test(start_paused = true)]
async fn f1_the_retry_of_a_blocking_handler_counts_from_its_return() {
    let (second, delay) = (Duration::from_secs(1), Duration::from_secs(10));
    let (open, gate) = mpsc::channel::<()>();
    let (gate, times) = (Mutex::new(gate), Arc::new(Mutex::new(Vec::new())));
    let noted = Arc::clone(&times);
    let prints = move |_: Event<Printed>, cx: HandlerContext| {
        noted.lock().unwrap().push(Instant::now());
        if cx.attempt() == 1 {
            gate.lock().unwrap().recv().unwrap();
            noted.lock().unwrap().push(Instant::now());
        }
        Ok(())
    };
    let policy = RetryPolicy::exponential().base(delay).jitter(0.0);
    let prints = Subscription::from_blocking_fn("prints", prints).timeout(second);
    let bus = InMemoryEventBus::new(BusConfig::default()).unwrap();
    bus.subscribe(prints.retry(policy)).await.unwrap();
    bus.start().await.unwrap();
    let printer = "a".to_owned();
    let printed = NewEvent::new(Printed { printer });
    bus.publish(printed).await.unwrap();
    until(|| times.lock().unwrap().len() == 1).await;
    // The clock does not go on by itself while a handler blocks.
    while bus.statistics().of("prints").unwrap().stuck == 0 {
        advance(second).await;
    }
    advance(2 * delay).await;
    open.send(()).unwrap();
    bus.wait_idle().await.unwrap();
    let times = times.lock().unwrap();
    let (blocked, waited) = (times[1] - times[0], times[2] - times[1]);
    assert!(
        times.len() == 3 && blocked >= second + 2 * delay,
        "{times:?}"
    );
    assert!((delay..delay + second).contains(&waited), "{waited:?}");
}
