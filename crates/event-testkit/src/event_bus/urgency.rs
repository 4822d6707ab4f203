//! Which aggregate comes first: urgency, and that nobody starves.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use domain_events::{
    DomainEvent, Event, EventBus, HandlerContext, NewEvent, Subscription, Urgency,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{BusHarness, Journal, Noted, gated, noted, soon, started};

/// A running bus with one worker, which is held up by an event until the gate is opened; what is
/// published until then waits.
async fn held_up(
    harness: &dyn BusHarness,
    journal: &Journal,
    other: Option<Subscription>,
) -> (Arc<dyn EventBus>, Arc<Semaphore>) {
    let (bus, gate) = (harness.bus(1_000, 1), Arc::new(Semaphore::new(0)));
    started(&bus, [gated(journal, &gate)].into_iter().chain(other)).await;
    bus.publish(noted("plug", 0)).await.unwrap();
    journal.has(1, "began").await;
    (bus, gate)
}

/// What began after the event that held up the worker.
async fn order(bus: &dyn EventBus, gate: &Semaphore, journal: &Journal) -> Vec<u64> {
    gate.add_permits(10_000);
    soon(bus.wait_idle()).await.unwrap();
    journal.of("began").split_off(1)
}

/// D5: with all lanes full, of 21 starts 16 are high, 4 normal and 1 low.
pub async fn d5_of_21_starts_16_are_high_4_normal_1_low(harness: &dyn BusHarness) {
    let journal = Journal::default();
    let (bus, gate) = held_up(harness, &journal, None).await;
    // Low ones first, so that it is not the order of publishing.
    let lanes = [
        (Urgency::Low, 10, 1),
        (Urgency::Normal, 30, 2),
        (Urgency::High, 100, 3),
    ];
    let batch = lanes.into_iter().flat_map(|(urgency, count, lane)| {
        (0..count).map(move |n| noted(format!("{lane}-{n}"), lane).urgency(urgency))
    });
    bus.publish_all(batch.collect()).await.unwrap();
    let order = order(&*bus, &gate, &journal).await;
    assert_eq!(order.len(), 140);
    // What held up the worker was a start of the first turn. All lanes are full for four more.
    for turn in order[21..105].windows(21) {
        let starts = [3, 2, 1].map(|lane| turn.iter().filter(|&&it| it == lane).count());
        assert_eq!(starts, [16, 4, 1], "{order:?}");
    }
}

/// D5: urgency chooses between aggregates and never reorders within one: an aggregate waits in the
/// lane of its most urgent event.
pub async fn d5_urgency_chooses_between_aggregates_never_within(harness: &dyn BusHarness) {
    let journal = Journal::default();
    let (bus, gate) = held_up(harness, &journal, None).await;
    let batch = vec![
        noted("calm", 10),
        noted("urgent", 20).urgency(Urgency::Low),
        noted("urgent", 21),
        noted("urgent", 22).urgency(Urgency::High),
    ];
    bus.publish_all(batch).await.unwrap();
    assert_eq!(order(&*bus, &gate, &journal).await, [20, 21, 22, 10]);
}

/// An event that cannot wait.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.alarmed", aggregate = "notebook", id = aggregate, urgency = High)]
struct Alarmed {
    aggregate: String,
}

/// D5: the urgency is that of the event's type, unless the publisher says another.
pub async fn d5_a_publish_overrides_the_urgency_of_the_type(harness: &dyn BusHarness) {
    let journal = Journal::default();
    let log = journal.clone();
    let alarmed = move |event: Event<Alarmed>, _| {
        log.write("began", event.aggregate.parse().unwrap_or(0));
        async { Ok(()) }
    };
    let alarmed = Subscription::from_fn("alarmed", alarmed);
    let (bus, gate) = held_up(harness, &journal, Some(alarmed)).await;
    let alarm = |number: u64| {
        let aggregate = number.to_string();
        NewEvent::new(Alarmed { aggregate })
    };
    let batch = vec![alarm(4).urgency(Urgency::Low), noted("normal", 3), alarm(2)];
    bus.publish_all(batch).await.unwrap();
    assert_eq!(order(&*bus, &gate, &journal).await, [2, 3, 4]);
}

/// D5: a worker keeps an aggregate for at most 16 starts while others of its lane wait.
pub async fn d5_an_aggregate_goes_to_the_end_of_its_lane(harness: &dyn BusHarness) {
    let journal = Journal::default();
    let (bus, gate) = held_up(harness, &journal, None).await;
    let many = (100..200).map(|number| noted("many", number));
    let batch = many.chain([noted("one", 1)]).collect();
    bus.publish_all(batch).await.unwrap();
    let order = order(&*bus, &gate, &journal).await;
    let place = order.iter().position(|&number| number == 1);
    assert!(place.is_some_and(|place| place <= 16), "{place:?}");
}

/// D5: none is starved: an event of low urgency is handled amid an endless flood of urgent ones.
pub async fn d5_the_lowest_lane_is_not_starved_by_an_endless_flood(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let low = Arc::new(AtomicU64::new(0));
    let flooding = Arc::clone(&low);
    let floods = move |event: Event<Noted>, cx: HandlerContext| {
        let low = Arc::clone(&flooding);
        async move {
            if event.envelope().urgency() == Urgency::Low {
                low.store(1, SeqCst);
            } else if low.load(SeqCst) == 0 && event.number < 1_000 {
                let aggregate = format!("{}", event.number % 3);
                cx.publish(noted(aggregate, event.number + 1).urgency(Urgency::High))
                    .await?;
            }
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("floods", floods)]).await;
    let flood = (0..20).map(|n| noted(format!("{n}"), 0).urgency(Urgency::High));
    let batch = flood
        .chain([noted("low", 0).urgency(Urgency::Low)])
        .collect();
    let receipts = soon(bus.publish_all(batch)).await.unwrap();
    soon(receipts[20].handled()).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let high = bus.statistics().accepted - 1;
    assert!(high < 200, "{high} urgent events came, 20 of them before");
}
