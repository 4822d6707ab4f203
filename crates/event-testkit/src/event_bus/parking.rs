//! Aggregates that wait behind a dead letter, and go on once it is replayed or discarded.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    DeadLetterQuery, DeliveryOutcome, Event, EventBus, FailurePolicy, HandlerContext, HandlerError,
    PublishError, Receipt, Subscription,
};

use super::{
    BusHarness, Fate, HOUR, Journal, Noted, journal_of, noted, others_run, outcome, outcomes,
    quick_retries, soon, started,
};

/// The numbers that fail for now.
type Failing = Arc<Mutex<Vec<u64>>>;

/// A subscription that parks an aggregate behind what is `failing`; writes down each attempt.
fn parks(journal: &Journal, failing: &Failing) -> Subscription {
    let (journal, failing) = (journal.clone(), Arc::clone(failing));
    let handler = move |event: Event<Noted>, cx: HandlerContext| {
        let kind = if cx.info().is_replay {
            "replay"
        } else {
            "live"
        };
        journal.write(kind, event.number);
        journal.write(event.aggregate().id(), event.number);
        let fails = failing.lock().unwrap().contains(&event.number);
        async move {
            if fails {
                return Err(HandlerError::transient("not today"));
            }
            Ok(())
        }
    };
    let parks = Subscription::from_fn("parks", handler).retry(quick_retries(2));
    parks.failure_policy(FailurePolicy::ParkAggregate)
}

/// A running bus whose subscription has parked aggregate "a" behind its event 0, with what was
/// published: 0 to 2 of "a", 3 of "b".
async fn parked(
    harness: &dyn BusHarness,
    journal: &Journal,
    failing: &Failing,
) -> (Arc<dyn EventBus>, Vec<Receipt>) {
    let bus = harness.bus(6, 1);
    failing.lock().unwrap().push(0);
    started(
        &bus,
        [parks(journal, failing), journal_of("other", journal)],
    )
    .await;
    let mut receipts = Vec::new();
    for (aggregate, number) in [("a", 0), ("a", 1), ("a", 2), ("b", 3)] {
        receipts.push(soon(bus.publish(noted(aggregate, number))).await.unwrap());
    }
    soon(bus.wait_idle()).await.unwrap();
    (bus, receipts)
}

/// The outcome of the subscription that parks.
async fn own_outcome(receipt: &Receipt) -> Option<DeliveryOutcome> {
    let outcomes = outcomes(receipt).await;
    outcomes.iter().find(|it| it.0 == "parks").map(|it| it.1)
}

/// F5, L3, P2: later events of an aggregate wait behind its dead letter and keep nobody waiting,
/// also those that come later; other aggregates and subscriptions go on; the receipts say so.
pub async fn f5_an_aggregate_is_parked_behind_its_dead_letter(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, mut receipts) = parked(harness, &journal, &failing).await;
    receipts.push(soon(bus.publish(noted("a", 4))).await.unwrap());
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!((journal.of("a"), journal.of("b")), (vec![0, 0], vec![3]));
    assert_eq!(journal.of("other").len(), 5);
    use DeliveryOutcome::{Dead, Handled, Parked};
    for (receipt, expected) in receipts.iter().zip([Dead, Parked, Parked, Handled, Parked]) {
        assert_eq!(own_outcome(receipt).await, Some(expected));
    }
    soon(bus.stop(Duration::ZERO)).await.unwrap();
}

/// F5, F6: replayed, the dead letter comes first, with a fresh count of attempts, and then what was
/// parked, in order, also before what is published meanwhile.
pub async fn f5_a_replay_lets_the_parked_go_on_in_order(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, receipts) = parked(harness, &journal, &failing).await;
    failing.lock().unwrap().clear();
    bus.replay("parks", receipts[0].event_id()).await.unwrap();
    soon(bus.publish(noted("a", 4))).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("a"), [0, 0, 0, 1, 2, 4]);
    assert_eq!(journal.of("replay"), [0]);
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap(),
        []
    );
    for receipt in &receipts[1..] {
        assert_eq!(own_outcome(receipt).await, Some(DeliveryOutcome::Handled));
    }
    let figures = bus.statistics();
    assert_eq!(figures.accepted + figures.recovered, figures.finished);
    assert_eq!(figures.in_flight, 0);
}

/// F5: discarded, the dead letter is gone for good, and what was parked goes on in order.
pub async fn f5_a_discard_lets_the_parked_go_on_in_order(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, receipts) = parked(harness, &journal, &failing).await;
    let event = receipts[0].event_id();
    bus.discard("parks", event, "of no use").await.unwrap();
    soon(bus.publish(noted("a", 4))).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("a"), [0, 0, 1, 2, 4]);
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::all(), 10).await.unwrap(),
        []
    );
    bus.replay("parks", event).await.unwrap_err();
    assert_eq!(bus.statistics().in_flight, 0);
}

/// F5: a replay that fails again is a dead letter again, and what was parked stays so; the next of
/// them that fails parks the rest behind itself.
pub async fn f5_what_fails_again_parks_again(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, receipts) = parked(harness, &journal, &failing).await;
    bus.replay("parks", receipts[0].event_id()).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("a"), [0, 0, 0, 0], "two attempts again");
    assert_eq!(
        own_outcome(&receipts[1]).await,
        Some(DeliveryOutcome::Parked)
    );
    failing.lock().unwrap().push(1);
    bus.discard("parks", receipts[0].event_id(), "no use")
        .await
        .unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("a"), [0, 0, 0, 0, 1, 1]);
    let letters = bus
        .dead_letters(&DeadLetterQuery::of("parks"), 10)
        .await
        .unwrap();
    let events: Vec<_> = letters.iter().map(|letter| letter.event_id()).collect();
    assert_eq!(events, [receipts[1].event_id()]);
    failing.lock().unwrap().clear();
    bus.replay("parks", receipts[1].event_id()).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("a"), [0, 0, 0, 0, 1, 1, 1, 2]);
}

/// P4: what is parked takes room (volatile), and gives it back when its subscription goes.
pub async fn p4_what_is_parked_counts(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, receipts) = parked(harness, &journal, &failing).await;
    if harness.is_durable() {
        for number in 10..30 {
            soon(bus.publish(noted("a", number))).await.unwrap();
        }
        soon(bus.wait_idle()).await.unwrap();
    } else {
        // Two are parked, and there is room for six.
        soon(bus.publish_all((10..14).map(|n| noted("a", n)).collect()))
            .await
            .unwrap();
        soon(bus.wait_idle()).await.unwrap();
        let full = bus.try_publish(noted("b", 20)).await.map(drop);
        assert!(
            matches!(full, Err(PublishError::Full { capacity: 6, .. })),
            "{full:?}"
        );
    }
    assert!(soon(bus.unsubscribe("parks")).await);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(
        own_outcome(&receipts[1]).await,
        Some(DeliveryOutcome::Stopped)
    );
    soon(bus.publish_all((40..46).map(|n| noted("a", n)).collect()))
        .await
        .unwrap();
    soon(bus.wait_idle()).await.unwrap();
}

/// L2: a stop does not wait for what is parked, and reports it.
pub async fn l2_a_stop_does_not_wait_for_what_is_parked(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, receipts) = parked(harness, &journal, &failing).await;
    let report = soon(bus.stop(HOUR)).await.unwrap();
    if harness.is_durable() {
        assert!(
            report.left_in_log > 0 && report.abandoned == 0,
            "{report:?}"
        );
    } else {
        assert_eq!((report.abandoned, report.drained), (2, 0), "{report:?}");
    }
    assert_eq!(
        own_outcome(&receipts[2]).await,
        Some(DeliveryOutcome::Stopped)
    );
}

/// F5: under `Skip`, the default, later events of the aggregate go on.
pub async fn f5_by_default_later_events_go_on(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let (journal, failing) = (Journal::default(), Failing::default());
    failing.lock().unwrap().push(0);
    let skips = parks(&journal, &failing).failure_policy(FailurePolicy::Skip);
    started(&bus, [skips]).await;
    let mut receipts = Vec::new();
    for number in 0..3 {
        receipts.push(bus.publish(noted("a", number)).await.unwrap());
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("a"), [0, 0, 1, 2]);
    assert_eq!(outcome(&receipts[0]).await, DeliveryOutcome::Dead);
    assert_eq!(outcome(&receipts[2]).await, DeliveryOutcome::Handled);
    others_run().await;
    assert_eq!(
        bus.dead_letters(&DeadLetterQuery::of("parks"), 10)
            .await
            .unwrap()
            .len(),
        1
    );
}

/// F5, F6, D2: while someone replays and discards beside busy publishers, every event of an
/// aggregate is handled or discarded, in order, and never twice.
pub async fn f5_replays_and_discards_beside_publishers_keep_the_order(harness: &dyn BusHarness) {
    let (bus, fate) = (harness.bus(500, 3), Fate::fresh());
    let journal = Journal::default();
    let log = journal.clone();
    let shaky = move |event: Event<Noted>, cx: HandlerContext| {
        let journal = log.clone();
        async move {
            tokio::task::yield_now().await;
            // A third of what fails also fails when it is replayed, at first.
            let replays = journal
                .of("replays")
                .iter()
                .filter(|it| **it == event.number)
                .count();
            if cx.info().is_replay {
                journal.write("replays", event.number);
            }
            let fails = fate.below(5, event.number) == 0;
            let again = replays < 2 && fate.below(3, (event.number, "again")) == 0;
            if fails && (!cx.info().is_replay || again) {
                return Err(HandlerError::permanent("by chance"));
            }
            journal.write(event.aggregate().id(), event.number);
            Ok(())
        }
    };
    let shaky = Subscription::from_fn("shaky", shaky).failure_policy(FailurePolicy::ParkAggregate);
    started(&bus, [shaky, journal_of("steady", &journal)]).await;
    let publishing = tokio::spawn({
        let bus = Arc::clone(&bus);
        async move {
            let mut numbers = std::collections::HashMap::new();
            for number in 0..200 {
                let event = noted(format!("a{}", number % 4), number);
                let receipt = bus.publish(event).await.unwrap();
                numbers.insert(receipt.event_id(), number);
                tokio::task::yield_now().await;
            }
            numbers
        }
    });
    let mut discarded = Vec::new();
    loop {
        let done = publishing.is_finished();
        soon(bus.wait_idle()).await.unwrap();
        let letters = bus
            .dead_letters(&DeadLetterQuery::of("shaky"), 100)
            .await
            .unwrap();
        if done && letters.is_empty() {
            break;
        }
        for letter in letters {
            if fate.below(2, letter.event_id().as_bytes()) == 0 {
                bus.discard("shaky", letter.event_id(), "by chance")
                    .await
                    .unwrap();
                discarded.push(letter.event_id());
            } else {
                bus.replay("shaky", letter.event_id()).await.unwrap();
            }
        }
    }
    let numbers = soon(publishing).await.unwrap();
    let discarded: Vec<u64> = discarded.iter().map(|event| numbers[event]).collect();
    for aggregate in 0..4 {
        let kept = |number: &u64| number % 4 == aggregate && !discarded.contains(number);
        let expected: Vec<_> = (0..200).filter(kept).collect();
        assert_eq!(journal.of(&format!("a{aggregate}")), expected);
    }
    assert_eq!(bus.statistics().in_flight, 0);
}

/// F5: an older dead letter that fails once more and then is handled leaves what the newer one parks.
pub async fn f5_an_older_letter_that_fails_again_frees_nothing(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let bus = harness.bus(10, 1);
    failing.lock().unwrap().extend([0, 1]);
    started(&bus, [parks(&journal, &failing)]).await;
    let older = bus.publish(noted("a", 0)).await.unwrap().event_id();
    soon(bus.wait_idle()).await.unwrap();
    // One of its name that comes later is not parked behind the letter of the first.
    assert!(soon(bus.unsubscribe("parks")).await);
    let again = parks(&journal, &failing);
    soon(bus.subscribe(again)).await.unwrap();
    let newer = bus.publish(noted("a", 1)).await.unwrap().event_id();
    bus.publish(noted("a", 2)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let handled = || bus.statistics().of("parks").unwrap().handled;
    if bus
        .dead_letters(&DeadLetterQuery::all(), 10)
        .await
        .unwrap()
        .len()
        == 1
    {
        // The first left its aggregate parked: 1 waits behind 0.
        bus.replay("parks", older).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
        assert_eq!(handled(), 0);
        return;
    }
    for fails in [true, false] {
        if !fails {
            failing.lock().unwrap().retain(|number| *number != 0);
        }
        bus.replay("parks", older).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
        assert_eq!(handled(), u64::from(!fails), "2 is parked behind 1");
    }
    bus.discard("parks", newer, "of no use").await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(handled(), 2);
}

/// P2: what is parked no more, of a subscription that is paused, is told as paused.
pub async fn p2_what_is_parked_no_more_is_told_as_it_is(harness: &dyn BusHarness) {
    let (journal, failing) = (Journal::default(), Failing::default());
    let (bus, receipts) = parked(harness, &journal, &failing).await;
    assert_eq!(
        own_outcome(&receipts[1]).await,
        Some(DeliveryOutcome::Parked)
    );
    assert!(soon(bus.pause("parks")).await);
    let letter = receipts[0].event_id();
    bus.discard("parks", letter, "of no use").await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(
        own_outcome(&receipts[1]).await,
        Some(DeliveryOutcome::Paused)
    );
    assert_eq!(bus.statistics().of("parks").unwrap().parked, 0);
}
