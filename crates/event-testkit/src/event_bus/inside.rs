//! What handlers publish: they never wait for room that only they could free.

use std::sync::{Arc, Mutex};

use domain_events::{Event, EventBus, HandlerContext, HandlerError, Subscription};
use tokio::sync::Semaphore;

use super::{
    BusHarness, Followed, HOUR, Journal, Noted, followed, hears, left_out, noted, room::given_back,
    soon, started,
};

/// P5: a handler that publishes into a full queue, on a bus with one worker, does not wait for
/// itself.
pub async fn p5_a_handler_publishes_into_a_full_queue(harness: &dyn BusHarness) {
    let bus = harness.bus(4, 1);
    let (journal, other) = (Journal::default(), Arc::downgrade(&bus));
    let follows = move |event: Event<Noted>, cx: HandlerContext| {
        let bus = other.upgrade();
        async move {
            let followed = followed(event.aggregate().id(), event.number);
            // The bus itself is just as safe to use from the handler's own task.
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            if event.number.is_multiple_of(2) {
                cx.publish(followed).await?;
            } else {
                bus.publish(followed).await?;
            }
            Ok(())
        }
    };
    let follows = Subscription::from_fn("follows", follows);
    started(&bus, [follows, hears("heard", &journal)]).await;
    for number in 0..20 {
        let event = noted(format!("a{}", number % 3), number);
        soon(bus.publish(event)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let mut heard = journal.of("heard");
    heard.sort_unstable();
    assert_eq!(heard, (0..20).collect::<Vec<_>>());
}

/// How many events a handler published until it was told that the queue is full.
type Counts = Arc<Mutex<Vec<u64>>>;

/// A subscription that publishes as much as it can, up to 30 events, each time by another way.
fn floods(bus: &Arc<dyn EventBus>, counts: &Counts, capacity: usize) -> Subscription {
    let (bus, counts) = (Arc::downgrade(bus), Arc::clone(counts));
    Subscription::from_fn("floods", move |event: Event<Noted>, cx: HandlerContext| {
        let (bus, counts) = (bus.upgrade(), Arc::clone(&counts));
        async move {
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            let mut count = 0;
            while count < 30 {
                let next = followed(format!("f{count}"), count);
                let published = match event.number {
                    0 => cx.publish(next).await,
                    1 => bus.publish(next).await,
                    2 => bus.publish_timeout(next, HOUR).await,
                    _ => bus.try_publish(next).await,
                };
                if published.is_err() {
                    given_back(published, capacity);
                    break;
                }
                count += 1;
            }
            counts.lock().unwrap().push(count);
            Ok(())
        }
    })
}

/// P5: over the limit, a handler is given room for at most `capacity` events more and is then told
/// (volatile), or its events are left to the log; it never waits, whichever way it publishes.
pub async fn p5_a_handler_is_told_when_its_share_of_the_room_is_used_up(harness: &dyn BusHarness) {
    let bus = harness.bus(4, 1);
    let (journal, counts) = (Journal::default(), Counts::default());
    started(&bus, [floods(&bus, &counts, 4), hears("hears", &journal)]).await;
    for number in 0..4 {
        soon(bus.publish(noted("a", number))).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
    }
    let counts = counts.lock().unwrap().clone();
    assert_eq!(journal.of("hears").len() as u64, counts.iter().sum::<u64>());
    // The handled event takes one place itself.
    let allowed = if harness.is_durable() { 30..=30 } else { 3..=7 };
    assert!(
        counts.iter().all(|count| allowed.contains(count)),
        "{counts:?}"
    );
    assert_eq!(counts.len(), 4);
}

/// P5: so it is where the pipeline that is full is another than the handler's.
pub async fn p5_a_handler_never_waits_for_another_pipeline(harness: &dyn BusHarness) {
    if left_out(
        !harness.is_durable(),
        "hold publishers back by an isolated pipeline",
    ) {
        return;
    }
    let bus = harness.bus(100, 1);
    let (journal, counts) = (Journal::default(), Counts::default());
    let (gate, log) = (Arc::new(Semaphore::new(0)), journal.clone());
    let opened = Arc::clone(&gate);
    let slow = move |event: Event<Followed>, _| {
        let (gate, journal) = (Arc::clone(&opened), log.clone());
        async move {
            gate.acquire().await?.forget();
            journal.write("slow", event.number);
            Ok(())
        }
    };
    let slow = Subscription::from_fn("slow", slow).isolated(1).capacity(2);
    started(&bus, [floods(&bus, &counts, 2), slow]).await;
    let receipt = bus.publish(noted("a", 0)).await.unwrap();
    soon(receipt.handled()).await.unwrap();
    gate.add_permits(30);
    soon(bus.wait_idle()).await.unwrap();
    let counts = counts.lock().unwrap().clone();
    assert!(matches!(counts[..], [2..=4]), "{counts:?}");
    assert_eq!(journal.of("slow").len() as u64, counts[0]);
}

/// P5: a task that a handler spawns is an outside publisher: it has no share of the handlers' room,
/// and waits.
pub async fn p5_a_task_that_a_handler_spawns_is_an_outside_publisher(harness: &dyn BusHarness) {
    let bus = harness.bus(1, 1);
    let (journal, inside) = (Journal::default(), Arc::downgrade(&bus));
    let log = journal.clone();
    let spawns = move |event: Event<Noted>, _| {
        let (bus, journal) = (inside.upgrade(), log.clone());
        async move {
            let bus = bus.ok_or_else(|| HandlerError::permanent("gone"))?;
            if event.number == 0 {
                let trying = Arc::clone(&bus);
                let tried = tokio::spawn(async move { trying.try_publish(noted("a", 1)).await });
                let event = given_back(tried.await?, 1);
                let waits = tokio::spawn(async move { bus.publish(event).await });
                tokio::task::yield_now().await;
                journal.write("waits", u64::from(!waits.is_finished()));
            }
            journal.write("seen", event.number);
            Ok(())
        }
    };
    started(&bus, [Subscription::from_fn("spawns", spawns)]).await;
    soon(bus.publish(noted("a", 0))).await.unwrap();
    journal.has(2, "seen").await;
    assert_eq!(journal.of("seen"), [0, 1]);
    assert_eq!(journal.of("waits"), [1]);
}
