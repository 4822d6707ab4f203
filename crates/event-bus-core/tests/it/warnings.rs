//! What a bus says to those who operate it.

use std::sync::{Arc, Mutex, Once};

use domain_events::{DomainEvent, Event, EventBus, NewEvent, Subscription};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "warnings.rung", aggregate = "bell", id = bell)]
struct Rung {
    bell: String,
}

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        SAID.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// What was said of a queue of this capacity.
fn said(capacity: usize) -> Vec<String> {
    let of = format!("capacity={capacity}");
    let all = SAID.lock().unwrap();
    all.iter()
        .filter(|line| line.ends_with(&of))
        .cloned()
        .collect()
}

/// B1: one warning when 80 % is passed and one line when it is over, never one an event.
#[tokio::test]
async fn a_queue_that_is_nearly_full_says_so_once() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        log::set_logger(&Listener).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    let gate = Arc::new(Semaphore::new(0));
    let config = BusConfig {
        capacity: 137,
        workers: 1,
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::new(config).unwrap();
    let held = Arc::clone(&gate);
    let waits = Subscription::from_fn("waits", move |_: Event<Rung>, _| {
        let gate = Arc::clone(&held);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    });
    bus.subscribe(waits.capacity(53)).await.unwrap();
    let rung = || {
        NewEvent::new(Rung {
            bell: "a".to_owned(),
        })
    };
    bus.start().await.unwrap();
    for _ in 0..42 {
        bus.publish(rung()).await.unwrap();
    }
    assert_eq!(said(53), [""; 0], "42 of 53 are not above 80 %");
    for _ in 42..53 {
        bus.publish(rung()).await.unwrap();
    }
    assert_eq!(
        said(53),
        ["queue above 80 %: pipeline=waits events=43 capacity=53"]
    );
    gate.add_permits(53);
    bus.wait_idle().await.unwrap();
    let said_in_all = said(53);
    assert_eq!(said_in_all.len(), 2, "{said_in_all:?}");
    assert!(said_in_all[1].starts_with("queue below 60 % again: pipeline=waits events=31"));
    assert_eq!(said(137), [""; 0], "the default queue was empty");
}
