//! What is kept of a delivery given up, and what can be done with it.

use std::{sync::Arc, time::Duration};

use domain_events::{
    AttemptResult, DeadLetterQuery, DeadLetterReason, Event, EventId, HandlerContext, HandlerError,
    LetterError, Ordering, Subscription,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Journal, Noted, answering, journal_of, noted, others_run, quick_retries, soon,
    started,
};

/// F6: a dead letter names its subscription and its event, and says why it was given up after how
/// many attempts; letters are listed oldest first, of one subscription or of all.
pub async fn f6_a_dead_letter_says_whose_it_is_and_why(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let refuses = answering("refuses", &journal, |_, _| {
        Err(HandlerError::permanent("not this one"))
    });
    let tries = |_: Event<Noted>, cx: HandlerContext| async move {
        assert_eq!(cx.info().subscription.as_ref(), "tries");
        panic!("attempt {} of {}", cx.attempt(), cx.info().subscription);
    };
    let tries = Subscription::from_fn("tries", tries).retry(quick_retries(2));
    started(&bus, [refuses, tries]).await;
    let mut events = Vec::new();
    for number in 0..3 {
        events.push(bus.publish(noted("a", number)).await.unwrap().event_id());
        soon(bus.wait_idle()).await.unwrap();
    }
    let refused = bus
        .dead_letters(&DeadLetterQuery::of("refuses"), 2)
        .await
        .unwrap();
    let tried = bus
        .dead_letters(&DeadLetterQuery::of("tries"), 10)
        .await
        .unwrap();
    let ids: Vec<_> = refused.iter().map(|letter| letter.event_id()).collect();
    assert_eq!(ids, events[..2]);
    assert_eq!(refused[0].reason, DeadLetterReason::Permanent);
    assert_eq!(
        (refused[0].attempts, &*refused[0].error),
        (1, "not this one")
    );
    assert_eq!(tried[2].event_id(), events[2]);
    assert_eq!(tried[2].reason, DeadLetterReason::AttemptsExhausted);
    assert_eq!((&*tried[2].subscription, tried[2].attempts), ("tries", 2));
    assert!(
        tried[2].error.contains("attempt 2 of tries"),
        "{:?}",
        tried[2].error
    );
    assert_eq!(tried[2].event.event_type(), "testkit.noted");
    assert_eq!(tried[2].event.aggregate().id(), "a");
    // No retry comes before its delay of 2 ms, by whatever clock.
    let retried = tried[2].first_attempt_at.after(Duration::from_millis(1));
    assert!(retried <= tried[2].dead_at, "{:?}", tried[2]);
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::all(), 10)
            .await
            .unwrap()
            .len(),
        6
    );
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::of("nobody"), 10)
            .await
            .unwrap(),
        []
    );
}

/// F6: under `Skip` a replay comes after newer events, never beside another delivery of its
/// aggregate, with a fresh count of attempts, the same event id, and known as a replay.
pub async fn f6_a_replay_runs_beside_nothing_of_its_aggregate(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 4);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let (log, opened) = (journal.clone(), Arc::clone(&gate));
    let handler = move |event: Event<Noted>, cx: HandlerContext| {
        let (journal, gate) = (log.clone(), Arc::clone(&opened));
        async move {
            if event.number == 0 && !cx.info().is_replay {
                return Err(HandlerError::permanent("not today"));
            }
            journal.write("began", event.number);
            gate.acquire().await?.forget();
            let kind = if cx.info().is_replay {
                "replay"
            } else {
                "live"
            };
            journal.write(kind, u64::from(cx.attempt()));
            journal.write("ended", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("once", handler)]).await;
    let first = bus.publish(noted("a", 0)).await.unwrap();
    soon(first.handled()).await.unwrap();
    bus.publish(noted("a", 1)).await.unwrap();
    journal.has(1, "began").await;
    bus.replay("once", first.event_id()).await.unwrap();
    others_run().await;
    assert_eq!(journal.of("began"), [1]);
    gate.add_permits(1);
    journal.has(2, "began").await;
    assert_eq!(journal.of("ended"), [1]);
    bus.publish(noted("a", 2)).await.unwrap();
    others_run().await;
    assert_eq!(journal.of("began"), [1, 0], "nothing beside the replay");
    gate.add_permits(2);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("ended"), [1, 0, 2]);
    assert_eq!(
        (journal.of("replay"), journal.of("live")),
        (vec![1], vec![1, 1])
    );
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap(),
        []
    );
}

/// F6: a replay that fails is retried, and is a dead letter again, once, in the end.
pub async fn f6_a_replay_that_fails_is_a_dead_letter_again(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let fails = answering("fails", &journal, |number, attempt| match number {
        0 => Err(HandlerError::transient(format!("attempt {attempt}"))),
        _ => Ok(()),
    });
    let fails = fails.retry(quick_retries(3));
    started(&bus, [fails, journal_of("other", &journal)]).await;
    let event = bus.publish(noted("a", 0)).await.unwrap().event_id();
    soon(bus.wait_idle()).await.unwrap();
    bus.replay("fails", event).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("fails"), [0; 6]);
    assert_eq!(journal.of("other"), [0], "whose delivery was done");
    let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].attempts), (1, 3));
    soon(bus.publish(noted("a", 1))).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("fails").last(), Some(&1));
}

/// F6: a replay works in every order, in which events go on after a dead letter.
pub async fn f6_a_replay_works_in_every_order(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let journal = Journal::default();
    let orders = [("total", Ordering::Total), ("none", Ordering::None)];
    let subscriptions = orders.map(|(name, order)| {
        let journal = journal.clone();
        let handler = move |event: Event<Noted>, cx: HandlerContext| {
            journal.write(name, event.number);
            let dies = event.number == 0 && !cx.info().is_replay;
            async move {
                if dies {
                    return Err(HandlerError::permanent("not today"));
                }
                Ok(())
            }
        };
        let subscription = Subscription::from_fn(name, handler);
        subscription.ordering(order).isolated(1)
    });
    started(&bus, subscriptions).await;
    let mut events = Vec::new();
    for number in 0..3 {
        let event = noted(format!("a{number}"), number);
        events.push(bus.publish(event).await.unwrap().event_id());
        soon(bus.wait_idle()).await.unwrap();
    }
    for (name, _) in orders {
        bus.replay(name, events[0]).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    for (name, _) in orders {
        assert_eq!(journal.of(name), [0, 1, 2, 0], "{name}");
    }
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap(),
        []
    );
    assert_eq!(bus.statistics().in_flight, 0);
}

/// F6: a letter that is not there, no more there, or of a bus that is not running is a typed error.
pub async fn f6_only_what_is_there_is_replayed_or_discarded(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let dies = answering("dies", &Journal::default(), |_, _| {
        Err(HandlerError::permanent("never"))
    });
    started(&bus, [dies]).await;
    let unknown = EventId::new();
    let error = bus.replay("dies", unknown).await.unwrap_err();
    assert!(
        matches!(&error, LetterError::NoSuchLetter { subscription, event }
            if subscription == "dies" && *event == unknown),
        "{error:?}"
    );
    let event = bus.publish(noted("a", 0)).await.unwrap().event_id();
    let other = bus.publish(noted("a", 1)).await.unwrap().event_id();
    soon(bus.wait_idle()).await.unwrap();
    let error = bus.discard("other", event, "whose").await.unwrap_err();
    assert!(
        matches!(error, LetterError::NoSuchLetter { .. }),
        "{error:?}"
    );
    bus.discard("dies", event, "of no use").await.unwrap();
    let error = bus.discard("dies", event, "again").await.unwrap_err();
    assert!(
        matches!(error, LetterError::NoSuchLetter { .. }),
        "{error:?}"
    );
    let letters = bus
        .dead_letters(&DeadLetterQuery::of("dies"), 10)
        .await
        .unwrap();
    assert_eq!(letters.len(), 1);
    assert!(soon(bus.unsubscribe("dies")).await);
    let error = bus.replay("dies", other).await.unwrap_err();
    assert!(
        matches!(&error, LetterError::NoSuchSubscription { subscription } if subscription == "dies"),
        "{error:?}"
    );
    soon(bus.stop(Duration::ZERO)).await.unwrap();
    let error = bus.replay("dies", other).await.unwrap_err();
    assert!(matches!(error, LetterError::NotRunning), "{error:?}");
}

/// The latest failed attempts are kept, with who, what, how often and why.
pub async fn a_processing_log_keeps_failed_attempts(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let shaky = answering("shaky", &journal, |number, attempt| {
        match (number, attempt) {
            (0, 1) => Err(HandlerError::transient("not yet")),
            (1, _) => Err(HandlerError::skip("not needed")),
            (2, _) => Err(HandlerError::permanent("never")),
            _ => Ok(()),
        }
    });
    started(
        &bus,
        [shaky.retry(quick_retries(2)), journal_of("fine", &journal)],
    )
    .await;
    let mut events = Vec::new();
    for number in 0..4 {
        events.push(bus.publish(noted("a", number)).await.unwrap().event_id());
        soon(bus.wait_idle()).await.unwrap();
    }
    let log = bus.processing_log(None, 10).await.unwrap();
    let told = log
        .iter()
        .map(|it| (it.event_id, it.attempt, it.result.clone()));
    let failed = |text: &str| AttemptResult::Failed(text.to_owned());
    let expected = [
        (events[2], 1, failed("never")),
        (events[0], 1, failed("not yet")),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert!(
        log.iter()
            .all(|it| &*it.subscription == "shaky" && !it.result.is_success())
    );
    assert_eq!(
        bus.processing_log(Some("shaky"), 1).await.unwrap(),
        log[..1]
    );
    assert_eq!(bus.processing_log(Some("fine"), 10).await.unwrap(), []);
}
