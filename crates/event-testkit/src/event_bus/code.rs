//! Panics wherever a user's code runs: each stays in its own delivery.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use domain_events::{
    DeliveryOutcome, DomainEvent, Event, EventBus, EventEnvelope, EventHandler, HandlerContext,
    HandlerError, NewEvent, PublishError, RetryPolicy, Subscription,
};
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Journal, Noted, gated, journal_of, noted, outcome, outcomes, quick_retries, soon,
    started,
};

/// Panics when it is dropped, once.
#[derive(Default)]
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(self.0 || std::thread::panicking(), "dropped");
    }
}

/// A bus with one worker that still handles events and comes to an end.
async fn works_on(bus: &Arc<dyn EventBus>, journal: &Journal) {
    let before = journal.of("journal").len();
    let receipt = soon(bus.publish(noted("works-on", 99))).await.unwrap();
    soon(receipt.handled()).await.unwrap();
    journal.has(before + 1, "journal").await;
    soon(bus.wait_idle()).await.unwrap();
    soon(bus.stop(Duration::from_secs(20))).await.unwrap();
}

/// Runs a subscription whose code panics for event 0 at the first attempt beside another one: the
/// attempt has failed and is retried, and nobody else is hurt.
async fn is_a_failed_attempt(harness: &dyn BusHarness, subscription: Subscription) {
    let (bus, journal) = (harness.bus(100, 1), Journal::default());
    let subscription = subscription.retry(quick_retries(2));
    started(&bus, [subscription, journal_of("journal", &journal)]).await;
    let receipts = [0, 1].map(|number| bus.publish(noted("a", number)));
    for receipt in receipts {
        let receipt = soon(receipt).await.unwrap();
        assert!(soon(receipt.handled()).await.unwrap().is_success());
    }
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics().subscriptions;
    let panics = figures.iter().find(|it| &*it.name == "panics");
    let panics = panics.map(|it| (it.failed_attempts, it.retries, it.dead));
    assert_eq!(panics, Some((1, 1, 0)));
    works_on(&bus, &journal).await;
}

/// Panics at the first call for event 0.
fn panics_once() -> impl Fn(u64) + Clone + Send + Sync + 'static {
    let calls = Arc::new(AtomicU32::new(0));
    move |number| {
        assert!(
            number > 0 || calls.fetch_add(1, SeqCst) > 0,
            "the first call"
        );
    }
}

/// F1: a panic before the handler has made a future is a failed attempt.
pub async fn f1_a_panic_of_the_call_is_a_failed_attempt(harness: &dyn BusHarness) {
    let check = panics_once();
    let handler = move |event: Event<Noted>, _| {
        check(event.number);
        async { Ok(()) }
    };
    is_a_failed_attempt(harness, Subscription::from_fn("panics", handler)).await;
}

/// F1: a panic of the handler's future, also after it has waited, is a failed attempt.
pub async fn f1_a_panic_of_the_future_is_a_failed_attempt(harness: &dyn BusHarness) {
    let check = panics_once();
    let handler = move |event: Event<Noted>, _| {
        let check = check.clone();
        async move {
            tokio::task::yield_now().await;
            check(event.number);
            Ok(())
        }
    };
    is_a_failed_attempt(harness, Subscription::from_fn("panics", handler)).await;
}

/// F1, D10: a panic of the filter is a failed attempt.
pub async fn f1_a_panic_of_the_filter_is_a_failed_attempt(harness: &dyn BusHarness) {
    let check = panics_once();
    let wanted = move |event: &Noted| {
        check(event.number);
        true
    };
    let handler = |_: Event<Noted>, _| async { Ok(()) };
    let subscription = Subscription::from_fn("panics", handler);
    is_a_failed_attempt(harness, subscription.filter(wanted)).await;
}

/// F1, D10: so it is in a pipeline of its own.
pub async fn f1_a_panic_of_an_isolated_filter_is_a_failed_attempt(harness: &dyn BusHarness) {
    let check = panics_once();
    let wanted = move |_: &EventEnvelope| {
        check(0);
        true
    };
    let handler = |_: Event<Noted>, _| async { Ok(()) };
    let subscription = Subscription::from_fn("panics", handler).isolated(1);
    is_a_failed_attempt(harness, subscription.filter_envelope(wanted)).await;
}

/// F1, D10: a panic of the transform is a failed attempt.
pub async fn f1_a_panic_of_the_transform_is_a_failed_attempt(harness: &dyn BusHarness) {
    let check = panics_once();
    let transform = move |event: Event<Noted>| {
        check(event.number);
        Ok(event.number)
    };
    let handler = |_: u64, _| async { Ok(()) };
    let subscription = Subscription::transformed("panics", transform, handler);
    is_a_failed_attempt(harness, subscription).await;
}

/// An error whose text panics.
#[derive(Debug)]
struct Unspeakable(#[expect(dead_code, reason = "it is dropped")] Bomb);

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no text")
    }
}

impl fmt::Debug for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bomb")
    }
}

impl Error for Unspeakable {}

/// F1: an error whose text or whose drop panics is a failed attempt like another.
pub async fn f1_a_panic_of_an_error_is_a_failed_attempt(harness: &dyn BusHarness) {
    let calls = Arc::new(AtomicU32::new(0));
    let handler = move |event: Event<Noted>, _| {
        let first = event.number == 0 && calls.fetch_add(1, SeqCst) == 0;
        async move {
            if first {
                return Err(HandlerError::transient(Unspeakable(Bomb::default())));
            }
            Ok(())
        }
    };
    is_a_failed_attempt(harness, Subscription::from_fn("panics", handler)).await;
}

/// F1: a panic of the drop of the handler's future, when it has ended or ran past its time-out, ends
/// no worker, and its delivery has an outcome.
pub async fn f1_a_panic_of_the_futures_drop_stays_in_its_delivery(harness: &dyn BusHarness) {
    let (bus, journal) = (harness.bus(100, 1), Journal::default());
    let handler = |event: Event<Noted>, _| {
        let bomb = Bomb(event.number > 1);
        std::future::poll_fn(move |_| match event.number {
            0 => Poll::Pending,
            _ => {
                let _held = &bomb;
                Poll::Ready(Ok(()))
            }
        })
    };
    let panics = Subscription::from_fn("panics", handler).retry(RetryPolicy::never());
    let panics = panics.timeout(Duration::from_millis(5));
    started(&bus, [panics, journal_of("journal", &journal)]).await;
    for number in 0..3 {
        let receipt = bus.publish(noted("a", number)).await.unwrap();
        let outcomes = outcomes(&receipt).await;
        let expected = match number {
            0 => &[DeliveryOutcome::Dead][..],
            // It had ended, and then failed.
            1 => &[DeliveryOutcome::Dead, DeliveryOutcome::Handled],
            _ => &[DeliveryOutcome::Handled],
        };
        let own = outcomes.iter().find(|it| it.0 == "panics");
        assert!(
            own.is_some_and(|it| expected.contains(&it.1)),
            "{number}: {outcomes:?}"
        );
    }
    assert_eq!(journal.of("journal"), [0, 1, 2]);
    works_on(&bus, &journal).await;
}

/// An event whose drop panics.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.exploded", aggregate = "notebook", id = aggregate)]
struct Exploded {
    aggregate: String,
    #[serde(skip)]
    #[expect(dead_code, reason = "it is dropped")]
    bomb: Bomb,
}

/// F1: a panic of an event's drop, wherever the bus drops it, ends no worker and no subscription.
pub async fn f1_a_panic_of_an_events_drop_ends_nothing(harness: &dyn BusHarness) {
    let (bus, journal) = (harness.bus(3, 1), Journal::default());
    let gate = Arc::new(Semaphore::new(0));
    let (log, opened) = (journal.clone(), Arc::clone(&gate));
    let explodes = move |_: Event<Exploded>, _| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            gate.acquire().await?.forget();
            journal.write("exploded", 0);
            Ok(())
        }
    };
    let explodes = Subscription::from_fn("explodes", explodes).retry(RetryPolicy::never());
    started(&bus, [explodes, journal_of("journal", &journal)]).await;
    for number in 0..3 {
        let aggregate = format!("a{number}");
        let bomb = Bomb::default();
        // The bus is the last to drop the event, as the receipt goes first.
        drop(
            bus.publish(NewEvent::new(Exploded { aggregate, bomb }))
                .await
                .unwrap(),
        );
    }
    gate.add_permits(10);
    journal.has(3, "exploded").await;
    soon(bus.wait_idle()).await.unwrap();
    works_on(&bus, &journal).await;
}

/// An event that cannot be written as JSON.
#[derive(Deserialize, DomainEvent)]
#[domain_event(name = "testkit.unwritable", aggregate = "notebook", id = aggregate)]
struct Unwritable {
    aggregate: String,
    panics: bool,
}

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        assert!(!self.panics, "while it is written");
        Err(serde::ser::Error::custom("it cannot be written"))
    }
}

/// F1, P1: an event whose encoder fails or panics is refused where it has to be written, without a
/// trace; where it has not, whoever asks for its JSON is told.
pub async fn f1_a_panic_of_the_encoder_is_an_error(harness: &dyn BusHarness) {
    let (bus, journal) = (harness.bus(2, 1), Journal::default());
    let reads = |envelope: Arc<EventEnvelope>, _: HandlerContext| async move {
        envelope.payload().map_err(HandlerError::permanent)?;
        Ok(())
    };
    let reads = Subscription::to_all("reads", reads);
    started(&bus, [reads, journal_of("journal", &journal)]).await;
    for round in 0..4 {
        let event = NewEvent::new(Unwritable {
            aggregate: "a".to_owned(),
            panics: round % 2 == 0,
        });
        match soon(bus.publish_all(vec![noted("a", round), event])).await {
            Ok(receipts) => {
                assert!(!harness.is_durable());
                assert_eq!(outcome(&receipts[1]).await, DeliveryOutcome::Dead);
            }
            Err(error) => {
                assert!(matches!(error, PublishError::Encode(_)), "{error:?}");
                assert_eq!(bus.statistics().accepted, 0);
            }
        }
    }
    works_on(&bus, &journal).await;
}

/// A handler whose own drop panics.
struct Explosive(#[expect(dead_code, reason = "it is dropped")] Bomb);

impl EventHandler<Noted> for Explosive {
    async fn handle(&self, _: Event<Noted>, _: HandlerContext) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// F1: a panic of a handler's own drop, when its subscription goes, hurts no other.
pub async fn f1_a_panic_of_the_handlers_drop_hurts_no_other(harness: &dyn BusHarness) {
    let (bus, journal) = (harness.bus(100, 1), Journal::default());
    let explosive = Subscription::new("explosive", Explosive(Bomb::default()));
    started(&bus, [explosive, journal_of("journal", &journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let goes = tokio::spawn({
        let bus = Arc::clone(&bus);
        async move { bus.unsubscribe("explosive").await }
    });
    // Whether the caller gets the panic is not promised.
    let _ = soon(goes).await;
    bus.publish(noted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("journal"), [0, 1]);
    works_on(&bus, &journal).await;
}

/// A waker that panics.
struct Explodes;

impl Wake for Explodes {
    fn wake(self: Arc<Self>) {
        panic!("woken");
    }
}

/// F1: a panic of the waker of someone who waits ends no worker, and others are told.
pub async fn f1_a_panic_of_a_waker_ends_nothing(harness: &dyn BusHarness) {
    let bus = harness.bus(2, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(
        &bus,
        [gated(&journal, &gate), journal_of("journal", &journal)],
    )
    .await;
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    let waker = Waker::from(Arc::new(Explodes));
    let mut handled = Box::pin(receipt.handled());
    let polled = handled.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    gate.add_permits(10);
    let mut outcome_by_another = outcomes(&receipt).await;
    assert_eq!(outcome_by_another.len(), 2);
    outcome_by_another.dedup_by(|one, other| one.1 == other.1);
    assert_eq!(outcome_by_another.len(), 1, "handled by both");
    drop(handled);
    works_on(&bus, &journal).await;
}
