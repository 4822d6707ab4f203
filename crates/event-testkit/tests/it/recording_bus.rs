//! The recording bus: what it records, refuses and keeps.

use std::{sync::Arc, time::Duration};

use domain_events::{
    ConfigError, DeadLetterQuery, DomainEvent, DomainEventPublisher, Event, EventBus, EventId,
    ExpectedVersion, Handled, LetterError, NewEvent, Priority, PublishError, Receipt, StartError,
    StopReport, SubscribeError, Subscription, UnfaithfulError,
};
use event_testkit::recording_bus::RecordingBus;
use serde::{Deserialize, Serialize, Serializer};

use crate::events::{Ordered, Paid, context, delivered, ordered, paid};

const DEADLINE: Duration = Duration::from_secs(1);

/// An event that its JSON does not give back as it was.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.forgetful", aggregate = "order", id = order)]
struct Forgetful {
    order: String,
    #[serde(skip_deserializing)]
    note: String,
}

/// An event that cannot be written as JSON.
#[derive(Deserialize, DomainEvent)]
#[domain_event(name = "test.unwritable", aggregate = "order", id = order)]
struct Unwritable {
    order: String,
}

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it cannot be written"))
    }
}

/// An event of a name that cannot be one.
#[derive(Serialize, Deserialize)]
struct Nameless;

impl DomainEvent for Nameless {
    const EVENT_TYPE: &'static str = "";
    const AGGREGATE_TYPE: &'static str = "order";

    fn aggregate_id(&self) -> std::borrow::Cow<'_, str> {
        "a".into()
    }
}

/// Another event under the name of [`Paid`].
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.paid", aggregate = "order", id = order)]
struct OtherPaid {
    order: String,
}

fn forgetful() -> NewEvent {
    let (order, note) = ("a".to_owned(), "lost".to_owned());
    NewEvent::new(Forgetful { order, note })
}

fn ignores(name: &str) -> Subscription {
    Subscription::from_fn(name, |_: Event<Ordered>, _| async {
        unreachable!("nothing is delivered")
    })
}

fn names(bus: &RecordingBus) -> Vec<Arc<str>> {
    let figures = bus.statistics().subscriptions.into_iter();
    figures.map(|it| it.name).collect()
}

/// The numbers of the orders recorded.
fn numbers(bus: &RecordingBus) -> Vec<u64> {
    let events = bus.published_of::<Ordered>();
    events.iter().map(|event| event.number).collect()
}

#[tokio::test]
async fn every_way_of_publishing_is_recorded_in_order() {
    let bus = RecordingBus::new();
    let mut receipts = vec![bus.publish(ordered("a", 1)).await.unwrap()];
    let batch = vec![ordered("b", 2), paid("a"), ordered("a", 3)];
    receipts.extend(bus.publish_all(batch).await.unwrap());
    receipts.push(bus.try_publish(ordered("a", 4)).await.unwrap());
    receipts.push(bus.publish_timeout(paid("b"), DEADLINE).await.unwrap());

    let ids: Vec<_> = receipts.iter().map(Receipt::event_id).collect();
    let published: Vec<_> = bus.published().iter().map(|it| it.id()).collect();
    assert_eq!(published, ids);
    assert_eq!(numbers(&bus), [1, 2, 3, 4]);
    let paid = bus.published_of::<Paid>();
    assert_eq!([&paid[0].order, &paid[1].order], ["a", "b"]);

    bus.clear();
    bus.publish(ordered("a", 5)).await.unwrap();
    assert_eq!(numbers(&bus), [5]);
}

#[tokio::test]
async fn p2_a_receipt_has_no_outcomes_and_never_waits() {
    let bus = RecordingBus::new();
    bus.subscribe(ignores("one")).await.unwrap();
    let receipt = bus.publish(ordered("a", 1)).await.unwrap();
    assert_eq!(receipt.handled().await, Ok(Handled::default()));
    assert_eq!(receipt.recorded(), None);
    assert_eq!(bus.wait_idle().await, Ok(()));
}

#[tokio::test]
async fn d11_p3_a_batch_with_an_event_that_cannot_be_read_back_is_not_recorded() {
    let bus = RecordingBus::new();
    let error = bus.publish_all(vec![ordered("a", 1), forgetful()]).await;
    let error = error.unwrap_err();
    let differs = matches!(
        error,
        PublishError::Unfaithful(UnfaithfulError::Differs { .. })
    );
    assert!(differs, "{error:?}");
    let order = "a".to_owned();
    let error = bus.publish(NewEvent::new(Unwritable { order })).await;
    assert!(matches!(error, Err(PublishError::Encode(_))), "{error:?}");
    assert_eq!(bus.published().len(), 0);
}

#[tokio::test]
async fn p6_expected_versions_and_names_that_cannot_be_are_refused() {
    let bus = RecordingBus::new();
    let first = ordered("a", 1).expect(ExpectedVersion::NoStream);
    let error = bus.publish_all(vec![ordered("a", 0), first]).await;
    assert!(matches!(error, Err(PublishError::VersionWithoutStore)));
    let error = bus.publish(NewEvent::new(Nameless)).await.unwrap_err();
    let PublishError::Name(ConfigError { field, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!((&*field, bus.published().len()), ("EVENT_TYPE", 0));
}

#[tokio::test]
async fn l1_publishing_needs_no_start_and_ends_with_the_stop() {
    let bus = RecordingBus::new();
    bus.publish(ordered("a", 1)).await.unwrap();
    assert!(!bus.statistics().running);
    bus.start().await.unwrap();
    assert!(bus.statistics().running);
    let again = bus.start().await;
    assert!(matches!(again, Err(StartError::AlreadyStarted)));
    bus.publish(ordered("a", 2)).await.unwrap();

    for _ in 0..2 {
        assert_eq!(bus.stop(DEADLINE).await.unwrap(), StopReport::default());
    }
    assert!(!bus.statistics().running);
    for events in [vec![], vec![ordered("a", 3)]] {
        let error = bus.publish_all(events).await;
        assert!(matches!(error, Err(PublishError::Stopped)), "{error:?}");
    }
    let error = bus.subscribe(ignores("late")).await;
    assert!(matches!(error, Err(SubscribeError::Stopped)));
    let error = bus.start().await;
    assert!(matches!(error, Err(StartError::AlreadyStarted)));
    assert_eq!(numbers(&bus), [1, 2]);
}

#[tokio::test]
async fn what_is_published_while_disabled_has_a_receipt_and_no_record() {
    let bus = RecordingBus::new();
    bus.disable();
    let receipt = bus.publish(ordered("a", 1)).await.unwrap();
    assert_eq!(receipt.handled().await, Ok(Handled::default()));
    let batch = vec![ordered("a", 2), ordered("a", 3)];
    assert_eq!(bus.publish_all(batch).await.unwrap().len(), 2);
    assert!(bus.publish(forgetful()).await.is_err());
    bus.enable();
    bus.publish(ordered("a", 4)).await.unwrap();
    assert_eq!(numbers(&bus), [4]);
    let figures = bus.statistics();
    assert_eq!((figures.accepted, figures.finished), (4, 4));
}

#[tokio::test]
async fn p4_a_refused_call_gives_its_events_back_once() {
    let bus = RecordingBus::new();
    let full = |events| PublishError::Full {
        capacity: 2,
        events,
    };
    bus.refuse_next(full);
    bus.refuse_next(|_| PublishError::NotStarted);
    assert!(bus.publish_all(vec![]).await.unwrap().is_empty());
    bus.publish(forgetful()).await.unwrap_err();
    let error = bus
        .publish_all(vec![ordered("a", 1), ordered("a", 2)])
        .await;
    let Err(PublishError::Full { events, .. }) = error else {
        panic!("{error:?}")
    };
    let error = bus.try_publish(ordered("a", 9)).await;
    assert!(matches!(error, Err(PublishError::NotStarted)));
    bus.publish_all(events).await.unwrap();
    assert_eq!(numbers(&bus), [1, 2]);
    assert_eq!(bus.statistics().accepted, 2);
}

#[tokio::test]
async fn the_one_event_of_a_type_is_found_among_others() {
    let bus = RecordingBus::new();
    let events = vec![paid("a"), ordered("a", 1), paid("b")];
    bus.publish_all(events).await.unwrap();
    assert_eq!(bus.published_once::<Ordered>().number, 1);
}

/// The text with which `ask` panics.
fn panic_of<T>(ask: impl FnOnce() -> T) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).map(drop);
    *panic.unwrap_err().downcast::<String>().unwrap()
}

#[tokio::test]
async fn who_looks_for_one_event_is_told_what_there_is_and_no_payload() {
    let bus = RecordingBus::new();
    assert_eq!(
        panic_of(|| bus.published_once::<Ordered>()),
        r#"one event of type "test.ordered" was to be published, and 0 were, among []"#
    );
    bus.publish_all(vec![paid("a"), paid("b")]).await.unwrap();
    assert_eq!(
        panic_of(|| bus.published_once::<Paid>()),
        r#"one event of type "test.paid" was to be published, and 2 were, among "#.to_owned()
            + r#"[("test.paid", order/a), ("test.paid", order/b)]"#
    );
}

#[tokio::test]
async fn two_types_with_one_name_are_not_mixed_up() {
    let bus = RecordingBus::new();
    bus.publish(paid("a")).await.unwrap();
    let panic = panic_of(|| bus.published_of::<OtherPaid>());
    assert!(panic.starts_with("two Rust types have one"), "{panic}");
}

#[tokio::test]
async fn subscriptions_are_kept_in_order_of_priority_and_checked() {
    let bus = RecordingBus::new();
    for name in ["one", "two"] {
        bus.subscribe(ignores(name)).await.unwrap();
    }
    let first = ignores("first").priority(Priority::HIGH);
    bus.subscribe(first).await.unwrap();
    let error = bus.subscribe(ignores("two")).await;
    assert!(matches!(error, Err(SubscribeError::DuplicateName(_))));
    let endless = ignores("endless").timeout(Duration::ZERO);
    let error = bus.subscribe(endless).await;
    assert!(matches!(error, Err(SubscribeError::Invalid { .. })));
    assert_eq!(names(&bus).join(" "), "first one two");

    let paused = |name| bus.statistics().of(name).map(|it| it.paused.is_some());
    assert!(bus.pause("one").await);
    assert_eq!((paused("one"), paused("two")), (Some(true), Some(false)));
    assert!(bus.resume("one").await);
    assert_eq!(paused("one"), Some(false));
    assert!(bus.unsubscribe("one").await);
    for known in [
        bus.unsubscribe("one").await,
        bus.pause("one").await,
        bus.resume("one").await,
    ] {
        assert!(!known);
    }
    assert_eq!(names(&bus).join(" "), "first two");
}

#[tokio::test]
async fn l4_a_guard_removes_its_own_subscription() {
    let bus = RecordingBus::new();
    let guard = bus.subscribe_guarded(ignores("one")).await.unwrap();
    assert_eq!(names(&bus).len(), 1);
    drop(guard);
    assert_eq!(names(&bus).len(), 0);

    let guard = bus.subscribe_guarded(ignores("one")).await.unwrap();
    bus.unsubscribe("one").await;
    bus.subscribe(ignores("one")).await.unwrap();
    drop(guard);
    assert_eq!(names(&bus).len(), 1);
}

#[tokio::test]
async fn there_are_neither_attempts_nor_dead_letters() {
    let bus = RecordingBus::new();
    bus.subscribe(ignores("one")).await.unwrap();
    let id = bus.publish(ordered("a", 1)).await.unwrap().event_id();
    let all = DeadLetterQuery::all();
    assert_eq!(bus.dead_letters(&all, 10).await.unwrap(), []);
    assert_eq!(bus.processing_log(None, 10).await.unwrap(), []);
    for error in [
        bus.replay("one", id).await,
        bus.discard("one", id, "").await,
    ] {
        assert!(matches!(error, Err(LetterError::NoSuchLetter { event, .. }) if event == id));
    }
    assert_eq!(bus.replay_all(&all).await.unwrap(), 0);
    assert_eq!(bus.discard_all(&all, "").await.unwrap(), 0);
}

#[tokio::test]
async fn p9_what_a_handler_publishes_is_recorded_with_its_cause() {
    let (bus, event) = (RecordingBus::new(), delivered("a", 1));
    let cx = context(&event, 1, bus.clone());
    cx.publish(paid("a")).await.unwrap();
    let paid = bus.published_once::<Paid>();
    let metadata = paid.envelope().metadata();
    assert_eq!(metadata.causation_id, Some(event.id()));
    assert_eq!(paid.id(), EventId::derived(event.id(), "subscription", 1));
}

/// P8: a domain service is tested with no runtime at all.
#[test]
fn p8_what_a_domain_service_publishes_is_recorded_or_refused() {
    let bus = RecordingBus::new();
    let publisher = bus.publisher();
    publisher.publish(ordered("a", 1)).unwrap();
    let both = publisher.publish_all(vec![ordered("a", 2), ordered("b", 3)]);
    assert_eq!(both.unwrap().len(), 2);
    assert_eq!(numbers(&bus), [1, 2, 3]);
    bus.refuse_next(|events| PublishError::Full {
        capacity: 0,
        events,
    });
    let refused = publisher.publish(ordered("a", 4));
    assert!(
        matches!(refused, Err(PublishError::Full { .. })),
        "{refused:?}"
    );
    assert_eq!(numbers(&bus), [1, 2, 3]);
}
