//! Handlers of several events at a time (D9).

use std::{sync::Arc, time::Duration};

use domain_events::{
    Batch, BatchVerdicts, DeadLetterQuery, DeliveryOutcome, Event, EventId, HandlerContext,
    HandlerError, RetryPolicy, SubscribeError, Subscription,
};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Fate, Followed, Journal, Noted, hears, is_pending, journal_of, noted, outcome,
    quick_retries, soon, started,
};

/// A batch subscription that writes down the size of each batch as "batch", its events under its name,
/// and ends each event as `answer` says of its number and its attempt.
fn answering(
    name: &str,
    size: usize,
    journal: &Journal,
    answer: impl Fn(u64, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
) -> Subscription {
    let (journal, who) = (journal.clone(), name.to_owned());
    Subscription::from_batch_fn(name, size, move |batch: Batch<Noted>| {
        journal.write("batch", batch.len() as u64);
        let mut verdicts = BatchVerdicts::all_handled();
        for (place, (event, cx)) in batch.iter().enumerate() {
            journal.write(&who, event.number);
            if let Err(error) = answer(event.number, cx.attempt()) {
                verdicts.fail(place, error);
            }
        }
        std::future::ready(Ok(verdicts))
    })
}

/// A subscription whose first batch waits for a permit of `gate` and writes itself down as "first".
fn gated_first(size: usize, journal: &Journal, gate: &Arc<Semaphore>) -> Subscription {
    let (journal, gate) = (journal.clone(), Arc::clone(gate));
    Subscription::from_batch_fn("batches", size, move |batch: Batch<Noted>| {
        let (journal, gate) = (journal.clone(), Arc::clone(&gate));
        async move {
            if batch.iter().any(|(event, _)| event.number == 0) {
                journal.write("first", batch.len() as u64);
                gate.acquire().await?.forget();
            }
            journal.write("batch", batch.len() as u64);
            for (event, _) in batch {
                journal.write(&event.aggregate, event.number);
            }
            Ok(BatchVerdicts::all_handled())
        }
    })
}

/// D9: a batch takes what is waiting, of whatever aggregates, up to its size.
pub async fn d9_a_batch_takes_what_waits_up_to_its_size(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 2);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let batches = gated_first(5, &journal, &gate).isolated(1);
    started(&bus, [batches, journal_of("single", &journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "first").await;
    for number in 1..8 {
        let aggregate = ["a", "b", "c"][number as usize % 3];
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    gate.add_permits(1);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("first"), [1], "it waited for nobody");
    assert_eq!(journal.of("batch"), [1, 5, 2]);
    assert_eq!(journal.of("a"), [0, 3, 6]);
    assert_eq!(
        (journal.of("b"), journal.of("c")),
        (vec![1, 4, 7], vec![2, 5])
    );
    assert_eq!(
        journal.of("single").len(),
        8,
        "the others get each event by itself"
    );
    let figures = bus.statistics();
    assert_eq!(figures.of("batches").unwrap().handled, 8);
    assert!(
        figures.pipelines.iter().any(|it| &*it.name == "batches"),
        "a batch handler has a pipeline of its own"
    );
}

/// D9: one aggregate alone fills a batch.
pub async fn d9_one_aggregate_fills_a_batch(harness: &dyn BusHarness) {
    let bus = harness.bus(200, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated_first(60, &journal, &gate)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "first").await;
    bus.publish_all((1..101).map(|number| noted("a", number)).collect())
        .await
        .unwrap();
    gate.add_permits(1);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("batch"), [1, 60, 40]);
    assert_eq!(journal.of("a"), (0..101).collect::<Vec<_>>());
}

/// D9: an event that fails fails those behind it of its aggregate, which are delivered again after it;
/// other aggregates are not touched.
pub async fn d9_a_failed_item_fails_those_behind_it(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let answer = |number, attempt| match (number, attempt) {
        (1, 1) => Err(HandlerError::transient("not yet")),
        _ => Ok(()),
    };
    let batches = answering("batches", 10, &journal, answer).retry(quick_retries(2));
    started(&bus, [batches]).await;
    let events = [("a", 0), ("a", 1), ("b", 10), ("a", 2), ("b", 11)];
    let receipts = bus
        .publish_all(
            events
                .map(|(aggregate, number)| noted(aggregate, number))
                .into(),
        )
        .await
        .unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("batches"), [0, 1, 2, 10, 11, 1, 2]);
    assert_eq!(journal.of("batch")[0], 5);
    for receipt in &receipts {
        assert_eq!(outcome(receipt).await, DeliveryOutcome::Handled);
    }
    let figures = bus.statistics().of("batches").unwrap().clone();
    assert_eq!(
        (figures.handled, figures.failed_attempts),
        (5, 1),
        "{figures:?}"
    );
    assert_eq!(
        figures.retries, 1,
        "those behind have not failed themselves"
    );
}

/// D9, F2: each event has a verdict of its own; behind one given up the others come again.
pub async fn d9_each_item_has_its_own_verdict(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let answer = |number, _| match number {
        0 => Err(HandlerError::skip("not needed")),
        1 => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    };
    started(&bus, [answering("batches", 10, &journal, answer)]).await;
    let batch = (0..3).map(|number| noted("a", number)).collect();
    let receipts = bus.publish_all(batch).await.unwrap();
    let mut outcomes = Vec::new();
    for receipt in &receipts {
        outcomes.push(outcome(receipt).await);
    }
    use DeliveryOutcome::{Dead, Handled, Skipped};
    assert_eq!(outcomes, [Skipped, Dead, Handled]);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("batches"), [0, 1, 2, 2]);
    let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    assert_eq!((letters.len(), &*letters[0].error), (1, "never"));
}

/// F1: an error, a panic and a time-out of a batch are a failed attempt of each aggregate's first event.
pub async fn f1_a_batch_that_fails_as_a_whole_is_tried_again(harness: &dyn BusHarness) {
    for way in ["error", "panic", "time-out", "panic of the call"] {
        let bus = harness.bus(100, 1);
        let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(1)));
        let log = journal.clone();
        let handler = move |batch: Batch<Noted>| {
            let first = batch.iter().all(|(_, cx)| cx.attempt() == 1);
            let is_first = first && gate.try_acquire().map(|it| it.forget()).is_ok();
            assert!(!(is_first && way == "panic of the call"), "at once");
            let log = log.clone();
            async move {
                match way {
                    "error" if is_first => return Err(HandlerError::transient("no")),
                    "panic" if is_first => panic!("no"),
                    "time-out" if is_first => std::future::pending().await,
                    _ => {}
                }
                for (event, _) in &batch {
                    log.write(&event.aggregate, event.number);
                }
                Ok(BatchVerdicts::all_handled())
            }
        };
        let batches = Subscription::from_batch_fn("batches", 10, handler).retry(quick_retries(3));
        let batches = match way {
            "time-out" => batches.timeout(Duration::from_millis(20)),
            _ => batches,
        };
        started(&bus, [batches]).await;
        let events = [("a", 0), ("a", 1), ("b", 2), ("b", 3)];
        bus.publish_all(
            events
                .map(|(aggregate, number)| noted(aggregate, number))
                .into(),
        )
        .await
        .unwrap();
        soon(bus.wait_idle()).await.unwrap();
        assert_eq!(journal.of("a"), [0, 1], "{way}");
        assert_eq!(journal.of("b"), [2, 3], "{way}");
        let figures = bus.statistics().of("batches").unwrap().clone();
        assert_eq!(
            (figures.handled, figures.dead),
            (4, 0),
            "{way}: {figures:?}"
        );
        assert_eq!(figures.retries, 2, "{way}: one an aggregate");
    }
}

/// D9, P9: each event of a batch has a context of its own, through which it publishes.
pub async fn p9_each_item_of_a_batch_publishes_for_itself(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let handler = |batch: Batch<Noted>| async move {
        for (event, cx) in &batch {
            assert_eq!(cx.envelope().id(), event.id());
            assert_eq!(cx.metadata().correlation_id, event.id().into());
            let follows = Followed {
                aggregate: event.aggregate.clone(),
                number: event.number,
            };
            let receipt = cx.publish(follows).await?;
            let derived = EventId::derived(event.id(), "batches", 1);
            assert_eq!(receipt.event_id(), derived);
        }
        Ok(BatchVerdicts::all_handled())
    };
    let batches = Subscription::from_batch_fn("batches", 10, handler).retry(RetryPolicy::never());
    started(&bus, [batches, hears("hears", &journal)]).await;
    let batch = (0..4).map(|number| noted("a", number)).collect();
    bus.publish_all(batch).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("hears"), [0, 1, 2, 3]);
    let letters = bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap();
    assert_eq!(letters, []);
}

/// D9, D10: what a filter passes over is not in the batch, and counts as done.
pub async fn d10_a_batch_holds_what_the_filter_lets_pass(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let batches = answering("batches", 10, &journal, |_, _| Ok(()))
        .filter(|event: &Noted| event.number.is_multiple_of(3));
    started(&bus, [batches]).await;
    let batch = (0..8).map(|number| noted("a", number)).collect();
    bus.publish_all(batch).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("batches"), [0, 3, 6]);
    let figures = bus.statistics().of("batches").unwrap().clone();
    assert_eq!((figures.handled, figures.skipped), (3, 5));
}

/// D9, F1: what waits behind an event whose filter panics is not in the batch either.
pub async fn d9_nothing_is_handed_over_behind_what_cannot_be_looked_at(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, looked) = (Journal::default(), Arc::new(Semaphore::new(1)));
    let batches = answering("batches", 10, &journal, |_, _| Ok(()))
        .filter(move |event: &Noted| {
            let first = event.number == 1 && looked.try_acquire().map(|it| it.forget()).is_ok();
            assert!(!first, "the first look");
            true
        })
        .retry(quick_retries(2));
    started(&bus, [batches]).await;
    let events = [("a", 0), ("a", 1), ("b", 10), ("a", 2)];
    let events = events.map(|(aggregate, number)| noted(aggregate, number));
    bus.publish_all(events.into()).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("batches"), [0, 10, 1, 2]);
    let figures = bus.statistics().of("batches").unwrap().clone();
    assert_eq!(
        (figures.handled, figures.failed_attempts),
        (4, 1),
        "{figures:?}"
    );
}

/// D2: with any number of workers and failures by chance, each aggregate's events are handled once, in
/// their order, and never in two batches at a time.
pub async fn d2_order_holds_in_batches_with_failures_by_chance(harness: &dyn BusHarness) {
    let fate = Fate::fresh();
    let bus = harness.bus(500, 3);
    let (journal, aggregates, each) = (Journal::default(), 12_u64, 40_u64);
    let busy: Arc<[Semaphore]> = (0..aggregates).map(|_| Semaphore::new(1)).collect();
    let log = journal.clone();
    let handler = move |batch: Batch<Noted>| {
        let (log, busy) = (log.clone(), Arc::clone(&busy));
        async move {
            let mut places: Vec<usize> = Vec::new();
            places.extend(
                batch
                    .iter()
                    .map(|(it, _)| it.aggregate.parse::<usize>().unwrap()),
            );
            places.sort_unstable();
            places.dedup();
            let alone = places.iter().map(|place| busy[*place].try_acquire());
            let alone: Vec<_> = alone
                .map(|it| it.expect("a batch beside another"))
                .collect();
            tokio::task::yield_now().await;
            let mut verdicts = BatchVerdicts::all_handled();
            let mut failed = std::collections::HashSet::new();
            for (place, (event, cx)) in batch.iter().enumerate() {
                let fails = fate.below(4, (&event.aggregate, event.number, cx.attempt())) == 0;
                if fails {
                    verdicts.fail(place, HandlerError::transient("by chance"));
                    failed.insert(event.aggregate.clone());
                } else if !failed.contains(&event.aggregate) {
                    log.write(&event.aggregate, event.number);
                }
            }
            drop(alone);
            Ok(verdicts)
        }
    };
    let batches = Subscription::from_batch_fn("batches", 7, handler)
        .isolated(3)
        .retry(quick_retries(1_000).cap(std::time::Duration::from_millis(5)));
    started(&bus, [batches]).await;
    for number in 0..each {
        for aggregate in 0..aggregates {
            soon(bus.publish(noted(aggregate.to_string(), number)))
                .await
                .unwrap();
        }
    }
    soon(bus.wait_idle()).await.unwrap();
    for aggregate in 0..aggregates {
        let seen = journal.of(&aggregate.to_string());
        assert_eq!(seen, (0..each).collect::<Vec<_>>(), "aggregate {aggregate}");
    }
    let figures = bus.statistics().of("batches").unwrap().clone();
    assert_eq!((figures.handled, figures.pending), (aggregates * each, 0));
}

/// L4: a batch subscription is paused and resumed like any other, in order, and unsubscribing waits for
/// the batch that runs.
pub async fn l4_a_batch_subscription_rests_and_goes(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    started(&bus, [gated_first(10, &journal, &gate)]).await;
    assert!(bus.pause("batches").await);
    let batch = [("b", 5), ("b", 6), ("a", 0), ("a", 1)];
    let batch = batch.map(|(aggregate, number)| noted(aggregate, number));
    let receipts = bus.publish_all(batch.into()).await.unwrap();
    assert_eq!(outcome(&receipts[0]).await, DeliveryOutcome::Paused);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.lines(), []);
    assert!(bus.resume("batches").await);
    journal.has(2, "b").await;
    journal.has(1, "first").await;
    assert_eq!(journal.of("b"), [5, 6]);
    let mut leaves = bus.unsubscribe("batches");
    assert!(is_pending(&mut leaves).await);
    gate.add_permits(1);
    assert!(soon(leaves).await);
    assert_eq!(journal.of("a"), [0], "the rest went with its subscription");
    soon(bus.wait_idle()).await.unwrap();
    let figures = bus.statistics();
    assert_eq!((figures.finished, figures.in_flight), (4, 0), "{figures:?}");
}

/// A batch without room for an event, or waiting without end, is refused before anything runs; so is
/// waiting for company where there are no batches.
pub async fn a_batch_that_cannot_work_is_refused(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let of_size = |size| answering("batches", size, &journal, |_, _| Ok(()));
    let hour = super::HOUR;
    for (field, wrong) in [
        ("subscription.size", of_size(0)),
        ("subscription.size", of_size(usize::MAX)),
        ("subscription.linger", of_size(1).linger(hour)),
        (
            "subscription.linger",
            journal_of("single", &journal).linger(hour),
        ),
    ] {
        let refused = bus.subscribe(wrong).await.unwrap_err();
        let SubscribeError::Invalid { source, .. } = &refused else {
            panic!("{refused:?}")
        };
        assert!(source.to_string().starts_with(field), "{source}");
    }
    let handler = |_: Event<Noted>, _: HandlerContext| async { Ok(()) };
    started(&bus, [Subscription::from_fn("fine", handler)]).await;
}
