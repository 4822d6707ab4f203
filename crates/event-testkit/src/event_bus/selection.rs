//! What a subscription makes of an event before its handler sees it: filter and transform.

use std::sync::Arc;

use domain_events::{
    DeliveryOutcome, Event, EventEnvelope, HandlerError, SubscribeError, Subscription,
};

use super::{
    BusHarness, Followed, Journal, Noted, followed, journal_of, noted, outcome, quick_retries,
    soon, started,
};

/// D10: filters choose by content or by envelope; what they pass over counts as done, and its order
/// is kept.
pub async fn d10_a_filtered_event_counts_as_done(harness: &dyn BusHarness) {
    let bus = harness.bus(4, 2);
    let journal = Journal::default();
    let subscriptions = [
        journal_of("even", &journal).filter(|event: &Noted| event.number.is_multiple_of(2)),
        journal_of("of-a", &journal).filter_envelope(|event| event.aggregate().id() == "a"),
        journal_of("isolated", &journal)
            .isolated(1)
            .filter(|event: &Noted| event.number > 5),
    ];
    started(&bus, subscriptions).await;
    for number in 0..10 {
        let aggregate = if number < 5 { "a" } else { "b" };
        let receipt = soon(bus.publish(noted(aggregate, number))).await.unwrap();
        assert!(soon(receipt.handled()).await.unwrap().is_success());
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("even"), [0, 2, 4, 6, 8]);
    assert_eq!(journal.of("of-a"), [0, 1, 2, 3, 4]);
    assert_eq!(journal.of("isolated"), [6, 7, 8, 9]);
    let figures = bus.statistics();
    assert_eq!((figures.finished, figures.in_flight), (10, 0));
}

/// D10: a handler gets what the transform makes of the event; a transform that fails is a failed
/// attempt, and has the verdict of its error.
pub async fn d10_a_failing_transform_is_a_failed_attempt(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let (tries, log) = (journal.clone(), journal.clone());
    let transform = move |event: Event<Noted>| {
        tries.write("tries", event.number);
        match (event.number, tries.of("tries").len()) {
            (0, 3) => Ok(event.number + 100),
            (1, _) => Err(HandlerError::permanent("never")),
            (2, _) => Err(HandlerError::skip("not needed")),
            _ => Err(HandlerError::transient("not yet")),
        }
    };
    let handler = move |number: u64, _| {
        log.write("handled", number);
        async { Ok(()) }
    };
    let transformed = Subscription::transformed("transformed", transform, handler);
    started(&bus, [transformed.retry(quick_retries(3))]).await;
    use DeliveryOutcome::{Dead, Handled, Skipped};
    for (number, expected) in (0..).zip([Handled, Dead, Skipped, Dead]) {
        let receipt = bus.publish(noted("a", number)).await.unwrap();
        assert_eq!(outcome(&receipt).await, expected, "event {number}");
    }
    assert_eq!(journal.of("handled"), [100]);
    assert_eq!(journal.of("tries"), [0, 0, 0, 1, 2, 3, 3, 3]);
    let figures = &bus.statistics().subscriptions[0];
    assert_eq!((figures.failed_attempts, figures.retries), (6, 4));
}

/// D10: a subscription to all gets the envelope of every event, of whatever type, in order.
pub async fn d10_a_subscription_to_all_gets_every_type(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 4);
    let journal = Journal::default();
    let log = journal.clone();
    let all = move |event: Arc<EventEnvelope>, _| {
        let number = event.payload().map(|json| json.len() as u64);
        log.write(event.event_type(), number.unwrap_or(0));
        async { Ok(()) }
    };
    started(&bus, [Subscription::to_all("all", all)]).await;
    let batch = vec![noted("a", 1), followed("a", 2), noted("a", 3)];
    bus.publish_all(batch).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let size = r#"{"aggregate":"a","number":1}"#.len() as u64;
    let types = ["testkit.noted", "testkit.followed", "testkit.noted"];
    assert_eq!(journal.lines(), types.map(|name| (name.to_owned(), size)));
}

/// D10: a filter that reads another type than the handler is refused before anything runs.
pub async fn d10_a_filter_of_another_type_is_refused(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let wrong = journal_of("wrong", &Journal::default()).filter(|_: &Followed| true);
    let refused = bus.subscribe(wrong).await;
    assert!(
        matches!(&refused, Err(SubscribeError::Invalid { name, .. }) if &**name == "wrong"),
        "{refused:?}"
    );
    started(&bus, []).await;
}
