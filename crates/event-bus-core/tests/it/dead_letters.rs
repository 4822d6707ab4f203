//! How many dead letters a bus without a store keeps, and how much of their errors (F6).

use std::{borrow::Cow, marker::PhantomData};

use domain_events::{
    AttemptResult, DeadLetterQuery, DomainEvent, Event, EventBus, EventId, HandlerContext,
    HandlerError, LetterError, NewEvent, Subscription,
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

/// An event whose Rust type has a name as long as one likes.
#[derive(Serialize, Deserialize)]
struct Named<T>(PhantomData<T>);

impl<T: Send + Sync + 'static> DomainEvent for Named<T> {
    const EVENT_TYPE: &'static str = "test.named";
    const AGGREGATE_TYPE: &'static str = "name";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed("a")
    }
}

type Twice<T> = (T, T);
type Long<T> = Twice<Twice<Twice<Twice<Twice<Twice<Twice<Twice<T>>>>>>>>;

/// The error of the only letter, and of the attempt before it, of a bus with this subscription.
async fn error_of(subscription: Subscription, event: NewEvent) -> String {
    let bus = InMemoryEventBus::new(BusConfig::default()).unwrap();
    bus.subscribe(subscription).await.unwrap();
    bus.start().await.unwrap();
    bus.publish(event).await.unwrap();
    bus.wait_idle().await.unwrap();
    let mut letters = bus.dead_letters(&DeadLetterQuery::all(), 2).await.unwrap();
    let log = bus.processing_log(None, 2).await.unwrap();
    let (AttemptResult::Failed(noted) | AttemptResult::Unreadable(noted)) = &log[0].result else {
        panic!("{log:?}")
    };
    let error = letters.remove(0).error;
    assert_eq!((letters.len(), &error), (0, noted));
    error
}

#[tokio::test]
async fn f6_what_a_handler_says_is_kept_up_to_4_kib() {
    let says = "no ".repeat(2_000);
    let said = says.clone();
    let dies = Subscription::from_fn("dies", move |_: Event<Ticked>, _| {
        std::future::ready(Err(HandlerError::permanent(says.clone())))
    });
    let clock = "a".to_owned();
    let error = error_of(dies, NewEvent::new(Ticked { clock })).await;
    assert_eq!(error, said[..4_096]);
}

#[tokio::test]
async fn f6_why_an_event_was_not_read_is_kept_up_to_4_kib() {
    let nothing = |_: Event<Named<Long<Long<u8>>>>, _| std::future::ready(Ok(()));
    let dies = Subscription::from_fn("dies", nothing);
    let error = error_of(dies, NewEvent::new(Named::<u8>(PhantomData))).await;
    assert!(error.contains("test.named"), "{error}");
    assert_eq!(error.len(), 4_096);
}
