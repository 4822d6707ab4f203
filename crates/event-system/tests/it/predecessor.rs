//! What went wrong with the storage of the system that this one carries on, each as the fact that holds here.

use std::{sync::Arc, time::Duration};

use diesel::connection::SimpleConnection;
use domain_events::{
    AggregateRef, AppendError, AttemptResult, DeadLetterQuery, DeadLetterReason, Event, EventBus,
    EventEnvelope, EventQuery, EventStore, ExpectedVersion, HandlerContext, HandlerError, Position,
    PublishError, RetryPolicy, StartFrom, Subscription, Timestamp, Version,
};
use event_store_diesel::SqliteEventStore;
use tempfile::{TempDir, tempdir};
use tokio::sync::Semaphore;

use crate::recovery::{Counted, Journal, Run, counted, handles, open, soon, subscription};

const HOUR: Duration = Duration::from_secs(3_600);

fn file() -> (TempDir, std::path::PathBuf) {
    let dir = tempdir().unwrap();
    let file = dir.path().join("events.db");
    (dir, file)
}

async fn unfinished(store: &SqliteEventStore) -> u64 {
    let statistics = store.statistics().await.unwrap();
    assert_eq!(
        statistics.log.events,
        statistics.finished + statistics.unfinished()
    );
    statistics.unfinished()
}

/// One flag for each event was overwritten by each handler, and a failure lost by another's success.
#[tokio::test]
async fn a_success_hides_no_failure_of_another_handler() {
    let (_dir, file) = file();
    let (journal, others) = (Journal::default(), Journal::default());
    let fails = subscription("fails", &journal, |_, _| {
        Err(HandlerError::retry_after(HOUR, "later"))
    });
    let run = Run::start(&file, 100, [fails, handles("succeeds", &others)]).await;
    let receipt = run.bus.publish(counted("a", 0)).await.unwrap();
    while journal.numbers("a").is_empty() || others.numbers("a").is_empty() {
        tokio::task::yield_now().await;
    }
    drop(receipt);
    run.stop().await;
    journal.take();
    others.take();

    let run = Run::start(&file, 100, [handles("succeeds", &others)]).await;
    run.idle().await;
    assert_eq!(others.take(), [], "it has succeeded");
    assert_eq!(unfinished(&run.store).await, 1, "and the other has not");
    run.stop().await;
}

/// A retry that succeeded was never recorded, and the event unprocessed for ever.
#[tokio::test]
async fn a_retry_that_succeeds_ends_the_delivery() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let second = |_: &Counted, attempt| match attempt {
        1 => Err(HandlerError::transient("not yet")),
        _ => Ok(()),
    };
    let retry = RetryPolicy::exponential().base(Duration::from_millis(1));
    let second = subscription("s", &journal, second).retry(retry);
    let run = Run::start(&file, 100, [second]).await;
    run.bus.publish(counted("a", 0)).await.unwrap();
    run.idle().await;
    assert_eq!(unfinished(&run.store).await, 0);
    run.stop().await;
    assert_eq!(journal.take().len(), 2);

    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    run.idle().await;
    assert_eq!(journal.take(), []);
    run.stop().await;
}

/// An event that nobody subscribes to stayed unprocessed for ever.
#[tokio::test]
async fn an_event_that_nobody_wants_is_finished() {
    let (_dir, file) = file();
    let run = Run::start(&file, 100, []).await;
    run.bus.publish(counted("a", 0)).await.unwrap();
    assert_eq!(unfinished(&run.store).await, 0);
    run.stop().await;
}

/// Nothing ever asked for what was unprocessed.
#[tokio::test]
async fn what_a_crash_has_left_is_taken_up_by_the_next_start() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let hangs = Subscription::from_fn("s", |_: Event<Counted>, _| std::future::pending());
    let hangs = hangs.start_from(StartFrom::Beginning);
    let run = Run::start(&file, 100, [hangs]).await;
    for number in 0..3 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.crash().await;
    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2]);
    run.stop().await;
}

/// Retries went through a queue of their own, and later events of the aggregate came before them.
#[tokio::test]
async fn what_is_retried_keeps_its_place_also_over_a_stop() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let fails = |event: &Counted, _| match event.number {
        0 => Err(HandlerError::retry_after(HOUR, "later")),
        _ => Ok(()),
    };
    let run = Run::start(&file, 100, [subscription("s", &journal, fails)]).await;
    for number in 0..3 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    let other = run.bus.publish(counted("b", 9)).await.unwrap();
    soon(other.handled()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0], "those behind it wait");
    run.stop().await;
    journal.take();
    crate::recovery::make_due(&file);
    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2]);
    run.stop().await;
}

/// A stop cancelled workers with work in hand.
#[tokio::test]
async fn a_stop_lets_what_runs_end_and_leaves_the_rest_to_the_next_start() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let (began, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, opens, noted) = (Arc::clone(&began), Arc::clone(&gate), journal.clone());
    let waits = move |event: Event<Counted>, cx: HandlerContext| {
        let (begins, opens, noted) = (Arc::clone(&begins), Arc::clone(&opens), noted.clone());
        async move {
            begins.add_permits(1);
            opens.acquire().await?.forget();
            noted.write(&event, &cx);
            Ok(())
        }
    };
    let waits = Subscription::from_fn("s", waits).start_from(StartFrom::Beginning);
    let run = Run::start(&file, 100, [waits]).await;
    for number in 0..3 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    soon(began.acquire()).await.unwrap().forget();
    let stopping = run.stop();
    let (report, ()) = tokio::join!(stopping, async { gate.add_permits(3) });
    assert_eq!(report.cut_off, 0);
    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2], "each once");
    run.stop().await;
}

/// Dead letters were kept in a ring of 1,000 in memory.
#[tokio::test]
async fn more_than_a_thousand_dead_letters_outlast_the_process() {
    const MANY: u64 = 1_100;
    let (_dir, file) = file();
    let dies = subscription("s", &Journal::default(), |_, _| {
        Err(HandlerError::permanent("never"))
    });
    let run = Run::start(&file, 2_000, [dies]).await;
    let events = (0..MANY).map(|number| counted("a", number)).collect();
    run.bus.publish_all(events).await.unwrap();
    run.idle().await;
    run.crash().await;
    let run = Run::start(&file, 100, []).await;
    let groups = run.bus.dead_letter_groups(&DeadLetterQuery::all()).await;
    assert_eq!(groups.unwrap()[0].letters, MANY);
    run.stop().await;
}

/// The name of the handler in the log was always "unknown".
#[tokio::test]
async fn the_processing_log_names_who_failed() {
    let (_dir, file) = file();
    let dies = subscription("invoices", &Journal::default(), |_, _| {
        Err(HandlerError::permanent("no paper"))
    });
    let run = Run::start(&file, 100, [dies]).await;
    run.bus.publish(counted("a", 0)).await.unwrap();
    run.idle().await;
    let log = run.bus.processing_log(None, 9).await.unwrap();
    assert_eq!(&*log[0].subscription, "invoices");
    assert_eq!(log[0].result, AttemptResult::Failed("no paper".to_owned()));
    run.stop().await;
}

/// A failure to store was never seen by the code that published.
#[tokio::test]
async fn who_publishes_is_told_that_the_store_failed() {
    let (_dir, file) = file();
    let run = Run::start(&file, 100, []).await;
    run.store.close().await;
    let refused = run.bus.publish(counted("a", 0)).await;
    assert!(
        matches!(refused, Err(PublishError::Append(AppendError::Store(_)))),
        "{refused:?}"
    );
}

/// A history was ordered by time stamps, without versions: ties came in any order, and writers overwrote
/// each other.
#[tokio::test]
async fn a_history_is_ordered_by_version_whatever_the_clock_says() {
    let (_dir, file) = file();
    let run = Run::start(&file, 100, []).await;
    for number in 0..5 {
        let at = Timestamp::from_micros(1_000 - number as i64 / 2);
        let event = counted("a", number).occurred_at(at);
        run.bus.publish(event).await.unwrap();
    }
    let history = EventQuery::history(AggregateRef::new("counter", "a"));
    let history = run.store.read(&history, Position::ZERO, 9).await.unwrap();
    let versions = history.iter().filter_map(EventEnvelope::version);
    assert!(versions.eq((1..=5).map(Version::new)));
    let late = counted("a", 9).expect(ExpectedVersion::Exact(Version::new(4)));
    let refused = run.bus.publish(late).await;
    assert!(
        matches!(
            refused,
            Err(PublishError::Append(AppendError::WrongVersion { actual, .. })) if actual == Version::new(5)
        ),
        "{refused:?}"
    );
    run.stop().await;
}

/// Stored events that could not be read were logged and passed over.
#[tokio::test]
async fn an_event_that_cannot_be_read_is_a_dead_letter_with_its_bytes() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let run = Run::start(&file, 100, []).await;
    for number in 0..3 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.stop().await;
    let damage = "UPDATE de_events SET payload = x'7b22' WHERE position = 2";
    open(&file).batch_execute(damage).unwrap();
    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 2], "others go on");
    let letters = run.bus.dead_letters(&DeadLetterQuery::all(), 9).await;
    let letter = letters.unwrap().remove(0);
    assert_eq!(letter.reason, DeadLetterReason::Unreadable);
    assert_eq!(letter.event.payload().unwrap(), b"{\"");
    assert!(!letter.error.is_empty());
    run.stop().await;
}
