//! How many dead letters a bus without a store keeps (F6).

use domain_events::{
    DeadLetterQuery, DomainEvent, Event, EventBus, EventId, HandlerContext, HandlerError,
    LetterError, NewEvent, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.ticked", aggregate = "clock", id = clock)]
struct Ticked {
    clock: String,
}

/// A running bus that keeps three letters, and the events of five deliveries given up.
async fn bus_with_letters() -> (InMemoryEventBus, Vec<EventId>) {
    let config = BusConfig {
        dead_letters: 3,
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::new(config).unwrap();
    let dies = |_: Event<Ticked>, cx: HandlerContext| async move {
        if cx.info().is_replay {
            return Ok(());
        }
        Err(HandlerError::permanent("no"))
    };
    bus.subscribe(Subscription::from_fn("dies", dies))
        .await
        .unwrap();
    bus.start().await.unwrap();
    let mut events = Vec::new();
    for clock in ["a", "b", "c", "d", "e"] {
        let clock = clock.to_owned();
        let receipt = bus.publish(NewEvent::new(Ticked { clock })).await.unwrap();
        bus.wait_idle().await.unwrap();
        events.push(receipt.event_id());
    }
    (bus, events)
}

async fn kept(bus: &InMemoryEventBus) -> Vec<EventId> {
    let letters = bus
        .dead_letters(&DeadLetterQuery::of("dies"), 10)
        .await
        .unwrap();
    letters.iter().map(|letter| letter.event_id()).collect()
}

#[tokio::test]
async fn f6_dead_letters_are_kept_up_to_a_bound_and_the_rest_is_counted() {
    let (bus, events) = bus_with_letters().await;
    assert_eq!(kept(&bus).await, events[2..]);
    assert_eq!(bus.statistics().evicted_dead_letters, 2);
}

#[tokio::test]
async fn f6_a_letter_lost_to_the_bound_is_not_replayed_or_discarded() {
    let (bus, events) = bus_with_letters().await;
    let lost = bus.replay("dies", events[0]).await;
    assert!(
        matches!(lost, Err(LetterError::NoSuchLetter { .. })),
        "{lost:?}"
    );
    let lost = bus.discard("dies", events[1], "lost").await;
    assert!(
        matches!(lost, Err(LetterError::NoSuchLetter { .. })),
        "{lost:?}"
    );
    bus.discard("dies", events[3], "of no use").await.unwrap();
    bus.replay("dies", events[2]).await.unwrap();
    bus.wait_idle().await.unwrap();
    assert_eq!(kept(&bus).await, events[4..]);
    assert_eq!(
        bus.statistics().evicted_dead_letters,
        2,
        "nothing else was lost"
    );
}
