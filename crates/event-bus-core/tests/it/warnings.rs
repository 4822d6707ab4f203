//! What a bus says to those who operate it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Once},
};

use domain_events::{
    AggregateRef, DeadLetterQuery, DomainEvent, Event, EventBus, FailurePolicy, HandlerError,
    NewEvent, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_testkit::memory_store::MemoryStore;
use log::kv::{Key, Value, VisitSource};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "warnings.rung", aggregate = "bell", id = bell)]
struct Rung {
    bell: String,
    #[serde(default)]
    strokes: u64,
}

/// What was said: the line, and its fields.
static SAID: Mutex<Vec<(String, BTreeMap<String, String>)>> = Mutex::new(Vec::new());

/// Whoever is to say this breaks down.
pub(crate) const UNSPEAKABLE: &str = "what no logger can say";

struct Listener;

/// Gathers the fields of a line.
#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl<'a> VisitSource<'a> for Fields {
    fn visit_pair(&mut self, key: Key<'a>, value: Value<'a>) -> Result<(), log::kv::Error> {
        self.0.insert(key.to_string(), value.to_string());
        Ok(())
    }
}

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut fields = Fields::default();
        record.key_values().visit(&mut fields).unwrap();
        let line = (record.args().to_string(), fields.0);
        assert!(!line.0.contains(UNSPEAKABLE), "it cannot be said");
        SAID.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

pub(crate) fn listen() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        log::set_logger(&Listener).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    });
}

/// What was said of a queue of this capacity.
fn said(capacity: usize) -> Vec<String> {
    let of = format!("capacity={capacity}");
    let all = SAID.lock().unwrap();
    let lines = all.iter().map(|(line, _)| line);
    lines.filter(|line| line.ends_with(&of)).cloned().collect()
}

/// Each line names what it is about in its text and in its fields, and none holds a payload.
#[tokio::test]
async fn a_line_names_its_subscription_and_its_event_once_more_as_fields() {
    listen();
    let bus = InMemoryEventBus::new(BusConfig::default()).unwrap();
    let fails = |_: Event<Rung>, _| async { Err(HandlerError::permanent("it is cracked")) };
    bus.subscribe(Subscription::from_fn("listens", fails))
        .await
        .unwrap();
    bus.start().await.unwrap();
    let bell = "a bell that is nobody's business".to_owned();
    let published = bus
        .publish(NewEvent::new(Rung { bell, strokes: 0 }))
        .await
        .unwrap();
    bus.wait_idle().await.unwrap();
    assert!(bus.pause("listens").await);
    let all = SAID.lock().unwrap();
    let of = |(_, fields): &&(String, BTreeMap<String, String>)| {
        fields.get("subscription").is_some_and(|it| it == "listens")
    };
    let lines: Vec<_> = all.iter().filter(of).collect();
    let texts: Vec<_> = lines.iter().map(|(text, _)| &**text).collect();
    let id = published.event_id();
    let failed =
        format!("attempt failed: subscription=listens event.id={id} attempt=1: it is cracked");
    let dead = format!(
        "dead letter: subscription=listens event.id={id} event.type=warnings.rung attempts=1 \
         reason=permanent: it is cracked"
    );
    let paused = "subscription paused: subscription=listens";
    assert_eq!(texts, [&*failed, &*dead, paused]);
    let fields = &lines[1].1;
    assert_eq!(
        (&*fields["event.id"], &*fields["attempts"]),
        (&*id.to_string(), "1")
    );
    assert!(!format!("{all:?}").contains("nobody's business"));
}

/// F6: a replay and a discard are recorded, of each letter by itself, and once more where it was one of
/// many.
#[tokio::test]
async fn f6_what_is_done_with_a_dead_letter_is_said_of_each() {
    let volatile = InMemoryEventBus::new(BusConfig::default()).unwrap();
    says_what_is_done(volatile, "tolls").await;
}

#[tokio::test]
async fn f6_what_is_done_with_a_stored_dead_letter_is_said_of_each() {
    let store = Arc::new(MemoryStore::new());
    let durable = InMemoryEventBus::with_store(BusConfig::default(), store).unwrap();
    says_what_is_done(durable, "peals").await;
}

async fn says_what_is_done(bus: InMemoryEventBus, name: &str) {
    listen();
    let fails = |_: Event<Rung>, _| async { Err(HandlerError::permanent("it is cracked")) };
    let named = Subscription::from_fn(name, fails);
    bus.subscribe(named).await.unwrap();
    bus.start().await.unwrap();
    let mut events = Vec::new();
    for bell in ["a", "a", "b", "b"] {
        let bell = bell.to_owned();
        let published = bus
            .publish(NewEvent::new(Rung { bell, strokes: 0 }))
            .await
            .unwrap();
        bus.wait_idle().await.unwrap();
        events.push(published.event_id());
    }
    bus.replay(name, events[0]).await.unwrap();
    bus.wait_idle().await.unwrap();
    bus.discard(name, events[1], "it was sold").await.unwrap();
    let those = DeadLetterQuery::of(name);
    let of_b = those.clone().aggregate(AggregateRef::new("bell", "b"));
    assert_eq!(bus.replay_all(&of_b).await.unwrap(), 2);
    bus.wait_idle().await.unwrap();
    assert_eq!(bus.discard_all(&those, "all were sold").await.unwrap(), 3);
    let all = SAID.lock().unwrap();
    let settled = all.iter().filter(|(text, _)| {
        let done = text.strip_prefix("dead letter");
        let done = done.is_some_and(|it| it.contains("replayed:") || it.contains("discarded:"));
        done && text.contains(name)
    });
    let lines: Vec<_> = settled.collect();
    let expected = [
        ("replayed", 0, ""),
        ("discarded", 1, ": it was sold"),
        ("replayed", 2, ""),
        ("replayed", 3, ""),
        ("discarded", 0, ": all were sold"),
        ("discarded", 2, ": all were sold"),
        ("discarded", 3, ": all were sold"),
    ];
    let expected = expected.map(|(done, event, why)| {
        let id = events[event];
        format!("dead letter {done}: subscription={name} event.id={id}{why}")
    });
    let is_one = |line: &&&(String, BTreeMap<_, _>)| line.0.starts_with("dead letter ");
    let ones: Vec<_> = lines.iter().filter(is_one).collect();
    let texts: Vec<_> = ones.iter().map(|(text, _)| text).collect();
    assert_eq!(texts, expected.iter().collect::<Vec<_>>());
    for ((_, fields), event) in ones.iter().zip([0, 1, 2, 3, 0, 2, 3]) {
        let named = (&*fields["subscription"], &*fields["event.id"]);
        assert_eq!(named, (name, &*events[event].to_string()));
    }
    let sums: Vec<_> = lines.iter().filter(|line| !is_one(line)).collect();
    let [replayed, discarded] = &*sums else {
        panic!("{sums:?}")
    };
    assert!(replayed.0.starts_with("dead letters replayed: letters=2: "));
    let starts = discarded
        .0
        .starts_with("dead letters discarded: letters=3: ");
    assert!(
        starts && discarded.0.ends_with(": all were sold"),
        "{discarded:?}"
    );
}

/// B1: one warning when 80 % is passed and one line when it is over, never one an event.
#[tokio::test]
async fn a_queue_that_is_nearly_full_says_so_once() {
    listen();
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
            strokes: 0,
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

/// F6: a dead letter that is lost to the bound is named, and frees what was parked behind it.
#[tokio::test]
async fn f6_a_letter_that_is_lost_is_named() {
    listen();
    let config = BusConfig {
        dead_letters: 1,
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::new(config).unwrap();
    let cracked = |event: Event<Rung>, _| async move {
        match event.bell.as_str() {
            "b" | "a" if event.strokes == 0 => Err(HandlerError::permanent("it is cracked")),
            _ => Ok(()),
        }
    };
    let parks = Subscription::from_fn("parks", cracked);
    bus.subscribe(parks.failure_policy(FailurePolicy::ParkAggregate))
        .await
        .unwrap();
    bus.start().await.unwrap();
    let rung = |bell: &str, strokes| {
        let bell = bell.to_owned();
        bus.publish(NewEvent::new(Rung { bell, strokes }))
    };
    let lost = rung("a", 0).await.unwrap();
    let waits = rung("a", 1).await.unwrap();
    bus.wait_idle().await.unwrap();
    assert_eq!(bus.statistics().of("parks").unwrap().parked, 1);
    rung("b", 0).await.unwrap();
    bus.wait_idle().await.unwrap();
    assert!(waits.handled().await.unwrap().is_success());
    assert_eq!(bus.statistics().evicted_dead_letters, 1);
    let line = format!(
        "dead letter lost to the bound: subscription=parks event.id={}",
        lost.event_id()
    );
    let said = SAID.lock().unwrap();
    assert_eq!(said.iter().filter(|(text, _)| *text == line).count(), 1);
}
