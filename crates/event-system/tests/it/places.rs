//! Where subscriptions are in the log: renamed, begun anew, forgotten, and told though nobody is there (D8).

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use domain_events::{
    DeadLetterQuery, Event, EventBus, FailurePolicy, HandlerContext, HandlerError, PlaceError,
    Position, StartFrom, SubscribeError, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use tempfile::tempdir;

use crate::recovery::{Counted, Journal, Run, counted, handles, soon, subscription};

#[tokio::test]
async fn d8_a_renamed_subscription_goes_on_where_it_stopped() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let dies = subscription("old", &journal, |event: &Counted, _| match event.number {
        1 => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    });
    let run = Run::start(&file, 100, [dies]).await;
    for number in 0..3 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.stop().await;
    journal.take();
    for _ in 0..2 {
        let renamed = handles("new", &journal).formerly("older").formerly("old");
        let run = Run::start(&file, 100, [renamed]).await;
        run.idle().await;
        let letters = DeadLetterQuery::of("new");
        assert_eq!(run.bus.dead_letters(&letters, 9).await.unwrap().len(), 1);
        let stored = run.bus.stored_subscriptions().await.unwrap();
        let names: Vec<_> = stored.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["new"]);
        run.stop().await;
    }
    assert_eq!(journal.take(), [], "nothing is delivered again");
}

#[tokio::test]
async fn d8_a_projection_is_built_again_beside_publishers() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("events.db");
    let (journal, rebuilt) = (Journal::default(), Arc::new(AtomicBool::new(false)));
    let is_rebuilt = Arc::clone(&rebuilt);
    let fails = subscription("projection", &journal, move |event: &Counted, _| {
        match (event.counter.as_str(), event.number) {
            _ if is_rebuilt.load(SeqCst) => Ok(()),
            ("a", 4) => Err(HandlerError::permanent("parks")),
            ("b", 5) => Err(HandlerError::retry_after(
                std::time::Duration::from_secs(3_600),
                "later",
            )),
            _ => Ok(()),
        }
    });
    let parks = fails.failure_policy(FailurePolicy::ParkAggregate);
    let run = Run::start(&file, 100, [parks, handles("other", &journal)]).await;
    for number in 0..20 {
        let counter = ["a", "b"][number as usize % 2];
        run.bus.publish(counted(counter, number)).await.unwrap();
    }
    let waits = || run.bus.statistics().of("projection").unwrap().waiting == 1;
    let parked = || run.bus.statistics().of("projection").unwrap().parked > 0;
    soon(async {
        while !(waits() && parked()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    journal.take();
    rebuilt.store(true, SeqCst);
    let published = async {
        for number in 20..40 {
            let counter = ["a", "b"][number as usize % 2];
            run.bus.publish(counted(counter, number)).await.unwrap();
        }
    };
    let reset = run.bus.reset("projection", StartFrom::Beginning);
    let (_, reset) = tokio::join!(published, reset);
    reset.unwrap();
    run.idle().await;
    let letters = run
        .bus
        .dead_letters(&DeadLetterQuery::all(), 9)
        .await
        .unwrap();
    assert_eq!(letters.len(), 0, "it is delivered again");
    let seen = journal.take();
    for (counter, first) in [("a", 0), ("b", 1)] {
        let of = seen.iter().filter(|it| it.0 == counter).map(|it| it.1);
        let numbers: Vec<u64> = of.collect();
        let all: Vec<u64> = (first..40).step_by(2).collect();
        let from = numbers.iter().rposition(|number| *number == first).unwrap();
        // What the other handles lies between; each number comes in order.
        let rest = &numbers[from..];
        assert!(
            all.iter().all(|number| rest.contains(number)),
            "{counter}: {numbers:?}"
        );
    }
    let stored = run.bus.stored_subscriptions().await.unwrap();
    assert!(
        stored.iter().all(|it| (it.lag, it.dead) == (0, 0)),
        "{stored:?}"
    );
    run.stop().await;

    let run = Run::start(&file, 100, [handles("projection", &journal)]).await;
    run.idle().await;
    assert_eq!(journal.take(), [], "its new place is kept");
    run.stop().await;
}

#[tokio::test]
async fn d8_a_name_without_a_subscription_is_told_and_can_be_forgotten() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let dies = subscription("gone", &journal, |event: &Counted, _| match event.number {
        0 => Err(HandlerError::permanent("never")),
        _ => Ok(()),
    });
    let run = Run::start(&file, 100, [dies, handles("stays", &journal)]).await;
    for number in 0..2 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.stop().await;

    let run = Run::start(&file, 100, [handles("stays", &journal)]).await;
    for number in 2..5 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.idle().await;
    let stored = run.bus.stored_subscriptions().await.unwrap();
    let gone = stored.iter().find(|it| &*it.name == "gone").unwrap();
    assert_eq!(
        (gone.through, gone.lag, gone.dead),
        (Position::new(2), 3, 1)
    );
    let stays = stored.iter().find(|it| &*it.name == "stays").unwrap();
    assert_eq!((stays.lag, stays.dead), (0, 0));

    let refused = run.bus.forget("stays").await;
    assert!(
        matches!(refused, Err(PlaceError::Subscribed(_))),
        "{refused:?}"
    );
    let refused = run.bus.forget("nobody").await;
    assert!(
        matches!(refused, Err(PlaceError::NoSuchSubscription(_))),
        "{refused:?}"
    );
    run.bus
        .reset("gone", StartFrom::After(Position::new(4)))
        .await
        .unwrap();
    let stored = run.bus.stored_subscriptions().await.unwrap();
    let gone = stored.iter().find(|it| &*it.name == "gone").unwrap();
    assert_eq!(
        (gone.through, gone.lag, gone.dead),
        (Position::new(4), 1, 1)
    );
    run.bus.forget("gone").await.unwrap();
    let stored = run.bus.stored_subscriptions().await.unwrap();
    assert_eq!(stored.len(), 1, "{stored:?}");
    let letters = run
        .bus
        .dead_letters(&DeadLetterQuery::all(), 9)
        .await
        .unwrap();
    assert_eq!(letters.len(), 0);
    // The name is free, and as if it had never been.
    journal.take();
    run.bus.subscribe(handles("gone", &journal)).await.unwrap();
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2, 3, 4]);
    run.stop().await;
}

#[tokio::test]
async fn d8_places_are_not_changed_from_inside_nor_without_a_store() {
    let refused = Arc::new(AtomicU64::new(0));
    let (dir, cell) = (
        tempdir().unwrap(),
        Arc::new(std::sync::OnceLock::<Arc<Run>>::new()),
    );
    let (held, count) = (Arc::clone(&cell), Arc::clone(&refused));
    let resets = move |_: Event<Counted>, _: HandlerContext| {
        let (run, count) = (Arc::clone(held.get().unwrap()), Arc::clone(&count));
        async move {
            let reset = run.bus.reset("resets", StartFrom::Beginning).await;
            count.fetch_add(
                u64::from(matches!(reset, Err(PlaceError::InsideHandler))),
                SeqCst,
            );
            Ok(())
        }
    };
    let resets = Subscription::from_fn("resets", resets);
    let run = Run::start(&dir.path().join("events.db"), 100, [resets]).await;
    let run = Arc::new(run);
    cell.set(Arc::clone(&run)).ok().unwrap();
    run.bus.publish(counted("a", 0)).await.unwrap();
    run.idle().await;
    assert_eq!(refused.load(SeqCst), 1);
    run.bus
        .stop(std::time::Duration::from_secs(5))
        .await
        .unwrap();
    let stopped = run.bus.forget("resets").await;
    assert!(
        matches!(stopped, Err(PlaceError::NotRunning)),
        "{stopped:?}"
    );

    let volatile = InMemoryEventBus::new(BusConfig::default()).unwrap();
    let reset = volatile.reset("any", StartFrom::Now).await;
    assert!(matches!(reset, Err(PlaceError::WithoutStore)), "{reset:?}");
    assert_eq!(volatile.stored_subscriptions().await.unwrap(), []);
}

/// D1, D8: what the store knows by a former name is not given to another one while somebody has it.
#[tokio::test]
async fn d8_a_former_name_that_somebody_has_is_taken() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let run = Run::start(&file, 100, [handles("old", &journal).isolated(1)]).await;
    run.bus.publish(counted("a", 0)).await.unwrap();
    run.idle().await;
    let renamed = || handles("new", &journal).formerly("old");
    let refused = run.bus.subscribe(renamed()).await;
    assert!(
        matches!(&refused, Err(SubscribeError::DuplicateName(name)) if &**name == "old"),
        "{refused:?}"
    );
    run.bus.publish(counted("a", 1)).await.unwrap();
    run.idle().await;
    assert!(soon(run.bus.unsubscribe("old")).await);
    soon(run.bus.subscribe(renamed())).await.unwrap();
    run.bus.publish(counted("a", 2)).await.unwrap();
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2]);
    run.stop().await;

    // Nor before the start.
    let store = Arc::new(SqliteEventStore::open(&file, SqliteOptions::default()).unwrap());
    let bus = InMemoryEventBus::with_store(BusConfig::default(), store).unwrap();
    bus.subscribe(handles("old", &journal)).await.unwrap();
    let refused = bus.subscribe(renamed()).await;
    assert!(
        matches!(refused, Err(SubscribeError::DuplicateName(_))),
        "{refused:?}"
    );
}
