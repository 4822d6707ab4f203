//! Handlers that misbehave on purpose: when they fail, wait and repeat, and what they call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use domain_events::{Event, EventHandler, HandlerContext, HandlerError, Subscription, Verdict};
use event_testkit::{
    handlers::{duplicating, failing, failing_when, handler_fn, slow},
    recording_bus::RecordingBus,
};
use tokio::time::{Instant, timeout};

use crate::events::{Ordered, Paid, context, delivered, paid};

/// A handler that counts its calls, and the count.
fn counting() -> (impl EventHandler<Ordered>, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let handler = handler_fn(move |_: Event<Ordered>, _: HandlerContext| {
        counted.fetch_add(1, SeqCst);
        std::future::ready(Ok(()))
    });
    (handler, calls)
}

/// What an attempt of `handler` on `event` comes to.
async fn attempt(
    handler: &impl EventHandler<Ordered>,
    event: &Event<Ordered>,
    number: u32,
) -> Result<(), Verdict> {
    let cx = context(event, number, RecordingBus::new());
    let result = handler.handle(event.clone(), cx).await;
    result.map_err(|error| error.verdict())
}

#[tokio::test]
async fn the_first_attempts_of_each_event_fail_without_a_call() {
    let (handler, calls) = counting();
    let handler = failing(handler, 2);
    for event in [delivered("a", 1), delivered("a", 2)] {
        for number in [1, 2] {
            let failed = attempt(&handler, &event, number).await;
            assert_eq!(failed, Err(Verdict::Transient));
        }
    }
    assert_eq!(calls.load(SeqCst), 0);
}

#[tokio::test]
async fn an_event_that_has_failed_often_enough_is_handled_however_it_comes_again() {
    let (handler, calls) = counting();
    let (handler, event) = (failing(handler, 2), delivered("a", 1));
    // A probe is not counted as an attempt, and a replay begins with the first one.
    for number in [1, 1] {
        attempt(&handler, &event, number).await.unwrap_err();
    }
    for number in [2, 1] {
        attempt(&handler, &event, number).await.unwrap();
    }
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test]
async fn the_caller_says_which_attempt_fails_and_how() {
    let (handler, calls) = counting();
    let error = |cx: &HandlerContext| {
        (cx.attempt() == 2).then(|| HandlerError::permanent("the second one"))
    };
    let (handler, event) = (failing_when(handler, error), delivered("a", 1));
    attempt(&handler, &event, 1).await.unwrap();
    let failed = attempt(&handler, &event, 2).await;
    assert_eq!((failed, calls.load(SeqCst)), (Err(Verdict::Permanent), 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_called_after_its_delay() {
    let (handler, calls) = counting();
    let delay = Duration::from_secs(60);
    let (handler, event, began) = (slow(handler, delay), delivered("a", 1), Instant::now());
    let cut_off = timeout(delay / 2, attempt(&handler, &event, 1)).await;
    assert_eq!((cut_off.is_err(), calls.load(SeqCst)), (true, 0));
    attempt(&handler, &event, 2).await.unwrap();
    assert_eq!(began.elapsed(), delay * 3 / 2);
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test]
async fn both_calls_of_a_duplicated_attempt_publish_the_same_events() {
    let bus = RecordingBus::new();
    let handler = handler_fn(|event: Event<Ordered>, cx: HandlerContext| async move {
        assert_eq!((cx.attempt(), cx.envelope().id()), (3, event.id()));
        cx.publish(paid(&event.order)).await?;
        cx.publish(paid("another")).await?;
        Ok(())
    });
    let event = delivered("a", 1);
    let cx = context(&event, 3, bus.clone());
    duplicating(handler)
        .handle(event.clone(), cx)
        .await
        .unwrap();
    let published = bus.published_of::<Paid>();
    let ids: Vec<_> = published.iter().map(Event::id).collect();
    assert_eq!(ids.len(), 4);
    assert_eq!(ids[..2], ids[2..]);
    assert_ne!(ids[0], ids[1]);
    let cause = published[3].envelope().metadata().causation_id;
    assert_eq!(cause, Some(event.id()));
}

#[tokio::test]
async fn an_error_of_either_call_of_a_duplicated_attempt_is_its_result() {
    for fails_at in [1, 2] {
        let (handler, calls) = counting();
        let counted = Arc::clone(&calls);
        let error = move |_: &HandlerContext| {
            let call = counted.fetch_add(10, SeqCst) / 10 + 1;
            (call == fails_at).then(|| HandlerError::permanent("no"))
        };
        let handler = duplicating(failing_when(handler, error));
        let failed = attempt(&handler, &delivered("a", 1), 1).await;
        assert_eq!(failed, Err(Verdict::Permanent));
        assert_eq!(calls.load(SeqCst), 10 * fails_at + (fails_at - 1));
    }
}

#[test]
fn wrapped_handlers_are_subscribed_like_others() {
    let closure = || handler_fn(|_: Event<Ordered>, _: HandlerContext| async { Ok(()) });
    let wrapped = slow(duplicating(failing(closure(), 1)), Duration::ZERO);
    let subscription = Subscription::new("wrapped", wrapped);
    assert_eq!(subscription.event_type(), Some("test.ordered"));
}
