//! A log that is pruned beside a running bus (R8).

use std::error::Error;

use domain_events::{
    DeadLetterQuery, EventBus, EventQuery, EventStore, FailurePolicy, HandlerError, Ordering,
    PlaceError, Position, Retention, StartFrom, StoreErrorKind, SubscribeError, Subscription,
};
use tempfile::tempdir;

use crate::recovery::{Counted, Journal, Run, counted, handles, soon, subscription};

const NOTHING: Retention = Retention::Latest(0);

async fn publish(run: &Run, counter: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        run.bus.publish(counted(counter, number)).await.unwrap();
    }
    run.idle().await;
}

/// What a subscription passes over has no progress of its own, and holds nothing.
#[tokio::test]
async fn r8_the_log_is_pruned_beside_those_who_want_none_of_it() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let other = Subscription::from_fn("other", |_: domain_events::Event<Other>, _| async {
        Ok(())
    });
    let run = Run::start(&file, 100, [handles("s", &journal), other]).await;
    publish(&run, "a", 0..20).await;
    let pruned = run.bus.prune(Retention::Latest(5)).await.unwrap();
    assert_eq!((pruned.events, pruned.through), (15, Position::new(15)));
    publish(&run, "a", 20..25).await;
    assert_eq!(run.bus.prune(NOTHING).await.unwrap().events, 10);
    run.stop().await;

    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    publish(&run, "a", 25..27).await;
    assert_eq!(journal.numbers("a"), (0..27).collect::<Vec<_>>());
    // A name that nobody is subscribed by holds what is behind it.
    let pruned = run.bus.prune(NOTHING).await.unwrap();
    assert_eq!((pruned.events, pruned.through), (0, Position::new(25)));
    run.bus.forget("other").await.unwrap();
    assert_eq!(run.bus.prune(NOTHING).await.unwrap().events, 2);
    run.stop().await;
}

/// Where nothing else is saved.
#[tokio::test]
async fn r8_what_was_passed_over_by_all_is_pruned() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("events.db");
    let other = Subscription::from_fn("other", |_: domain_events::Event<Other>, _| async {
        Ok(())
    });
    let run = Run::start(&file, 100, [other]).await;
    publish(&run, "a", 0..20).await;
    for kept in [12, 3] {
        run.bus.prune(Retention::Latest(kept)).await.unwrap();
        let left = run.store.summary(&EventQuery::Log).await.unwrap();
        assert_eq!(left.events, kept);
    }
    run.stop().await;
}

/// Whatever is parked, and the letter that it is parked behind.
#[tokio::test]
async fn r8_what_is_parked_behind_a_dead_letter_is_delivered_after_its_replay() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let dies = |first: bool| {
        let handler = move |event: &Counted, _: u32| match event.number {
            1 if first => Err(HandlerError::permanent("never")),
            _ => Ok(()),
        };
        let parks = subscription("s", &journal, handler);
        parks.failure_policy(FailurePolicy::ParkAggregate)
    };
    let run = Run::start(&file, 100, [dies(true)]).await;
    publish(&run, "a", 0..5).await;
    publish(&run, "b", 0..1).await;
    let pruned = run.bus.prune(NOTHING).await.unwrap();
    assert_eq!((pruned.events, pruned.through), (1, Position::new(2)));
    run.stop().await;
    journal.take();

    let run = Run::start(&file, 100, [dies(false)]).await;
    run.bus.replay_all(&DeadLetterQuery::all()).await.unwrap();
    run.idle().await;
    assert_eq!(journal.numbers("a"), [1, 2, 3, 4]);
    run.bus.prune(NOTHING).await.unwrap();
    let left = run.store.summary(&EventQuery::Log).await.unwrap();
    assert_eq!(left.events, 0);
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

#[tokio::test]
async fn r8_a_start_before_what_is_kept_is_a_typed_error_and_changes_nothing() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    publish(&run, "a", 0..5).await;
    run.bus.prune(Retention::Latest(2)).await.unwrap();
    let pruned = StoreErrorKind::Pruned(Position::new(3));

    let late = || handles("late", &journal).start_from(StartFrom::Beginning);
    let refused = soon(run.bus.subscribe(late())).await;
    let Err(SubscribeError::Store(error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.kind(), pruned);
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("\"late\""), "{cause}");
    let refused = soon(run.bus.reset("s", StartFrom::Beginning)).await;
    let Err(PlaceError::Store(error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.kind(), pruned);
    publish(&run, "a", 5..6).await;
    assert_eq!(journal.take().len(), 6, "it has gone on where it was");

    let kept = StartFrom::After(Position::new(3));
    soon(run.bus.subscribe(late().start_from(kept)))
        .await
        .unwrap();
    soon(run.bus.reset("s", kept)).await.unwrap();
    run.idle().await;
    let mut seen = journal.numbers("a");
    seen.sort_unstable();
    assert_eq!(seen, [3, 3, 4, 4, 5, 5]);
    run.stop().await;
}

/// Whatever the order: what is replayed is read though the log goes on far behind it.
#[tokio::test]
async fn r8_a_replay_that_a_crash_interrupts_is_made_though_the_log_was_pruned() {
    let orders = [Ordering::PerAggregate, Ordering::Total, Ordering::None];
    for order in orders {
        let (dir, journal) = (tempdir().unwrap(), Journal::default());
        let file = dir.path().join("events.db");
        let fails = |broken: bool| {
            let handler = move |event: &Counted, attempt: u32| match event.number {
                1 | 3 if broken && attempt == 1 => Err(HandlerError::permanent("never")),
                _ => Ok(()),
            };
            subscription("s", &journal, handler).ordering(order)
        };
        let run = Run::start(&file, 100, [fails(true)]).await;
        publish(&run, "a", 0..30).await;
        assert_eq!(run.bus.prune(NOTHING).await.unwrap().events, 28);
        run.bus.pause("s").await;
        run.bus.replay_all(&DeadLetterQuery::all()).await.unwrap();
        run.bus.prune(NOTHING).await.unwrap();
        run.crash().await;
        journal.take();

        let run = Run::start(&file, 100, [fails(false)]).await;
        run.bus.resume("s").await;
        publish(&run, "a", 30..32).await;
        let mut seen = journal.numbers("a");
        seen.sort_unstable();
        assert_eq!(seen, [1, 3, 30, 31], "{order:?}");
        assert_eq!(run.bus.statistics().store_trouble, None);
        assert_eq!(run.bus.prune(NOTHING).await.unwrap().events, 4);
        assert!(run.store.verify().await.unwrap().is_sound());
        run.stop().await;
    }
}

/// Though the one that has to be given it first, and who was behind, is forgotten meanwhile.
#[tokio::test]
async fn r8_a_pipeline_that_is_behind_reads_what_it_has_to() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let run = Run::start(&file, 2, [handles("s", &journal)]).await;
    publish(&run, "a", 0..9).await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let opens = std::sync::Arc::clone(&gate);
    let slow = Subscription::from_fn("slow", move |_: domain_events::Event<Counted>, _| {
        let gate = std::sync::Arc::clone(&opens);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    });
    // Sets the pipeline back, which is full at once.
    run.bus
        .subscribe(slow.start_from(StartFrom::Beginning))
        .await
        .unwrap();
    let leaving = soon(run.bus.unsubscribe("slow"));
    let (left, ()) = tokio::join!(leaving, async { gate.add_permits(99) });
    assert!(left);
    run.bus.forget("slow").await.unwrap();
    run.bus.prune(NOTHING).await.unwrap();
    publish(&run, "a", 9..12).await;
    assert_eq!(journal.numbers("a"), (0..12).collect::<Vec<_>>());
    assert_eq!(run.bus.statistics().store_trouble, None);
    run.stop().await;
}

/// An event that nobody publishes.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Other {
    id: String,
}

impl domain_events::DomainEvent for Other {
    const EVENT_TYPE: &'static str = "test.other";
    const AGGREGATE_TYPE: &'static str = "other";

    fn aggregate_id(&self) -> std::borrow::Cow<'_, str> {
        std::borrow::Cow::Borrowed(&self.id)
    }
}
