//! What is delivered live is the event that was published, and what a replay would read (D11).

use std::sync::{Arc, Mutex};

use domain_events::{
    DeliveryOutcome, DomainEvent, Event, EventEnvelope, EventId, HandlerContext, NewEvent,
    PublishError, Subscription,
};
use serde::{Deserialize, Deserializer, Serialize};

use super::{BusHarness, Journal, journal_of, left_out, noted, outcomes, soon, started};

/// The notebooks whose events were read from their JSON.
static READ: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// An event that notes when it is read from its JSON.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.watchful", aggregate = "notebook", id = aggregate)]
struct Watchful {
    #[serde(deserialize_with = "noting")]
    aggregate: String,
}

fn noting<'de, D: Deserializer<'de>>(json: D) -> Result<String, D::Error> {
    let aggregate = String::deserialize(json)?;
    READ.lock().unwrap().push(aggregate.clone());
    Ok(aggregate)
}

/// D11: a live event is handed over as it is, and read from its JSON by no delivery; only where it is
/// checked before, as in debug builds, it is read, once.
pub async fn d11_a_live_event_is_handed_over_without_decoding(harness: &dyn BusHarness) {
    let bus = harness.bus(10, 2);
    let wants = |event: &Watchful| !event.aggregate.is_empty();
    let handler = |_: Event<Watchful>, _: HandlerContext| async { Ok(()) };
    let all = |_: Arc<EventEnvelope>, _: HandlerContext| async { Ok(()) };
    let subscriptions = [
        Subscription::from_fn("one", handler).filter(wants),
        Subscription::from_fn("isolated", handler).isolated(1),
        Subscription::from_sync_fn("quick", |_: Event<Watchful>, _| Ok(())),
        Subscription::to_all("all", all),
    ];
    started(&bus, subscriptions).await;
    // Unlike that of any other run of the suite in this process.
    let aggregate = EventId::new().to_string();
    let own = aggregate.clone();
    let receipt = bus.publish(NewEvent::new(Watchful { aggregate })).await;
    let outcomes = outcomes(&receipt.unwrap()).await;
    let handled = |(_, outcome): &(String, _)| *outcome == DeliveryOutcome::Handled;
    assert!(outcomes.len() == 4 && outcomes.iter().all(handled));
    soon(bus.wait_idle()).await.unwrap();
    let read = READ.lock().unwrap();
    let read = read.iter().filter(|aggregate| **aggregate == own).count();
    assert_eq!(read, usize::from(cfg!(debug_assertions)));
}

/// D11: where it is checked, an event that its JSON does not give back as it was is refused, and nothing
/// of its batch is published.
pub async fn d11_an_event_that_is_not_read_back_as_it_was_is_refused(harness: &dyn BusHarness) {
    if left_out(cfg!(debug_assertions), "check it in release builds") {
        return;
    }
    #[derive(Serialize, Deserialize, DomainEvent)]
    #[domain_event(name = "testkit.forgetful", aggregate = "notebook", id = aggregate)]
    struct Forgetful {
        aggregate: String,
        #[serde(skip_deserializing)]
        secret: String,
    }
    let forgetful = |secret: &str| {
        NewEvent::new(Forgetful {
            aggregate: "a".to_owned(),
            secret: secret.to_owned(),
        })
    };
    let bus = harness.bus(10, 1);
    let journal = Journal::default();
    started(&bus, [journal_of("one", &journal)]).await;
    let refused = bus
        .publish_all(vec![noted("a", 1), forgetful("the secret")])
        .await;
    let Err(PublishError::Unfaithful(error)) = refused.map(drop) else {
        panic!("published")
    };
    assert!(error.to_string().contains("testkit.forgetful"), "{error}");
    assert!(!error.to_string().contains("the secret"), "{error}");
    bus.publish(forgetful("")).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!((journal.of("one"), bus.statistics().accepted), (vec![], 1));
}
