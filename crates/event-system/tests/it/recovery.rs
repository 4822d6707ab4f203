//! What one run leaves, the next one finishes (D1, D2, D8, F4, R1, R2, R4).

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use domain_events::{
    DeadLetterQuery, DomainEvent, Event, EventBus, HandlerContext, HandlerError, Health, NewEvent,
    Ordering, Priority, Retention, RetryPolicy, StartFrom, StoreErrorKind, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;
use tokio::{sync::Semaphore, time::timeout};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.counted", aggregate = "counter", id = counter)]
pub(crate) struct Counted {
    pub(crate) counter: String,
    pub(crate) number: u64,
}

pub(crate) fn counted(counter: &str, number: u64) -> NewEvent {
    NewEvent::new(Counted {
        counter: counter.to_owned(),
        number,
    })
}

/// One run over a file: a store and a bus.
pub(crate) struct Run {
    pub(crate) bus: InMemoryEventBus,
    pub(crate) store: Arc<SqliteEventStore>,
}

impl Run {
    pub(crate) async fn start(
        file: &Path,
        capacity: usize,
        subscriptions: impl IntoIterator<Item = Subscription>,
    ) -> Self {
        Self::start_with(file, SqliteOptions::default(), capacity, subscriptions).await
    }

    pub(crate) async fn start_with(
        file: &Path,
        options: SqliteOptions,
        capacity: usize,
        subscriptions: impl IntoIterator<Item = Subscription>,
    ) -> Self {
        let store = Arc::new(SqliteEventStore::open(file, options).unwrap());
        let config = BusConfig {
            capacity,
            workers: 4,
            ..BusConfig::default()
        };
        let bus = InMemoryEventBus::with_store(config, Arc::clone(&store)).unwrap();
        for subscription in subscriptions {
            bus.subscribe(subscription).await.unwrap();
        }
        soon(bus.start()).await.unwrap();
        Self { bus, store }
    }

    pub(crate) async fn idle(&self) {
        soon(self.bus.wait_idle()).await.unwrap();
    }

    /// Ends the run as it should end.
    pub(crate) async fn stop(self) -> domain_events::StopReport {
        let report = soon(self.bus.stop(Duration::from_secs(20))).await.unwrap();
        soon(self.store.close()).await;
        report
    }

    /// Ends the run as a crash does: nothing is drained and nothing saved.
    pub(crate) async fn crash(self) {
        drop(self.bus);
        soon(self.store.close()).await;
    }
}

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what)
        .await
        .expect("did not come within 30 s")
}

/// A delivery as a handler saw it: counter, number, attempt, and whether it may be a repeat.
pub(crate) type Seen = (String, u64, u32, bool);

#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Seen>>>);

impl Journal {
    pub(crate) fn write(&self, event: &Event<Counted>, cx: &HandlerContext) {
        let seen = (
            event.counter.clone(),
            event.number,
            cx.attempt(),
            cx.info().may_be_repeat,
        );
        self.0.lock().unwrap().push(seen);
    }

    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    pub(crate) fn numbers(&self, counter: &str) -> Vec<u64> {
        let seen = self.0.lock().unwrap();
        seen.iter()
            .filter(|seen| seen.0 == counter)
            .map(|seen| seen.1)
            .collect()
    }
}

/// A subscription from the beginning that writes down what it sees and answers as `answer` says.
pub(crate) fn subscription(
    name: &str,
    journal: &Journal,
    answer: impl Fn(&Counted, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
) -> Subscription {
    let journal = journal.clone();
    let handler = move |event: Event<Counted>, cx: HandlerContext| {
        journal.write(&event, &cx);
        std::future::ready(answer(&event, cx.attempt()))
    };
    Subscription::from_fn(name, handler).start_from(StartFrom::Beginning)
}

pub(crate) fn handles(name: &str, journal: &Journal) -> Subscription {
    subscription(name, journal, |_, _| Ok(()))
}

/// A subscription that never comes to an end with what it handles.
fn hangs(name: &str) -> Subscription {
    Subscription::from_fn(name, |_: Event<Counted>, _| std::future::pending())
        .start_from(StartFrom::Beginning)
}

#[tokio::test]
async fn r4_what_a_crash_left_is_delivered_in_order_before_and_with_new_events() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let run = Run::start(&file, 1_000, [hangs("counts")]).await;
    for number in 0..600 {
        run.bus
            .publish(counted(["a", "b", "c"][number as usize % 3], number))
            .await
            .unwrap();
    }
    run.crash().await;

    let run = Run::start(&file, 16, [handles("counts", &journal)]).await;
    for number in 600..900 {
        run.bus
            .publish(counted(["a", "b", "c"][number as usize % 3], number))
            .await
            .unwrap();
    }
    run.idle().await;
    let figures = run.bus.statistics();
    assert_eq!((figures.recovered, figures.accepted), (600, 300));
    assert_eq!(
        figures.accepted + figures.recovered,
        figures.finished + figures.in_flight
    );
    run.stop().await;
    for (counter, first) in [("a", 0), ("b", 1), ("c", 2)] {
        assert_eq!(
            journal.numbers(counter),
            (first..900).step_by(3).collect::<Vec<_>>()
        );
    }
    assert!(
        journal.take().iter().all(|seen| seen.3 == (seen.1 < 600)),
        "only those may be repeats"
    );
}

#[tokio::test]
async fn r3_after_a_clean_stop_nothing_is_repeated() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    for round in 0..3 {
        let run = Run::start(
            &file,
            100,
            [handles("one", &journal), handles("two", &journal)],
        )
        .await;
        assert_eq!(journal.take(), []);
        for number in 0..50 {
            run.bus
                .publish(counted("a", round * 50 + number))
                .await
                .unwrap();
        }
        let report = run.stop().await;
        assert_eq!((report.left_in_log, report.cut_off), (0, 0), "{report:?}");
        assert_eq!(journal.take().len(), 100);
    }
}

#[tokio::test]
async fn r3_a_stop_that_cuts_a_handler_off_leaves_just_that_for_the_next_run() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let began = Arc::new(Semaphore::new(0));
    let begun = Arc::clone(&began);
    let stuck = move |event: Event<Counted>, _: HandlerContext| {
        let begun = Arc::clone(&begun);
        async move {
            begun.add_permits(1);
            if event.number == 1 {
                std::future::pending().await
            } else {
                Ok(())
            }
        }
    };
    let stuck = Subscription::from_fn("stuck", stuck).start_from(StartFrom::Beginning);
    let run = Run::start(&file, 100, [stuck, handles("quick", &journal)]).await;
    for (counter, number) in [("a", 0), ("b", 1), ("c", 2)] {
        run.bus.publish(counted(counter, number)).await.unwrap();
    }
    soon(began.acquire_many(3)).await.unwrap().forget();
    let report = soon(run.bus.stop(Duration::ZERO)).await.unwrap();
    soon(run.store.close()).await;
    assert_eq!(report.cut_off, 1);
    let quick_before = journal.take().len();

    let (stuck, quick) = (Journal::default(), Journal::default());
    let run = Run::start(
        &file,
        100,
        [handles("stuck", &stuck), handles("quick", &quick)],
    )
    .await;
    run.idle().await;
    run.stop().await;
    assert_eq!(
        stuck.take(),
        [("b".to_owned(), 1, 1, true)],
        "its attempt is not counted"
    );
    assert_eq!(quick_before + quick.take().len(), 3);
}

#[tokio::test]
async fn f4_attempts_and_order_survive_the_end_of_a_run() {
    for crash in [false, true] {
        let (dir, journal) = (tempdir().unwrap(), Journal::default());
        let file = dir.path().join("events.db");
        let policy = || RetryPolicy::exponential().max_attempts(3);
        let later = |event: &Counted, attempt: u32| match (event.number, attempt) {
            (0, 1) => Err(HandlerError::retry_after(Duration::from_millis(1), "first")),
            (0, 2) => Err(HandlerError::retry_after(
                Duration::from_secs(3_600),
                "second",
            )),
            _ => Ok(()),
        };
        let run = Run::start(
            &file,
            100,
            [subscription("later", &journal, later).retry(policy())],
        )
        .await;
        for number in 0..4 {
            run.bus.publish(counted("a", number)).await.unwrap();
        }
        run.bus.publish(counted("b", 10)).await.unwrap();
        let second_attempt_saved = async {
            while attempts_saved(&file) != Some(2) {
                tokio::task::yield_now().await;
            }
        };
        soon(second_attempt_saved).await;
        if crash {
            run.crash().await;
        } else {
            drop(run.stop().await);
        }
        let seen = journal.take();
        assert_eq!(
            seen.iter().filter(|seen| seen.0 == "a").count(),
            2,
            "those behind it wait: {seen:?}"
        );

        // The hour is not over: with the same name, nothing of "a" is attempted.
        let run = Run::start(&file, 100, [handles("later", &journal)]).await;
        run.bus.publish(counted("b", 12)).await.unwrap();
        let others_pass = async {
            while !journal.numbers("b").contains(&12) {
                tokio::task::yield_now().await;
            }
        };
        soon(others_pass).await;
        assert!(journal.numbers("a").is_empty());
        assert_eq!(run.bus.statistics().subscriptions[0].waiting, 1);
        run.crash().await;
        make_due(&file);
        journal.take();

        let run = Run::start(&file, 100, [handles("later", &journal)]).await;
        run.idle().await;
        run.stop().await;
        assert_eq!(
            journal.numbers("a"),
            [0, 1, 2, 3],
            "in order, from the one that failed"
        );
        let seen = journal.take();
        assert_eq!(
            seen.iter().find(|seen| seen.0 == "a").unwrap().2,
            3,
            "the third attempt"
        );
    }
}

/// What the file says of the attempts made of a waiting delivery.
pub(crate) fn attempts_saved(file: &Path) -> Option<i64> {
    use diesel::{QueryableByName, RunQueryDsl, sql_types::BigInt};
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        attempts: i64,
    }
    let rows: Vec<Row> = diesel::sql_query("SELECT attempts FROM de_waiting")
        .load(&mut open(file))
        .unwrap();
    rows.first().map(|row| row.attempts)
}

/// Lets the hour pass.
pub(crate) fn make_due(file: &Path) {
    use diesel::RunQueryDsl;
    let made = diesel::sql_query("UPDATE de_waiting SET due_at = 0")
        .execute(&mut open(file))
        .unwrap();
    assert_ne!(made, 0);
}

/// Another connection, which waits where the store is just writing.
pub(crate) fn open(file: &Path) -> diesel::SqliteConnection {
    let mut conn = diesel::Connection::establish(file.to_str().unwrap()).unwrap();
    sql(&mut conn, "PRAGMA busy_timeout = 5000");
    conn
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.reset", aggregate = "counter", id = counter)]
struct Reset {
    counter: String,
}

#[tokio::test]
async fn r1_a_backlog_ends_where_only_events_of_another_type_follow() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let later = |_: &Counted, _: u32| {
        Err(HandlerError::retry_after(
            Duration::from_secs(3_600),
            "later",
        ))
    };
    let run = Run::start(&file, 100, [subscription("later", &journal, later)]).await;
    run.bus.publish(counted("a", 0)).await.unwrap();
    while attempts_saved(&file) != Some(1) {
        tokio::task::yield_now().await;
    }
    run.bus
        .publish(NewEvent::new(Reset {
            counter: "b".to_owned(),
        }))
        .await
        .unwrap();
    run.stop().await;
    make_due(&file);
    let run = Run::start(&file, 100, []).await;
    for _ in 0..40 {
        run.bus
            .publish(NewEvent::new(Reset {
                counter: "a".to_owned(),
            }))
            .await
            .unwrap();
    }
    run.stop().await;
    let run = Run::start(&file, 100, [handles("later", &journal)]).await;
    run.idle().await;
    run.stop().await;
    assert_eq!(journal.numbers("a"), [0, 0]);
}

#[tokio::test]
async fn f5_a_dead_letter_is_kept_and_later_events_go_on() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let dies = |event: &Counted, _: u32| match event.number {
        1 => Err(HandlerError::permanent("never")),
        2 => Err(HandlerError::transient("not today")),
        _ => Ok(()),
    };
    let policy = RetryPolicy::exponential()
        .base(Duration::from_millis(1))
        .max_attempts(2);
    let run = Run::start(
        &file,
        100,
        [subscription("dies", &journal, dies).retry(policy)],
    )
    .await;
    for number in 0..5 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.idle().await;
    run.crash().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2, 2, 3, 4]);

    let run = Run::start(&file, 100, [handles("dies", &Journal::default())]).await;
    let letters = run
        .bus
        .dead_letters(&DeadLetterQuery::of("dies"), 10)
        .await
        .unwrap();
    let kept: Vec<_> = letters
        .iter()
        .map(|letter| {
            (
                letter.position().unwrap().get(),
                letter.reason.as_str(),
                letter.attempts,
                &*letter.error,
            )
        })
        .collect();
    let expected = [
        (2, "permanent", 1, "never"),
        (3, "attempts-exhausted", 2, "not today"),
    ];
    assert_eq!(kept, expected);
    run.stop().await;
}

#[tokio::test]
async fn p5_what_finds_no_room_is_left_to_the_log_and_delivered_in_order() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    // Publishes far more than the queue and the handlers' own room hold, from inside.
    let floods = move |event: Event<Counted>, cx: HandlerContext| {
        let gate = Arc::clone(&opened);
        async move {
            if event.counter == "start" {
                for number in 0..100 {
                    cx.publish(counted("flood", number)).await?;
                }
                gate.add_permits(1);
            }
            Ok(())
        }
    };
    let floods = Subscription::from_fn("floods", floods).priority(Priority::HIGH);
    let run = Run::start(&file, 4, [floods, handles("counts", &journal)]).await;
    run.bus.publish(counted("start", 0)).await.unwrap();
    soon(gate.acquire()).await.unwrap().forget();
    for number in 100..200 {
        run.bus.publish(counted("flood", number)).await.unwrap();
    }
    let last = run.bus.publish(counted("flood", 200)).await.unwrap();
    assert!(soon(last.handled()).await.unwrap().is_success());
    run.idle().await;
    assert_eq!(journal.numbers("flood"), (0..=200).collect::<Vec<_>>());
    let figures = run.bus.statistics();
    assert_eq!(figures.accepted + figures.recovered, figures.finished);
    run.stop().await;
}

#[tokio::test]
async fn d8_a_late_subscription_reads_the_log_and_then_takes_part() {
    let (dir, early, late, now) = (
        tempdir().unwrap(),
        Journal::default(),
        Journal::default(),
        Journal::default(),
    );
    let file = dir.path().join("events.db");
    let run = Run::start(&file, 8, [handles("early", &early)]).await;
    for number in 0..100 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.bus.subscribe(handles("late", &late)).await.unwrap();
    run.bus
        .subscribe(handles("now", &now).start_from(StartFrom::Now))
        .await
        .unwrap();
    for number in 100..150 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.idle().await;
    run.stop().await;
    assert_eq!(early.numbers("a"), (0..150).collect::<Vec<_>>());
    assert_eq!(late.numbers("a"), (0..150).collect::<Vec<_>>());
    assert_eq!(now.numbers("a"), (100..150).collect::<Vec<_>>());
}

#[tokio::test]
async fn when_a_fault_of_the_store_ends_the_same_bus_works_on() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let gate = Arc::new(Semaphore::new(0));
    let (opened, log) = (Arc::clone(&gate), journal.clone());
    let waits = move |event: Event<Counted>, cx: HandlerContext| {
        let (gate, journal) = (Arc::clone(&opened), log.clone());
        async move {
            gate.acquire().await?.forget();
            journal.write(&event, &cx);
            if cx.attempt() == 1 {
                Err(HandlerError::transient("once"))
            } else {
                Ok(())
            }
        }
    };
    let policy = RetryPolicy::exponential().base(Duration::from_millis(1));
    let waits = Subscription::from_fn("waits", waits).retry(policy);
    let options = SqliteOptions {
        busy_timeout: Duration::from_millis(5),
        ..SqliteOptions::default()
    };
    let run = Run::start_with(&file, options, 100, [waits]).await;
    run.bus.publish(counted("a", 0)).await.unwrap();

    let mut other = open(&file);
    sql(&mut other, "BEGIN IMMEDIATE");
    gate.add_permits(10);
    let error = run.bus.publish(counted("a", 1)).await.unwrap_err();
    let text = format!(
        "{:?}",
        std::error::Error::source(&error).and_then(std::error::Error::source)
    );
    assert!(text.contains("Busy"), "{text}");
    while journal.numbers("a").is_empty() {
        tokio::task::yield_now().await;
    }
    let trouble = async {
        loop {
            if let Some(trouble) = run.bus.statistics().store_trouble {
                return trouble;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(soon(trouble).await.kind, StoreErrorKind::Busy);
    let told = run.bus.health().to_string();
    assert!(told.contains("the store has been at fault for"), "{told}");
    sql(&mut other, "COMMIT");

    run.bus.publish(counted("a", 2)).await.unwrap();
    run.idle().await;
    assert_eq!(run.bus.health(), Health::Healthy);
    let report = run.stop().await;
    assert_eq!((report.left_in_log, report.unsaved), (0, None));
    assert_eq!(
        journal.numbers("a"),
        [0, 0, 2, 2],
        "the retry waited for its row"
    );
}

#[tokio::test]
async fn l2_a_stop_during_a_fault_says_what_was_not_saved_and_loses_nothing() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let options = || SqliteOptions {
        busy_timeout: Duration::from_millis(5),
        ..SqliteOptions::default()
    };
    let fails = |_: &Counted, _: u32| Err(HandlerError::transient("not yet"));
    let failing = subscription("counts", &journal, fails);
    let run = Run::start_with(&file, options(), 100, [failing]).await;
    let mut other = open(&file);
    let receipt = run.bus.publish(counted("a", 0)).await.unwrap();
    sql(&mut other, "BEGIN IMMEDIATE");
    while journal.numbers("a").is_empty() {
        tokio::task::yield_now().await;
    }
    let report = run.stop().await;
    assert!(report.unsaved.is_some(), "{report:?}");
    drop(receipt);
    sql(&mut other, "COMMIT");
    journal.take();

    let run = Run::start(&file, 100, [handles("counts", &journal)]).await;
    run.idle().await;
    run.stop().await;
    assert_eq!(journal.numbers("a"), [0]);
}

fn sql(conn: &mut diesel::SqliteConnection, statement: &str) {
    diesel::RunQueryDsl::execute(diesel::sql_query(statement), conn).unwrap();
}

#[tokio::test]
async fn p6_the_same_event_again_is_not_delivered_again() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let run = Run::start(
        &dir.path().join("events.db"),
        8,
        [handles("counts", &journal)],
    )
    .await;
    let id = domain_events::EventId::new();
    let first = run.bus.publish(counted("a", 1).id(id)).await.unwrap();
    let again = run.bus.publish(counted("a", 1).id(id)).await.unwrap();
    assert!(!first.was_already_there() && again.was_already_there());
    assert_eq!(first.recorded(), again.recorded());
    run.idle().await;
    assert_eq!(journal.numbers("a"), [1]);
    let other = run.bus.publish(counted("a", 2).id(id)).await.unwrap_err();
    let expected = format!("the id {id} belongs to another event, at position 1");
    assert_eq!(
        std::error::Error::source(&other).unwrap().to_string(),
        expected
    );
    run.stop().await;
}

/// D2, F4, F6: with one order of all events, or none, what fails stays where it is over a crash: with
/// its attempts, and in order; a dead letter is delivered again like any other.
#[tokio::test]
async fn f4_attempts_survive_in_every_order() {
    for order in [Ordering::Total, Ordering::None] {
        for crash in [true, false] {
            let (dir, journal) = (tempdir().unwrap(), Journal::default());
            let file = dir.path().join("events.db");
            let policy = RetryPolicy::exponential().max_attempts(3);
            let later = |event: &Counted, attempt: u32| match (event.number, attempt) {
                (1, 1) => Err(HandlerError::retry_after(Duration::from_millis(1), "first")),
                (1, 2) => Err(HandlerError::retry_after(
                    Duration::from_secs(3_600),
                    "second",
                )),
                (0, _) => Err(HandlerError::permanent("never")),
                _ => Ok(()),
            };
            let later = subscription("later", &journal, later).retry(policy);
            let run = Run::start(&file, 100, [later.ordering(order)]).await;
            for number in 0..4 {
                let counter = ["a", "b"][number as usize % 2];
                run.bus.publish(counted(counter, number)).await.unwrap();
            }
            let second_attempt_saved = async {
                while attempts_saved(&file) != Some(2) {
                    tokio::task::yield_now().await;
                }
            };
            soon(second_attempt_saved).await;
            match crash {
                true => run.crash().await,
                false => drop(run.stop().await),
            }
            journal.take();
            make_due(&file);
            let run = Run::start(&file, 100, [handles("later", &journal).ordering(order)]).await;
            run.idle().await;
            let seen = journal.take();
            let third = seen.iter().find(|seen| seen.1 == 1).unwrap();
            assert_eq!(third.2, 3, "{order}: the third attempt");
            let numbers: Vec<_> = seen.iter().map(|seen| seen.1).collect();
            if order == Ordering::Total {
                assert_eq!(numbers, [1, 2, 3]);
            }
            let dead = run.bus.dead_letters(&DeadLetterQuery::all(), 9).await;
            let dead = dead.unwrap()[0].event_id();
            run.bus.replay("later", dead).await.unwrap();
            run.idle().await;
            assert_eq!(journal.numbers("a"), [0]);
            run.stop().await;
            journal.take();

            let run = Run::start(&file, 100, [handles("later", &journal).ordering(order)]).await;
            run.idle().await;
            assert_eq!(journal.take(), [], "{order}: all is done");
            let stored = run.bus.stored_subscriptions().await.unwrap();
            assert_eq!((stored[0].lag, stored[0].dead), (0, 0));
            run.stop().await;
        }
    }
}

/// F4, F6, R1: in one order of all events, all that waits goes on one after the other, each with its
/// attempts, though there is room for few; and stands in one place meanwhile.
#[tokio::test]
async fn f4_what_waits_in_one_order_goes_on_in_it_after_a_crash() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let fails = |event: &Counted, attempt: u32| match (event.number, attempt) {
        (0..=2, _) => Err(HandlerError::permanent("never")),
        (4, 1) => Err(HandlerError::retry_after(
            Duration::from_secs(3_600),
            "later",
        )),
        _ => Ok(()),
    };
    let total = |subscription: Subscription| {
        let total = subscription.ordering(Ordering::Total);
        total.isolated(1).capacity(2)
    };
    let run = Run::start(&file, 100, [total(subscription("s", &journal, fails))]).await;
    for number in 0..8 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    let attempt_saved = async {
        while attempts_saved(&file) != Some(1) {
            tokio::task::yield_now().await;
        }
    };
    soon(attempt_saved).await;
    let all = DeadLetterQuery::all();
    assert_eq!(run.bus.replay_all(&all).await.unwrap(), 3);
    assert!(run.bus.pause("s").await);
    run.crash().await;
    make_due(&file);
    journal.take();

    let run = Run::start(&file, 100, [total(handles("s", &journal))]).await;
    let taken_up = async {
        while run.bus.statistics().in_flight < 2 {
            tokio::task::yield_now().await;
        }
    };
    soon(taken_up).await;
    // Has the progress of now saved.
    run.bus.prune(Retention::Latest(100)).await.unwrap();
    let found = run.store.verify().await.unwrap();
    assert!(found.is_sound(), "{found}");
    assert!(run.bus.resume("s").await);
    run.idle().await;
    let seen = journal.take();
    let numbers: Vec<_> = seen.iter().map(|seen| (seen.1, seen.2)).collect();
    let first = [0, 1, 2].map(|number| (number, 1));
    let rest = [(4, 2), (5, 1), (6, 1), (7, 1)];
    assert_eq!(numbers, [&first[..], &rest[..]].concat());
    let found = run.store.verify().await.unwrap();
    assert!(found.is_sound(), "{found}");
    run.stop().await;
}
