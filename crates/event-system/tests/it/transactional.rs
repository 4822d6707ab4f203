//! Handlers and read models in the store's own transactions: exactly once (R7).

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    dsl::sql,
    sql_query,
    sql_types::{BigInt, Text},
};
use domain_events::{
    AppendError, DeadLetterQuery, Event, EventBus, EventEnvelope, EventId, EventStore,
    FailurePolicy, HandlerContext, HandlerError, Ordering, PlaceError, Position, Projection,
    PublishError, RetryPolicy, StartFrom, StoreError, StoreErrorKind, SubscribeError, Subscription,
    TransactionDone, TransactionError, TransactionalDeliveries, TransactionalHandler, block_on,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions, append_in};
use event_system::EventSystem;
use event_testkit::interceptor::{Intercepted, Interceptor};
use tempfile::{TempDir, tempdir};

use crate::recovery::{Counted, Journal, Run, counted, handles, soon};

/// A database with a table of the application's.
struct Place {
    _dir: TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let file = dir.path().join("shop.db");
        let place = Self { _dir: dir, file };
        SqliteEventStore::open(&place.file, options())
            .unwrap()
            .close_blocking();
        make_table(&mut place.connect()).unwrap();
        place
    }

    fn connect(&self) -> SqliteConnection {
        connect(&self.file)
    }

    async fn run(&self, subscriptions: impl IntoIterator<Item = Subscription>) -> Run {
        Run::start_with(&self.file, options(), 1_000, subscriptions).await
    }

    fn rows(&self) -> Vec<(String, i64)> {
        rows(&mut self.connect())
    }
}

fn connect(file: &Path) -> SqliteConnection {
    let mut conn = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    conn.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    conn
}

fn options() -> SqliteOptions {
    SqliteOptions {
        share_database: true,
        ..SqliteOptions::default()
    }
}

fn make_table(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    conn.batch_execute(
        "CREATE TABLE IF NOT EXISTS sold (counter TEXT NOT NULL, number BIGINT NOT NULL)",
    )
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    counter: String,
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// In the order in which they were written.
fn rows(conn: &mut SqliteConnection) -> Vec<(String, i64)> {
    let rows = sql_query("SELECT counter, number FROM sold ORDER BY rowid").load::<Row>(conn);
    let rows = rows.unwrap().into_iter();
    rows.map(|row| (row.counter, row.number)).collect()
}

fn numbers_of(rows: &[(String, i64)], counter: &str) -> Vec<i64> {
    let of = rows.iter().filter(|row| row.0 == counter);
    of.map(|row| row.1).collect()
}

fn write(conn: &mut SqliteConnection, event: &Counted) -> Result<(), HandlerError> {
    sql_query("INSERT INTO sold VALUES (?, ?)")
        .bind::<Text, _>(&event.counter)
        .bind::<BigInt, _>(event.number as i64)
        .execute(conn)?;
    Ok(())
}

/// A subscription that writes each event down, and then answers as `answer` says.
fn writes(
    name: &str,
    answer: impl Fn(&Counted, &mut SqliteConnection, &HandlerContext) -> Result<(), HandlerError>
    + Send
    + Sync
    + 'static,
) -> Subscription {
    let handler = move |event: Event<Counted>, conn: &mut SqliteConnection, cx: &HandlerContext| {
        write(conn, &event)?;
        answer(&event, conn, cx)
    };
    Subscription::from_transactional_fn(name, handler)
        .start_from(StartFrom::Beginning)
        .retry(
            RetryPolicy::exponential()
                .base(Duration::from_millis(1))
                .max_attempts(3),
        )
}

async fn publish(run: &Run, counter: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        run.bus.publish(counted(counter, number)).await.unwrap();
    }
}

/// What was written, and how far it is said to have come, are never apart: a run that ends at any moment
/// leaves both, or neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_what_is_written_is_there_once_over_any_number_of_crashes() {
    let place = Place::new();
    let mut total = 0;
    for life in 0..12_u64 {
        let run = place.run([writes("sells", |_, _, _| Ok(()))]).await;
        for number in 0..40 {
            let counter = ["a", "b", "c"][number as usize % 3];
            run.bus.publish(counted(counter, total)).await.unwrap();
            total += 1;
        }
        match life % 3 {
            0 => tokio::time::sleep(Duration::from_millis(life)).await,
            1 => run.idle().await,
            _ => {}
        }
        run.crash().await;
    }
    let run = place.run([writes("sells", |_, _, _| Ok(()))]).await;
    run.idle().await;
    let mut all: Vec<i64> = place.rows().iter().map(|row| row.1).collect();
    for counter in ["a", "b", "c"] {
        assert!(numbers_of(&place.rows(), counter).is_sorted());
    }
    all.sort_unstable();
    assert_eq!(all, (0..total as i64).collect::<Vec<_>>());
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

/// What a handler writes before it fails is undone; its neighbours in the transaction are not.
#[tokio::test]
async fn r7_a_handler_that_fails_or_panics_leaves_nothing_and_takes_nobody_along() {
    let place = Place::new();
    let answer = |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| match (
        event.number % 5,
        cx.attempt(),
    ) {
        (1, 1) => Err(HandlerError::transient("not yet")),
        (2, 1) => panic!("on purpose"),
        (3, 1) => {
            sql_query("INSERT INTO nowhere VALUES (1)").execute(conn)?;
            Ok(())
        }
        (4, 1) => {
            // A transaction of its own that is never ended.
            conn.batch_execute("SAVEPOINT own")?;
            Err(HandlerError::transient("half way"))
        }
        _ => Ok(()),
    };
    let hangs = place.run([]).await;
    for number in 0..50 {
        let event = counted(&format!("c{}", number % 7), number);
        hangs.bus.publish(event).await.unwrap();
    }
    hangs.stop().await;
    // All at once, so that they share transactions.
    let run = place.run([writes("sells", answer)]).await;
    run.idle().await;
    let rows = place.rows();
    let mut all: Vec<i64> = rows.iter().map(|row| row.1).collect();
    all.sort_unstable();
    assert_eq!(all, (0..50).collect::<Vec<_>>());
    for counter in 0..7 {
        assert!(numbers_of(&rows, &format!("c{counter}")).is_sorted());
    }
    let figures = run.bus.statistics();
    assert_eq!(figures.of("sells").unwrap().handled, 50);
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

/// A handler that rolls the whole transaction back, or commits it, has failed: those who shared it are
/// made again, and nothing of anybody is lost or doubled.
#[tokio::test]
async fn r7_a_handler_that_ends_the_transaction_has_failed_and_the_group_is_made_again() {
    for (end, in_memory) in [
        ("ROLLBACK", false),
        ("ROLLBACK; BEGIN", false),
        ("COMMIT", false),
        ("ROLLBACK", true),
        ("COMMIT", true),
    ] {
        let place = Place::new();
        let answer = move |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| {
            if event.number % 10 == 3 && cx.attempt() == 1 {
                conn.batch_execute(end)?;
            }
            Ok(())
        };
        let journal = Journal::default();
        let store = match in_memory {
            true => SqliteEventStore::in_memory(options()),
            false => SqliteEventStore::open(&place.file, options()),
        };
        let store = Arc::new(store.unwrap());
        let bus = InMemoryEventBus::with_store(BusConfig::default(), Arc::clone(&store)).unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let sells = writes_to(answer, Arc::clone(&written));
        bus.subscribe(sells).await.unwrap();
        bus.subscribe(handles("s", &journal)).await.unwrap();
        bus.start().await.unwrap();
        let publishing: Vec<_> = (0..60)
            .map(|number| bus.publish(counted(&format!("c{}", number % 4), number)))
            .collect();
        for published in futures(publishing).await {
            published.unwrap();
        }
        soon(bus.wait_idle()).await.unwrap();
        let mut all = written.lock().unwrap().clone();
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>(), "{end}");
        assert_eq!(
            (0..4)
                .map(|c| journal.numbers(&format!("c{c}")).len())
                .sum::<usize>(),
            60
        );
        assert_eq!(bus.statistics().of("sells").unwrap().failed_attempts, 6);
        assert!(store.verify().await.unwrap().is_sound());
        soon(bus.stop(Duration::from_secs(20))).await.unwrap();
        store.close().await;
    }
}

/// What breaks a constraint that only the commit looks at is its own fault, and nobody else's.
#[tokio::test]
async fn r7_what_the_commit_refuses_is_a_failed_attempt_and_takes_nobody_along() {
    let (place, journal) = (Place::new(), Journal::default());
    let tables = "CREATE TABLE parents (id INTEGER PRIMARY KEY); CREATE TABLE children \
                  (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)";
    place.connect().batch_execute(tables).unwrap();
    let answer = |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| {
        if event.number == 7 || event.number == 9 && cx.attempt() == 1 {
            conn.batch_execute("INSERT INTO children VALUES (9)")?;
        }
        Ok(())
    };
    let run = place.run([]).await;
    for number in 0..20 {
        let event = counted(&format!("c{}", number % 4), number);
        run.bus.publish(event).await.unwrap();
    }
    run.stop().await;
    let wanted = |event: &Counted| ![4, 12, 13].contains(&event.number);
    let sells = writes("sells", answer).filter(wanted);
    let run = place.run([sells, handles("s", &journal)]).await;
    for number in 20..30 {
        run.bus.publish(counted("c0", number)).await.unwrap();
    }
    run.idle().await;
    let mut all: Vec<i64> = place.rows().iter().map(|row| row.1).collect();
    all.sort_unstable();
    let expected = (0..30).filter(|it| ![4, 7, 12, 13].contains(it));
    assert_eq!(all, expected.collect::<Vec<_>>());
    assert_eq!(journal.take().len(), 30);
    let letters = run.bus.dead_letters(&DeadLetterQuery::all(), 10).await;
    let letters = letters.unwrap();
    assert_eq!((letters.len(), letters[0].attempts), (1, 3));
    assert!(
        letters[0].error.contains("FOREIGN KEY"),
        "{}",
        letters[0].error
    );
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

/// Writes each event, and then notes everything that is in the table.
fn writes_to(
    answer: impl Fn(&Counted, &mut SqliteConnection, &HandlerContext) -> Result<(), HandlerError>
    + Send
    + Sync
    + 'static,
    into: Arc<Mutex<Vec<i64>>>,
) -> Subscription {
    let handler = move |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| {
        answer(event, conn, cx)?;
        *into.lock().unwrap() = rows(conn).into_iter().map(|row| row.1).collect();
        Ok(())
    };
    let handler = move |event: Event<Counted>, conn: &mut SqliteConnection, cx: &HandlerContext| {
        // A database in memory has none, and again none once that is rolled back.
        make_table(conn)?;
        write(conn, &event)?;
        handler(&event, conn, cx)
    };
    Subscription::from_transactional_fn("sells", handler).retry(
        RetryPolicy::exponential()
            .base(Duration::from_millis(1))
            .max_attempts(3),
    )
}

/// All at the same time.
async fn futures<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    let mut ends: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, end) in all.iter_mut().zip(&mut ends) {
            if end.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *end = Some(value);
            }
        }
        match ends.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    ends.into_iter().flatten().collect()
}

/// Retries, dead letters and their replays are made in transactions as first attempts are.
#[tokio::test]
async fn r7_a_replayed_dead_letter_and_what_is_parked_behind_it_are_written_once() {
    let place = Place::new();
    let broken = Arc::new(AtomicBool::new(true));
    let fails = Arc::clone(&broken);
    let answer = move |event: &Counted, _: &mut SqliteConnection, _: &HandlerContext| match event
        .number
        == 2
        && fails.load(SeqCst)
    {
        true => Err(HandlerError::permanent("never")),
        false => Ok(()),
    };
    let sells = || writes("sells", answer.clone()).failure_policy(FailurePolicy::ParkAggregate);
    let run = place.run([sells()]).await;
    publish(&run, "a", 0..30).await;
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), [0, 1]);
    run.crash().await;

    let run = place.run([sells()]).await;
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), [0, 1]);
    broken.store(false, SeqCst);
    assert_eq!(
        run.bus.replay_all(&DeadLetterQuery::all()).await.unwrap(),
        1
    );
    publish(&run, "a", 30..35).await;
    run.crash().await;
    let run = place.run([sells()]).await;
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), (0..35).collect::<Vec<_>>());
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

/// In every order, with failures in between.
#[tokio::test]
async fn r7_in_any_order_what_fails_comes_again_and_is_written_once() {
    for order in [Ordering::PerAggregate, Ordering::Total, Ordering::None] {
        let place = Place::new();
        let answer = |event: &Counted, _: &mut SqliteConnection, cx: &HandlerContext| match event
            .number
            .is_multiple_of(3)
            && cx.attempt() < 3
        {
            true => Err(HandlerError::transient("not yet")),
            false => Ok(()),
        };
        for number in (0..60).step_by(20) {
            let sells = writes("sells", answer).ordering(order);
            let run = place.run([sells]).await;
            publish(&run, "a", number..number + 20).await;
            if number == 20 {
                run.idle().await;
            }
            run.crash().await;
        }
        let run = place.run([writes("sells", answer).ordering(order)]).await;
        run.idle().await;
        let mut all = numbers_of(&place.rows(), "a");
        if order == Ordering::None {
            all.sort_unstable();
        }
        assert_eq!(all, (0..60).collect::<Vec<_>>(), "{order}");
        assert!(run.store.verify().await.unwrap().is_sound());
        run.stop().await;
    }
}

/// It publishes on its own connection, with the causation of what it handles; what waits for the store
/// is refused, and nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_it_publishes_by_append_in_and_the_bus_refuses() {
    let (place, journal) = (Place::new(), Journal::default());
    let held: Arc<Mutex<Option<Arc<InMemoryEventBus>>>> = Arc::default();
    let (bus_of, refused) = (Arc::clone(&held), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&refused);
    let answer = move |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| {
        if event.counter != "a" {
            return Ok(());
        }
        let is_refused = |result: Result<_, PublishError>| match result {
            Err(PublishError::Append(AppendError::Store(error))) => {
                assert_eq!(error.kind(), StoreErrorKind::InsideTransaction);
                assert!(error.to_string().contains("append_in"));
                counts.fetch_add(1, SeqCst);
            }
            other => panic!(
                "not refused: {:?}",
                other.map(|_: domain_events::Receipt| ())
            ),
        };
        is_refused(cx.publish_blocking(counted("b", 99)));
        if let Some(bus) = bus_of.lock().unwrap().clone() {
            is_refused(block_on(bus.publish(counted("b", 98))));
            assert!(block_on(bus.wait_idle()).is_err());
            assert!(block_on(bus.subscribe(handles("late", &Journal::default()))).is_err());
            // What only notes something for later does not wait for it.
            block_on(bus.pause("s"));
            block_on(bus.resume("s"));
            assert!(block_on(bus.prune(domain_events::Retention::Latest(0))).is_err());
            assert!(block_on(bus.reset("s", StartFrom::Now)).is_err());
            assert!(!block_on(bus.unsubscribe("nobody")));
            block_on(bus.unsubscribe("goes"));
            assert!(block_on(bus.discard_all(&DeadLetterQuery::all(), "of no use")).is_err());
            block_on(bus.processing_log(None, 1)).ok();
        }
        append_in(conn, [cx.caused(counted("b", event.number))])?;
        match cx.attempt() {
            1 => Err(HandlerError::transient("once more")),
            _ => Ok(()),
        }
    };
    let store = Arc::new(SqliteEventStore::open(&place.file, options()).unwrap());
    let bus = InMemoryEventBus::with_store(BusConfig::default(), Arc::clone(&store)).unwrap();
    let bus = Arc::new(bus);
    *held.lock().unwrap() = Some(Arc::clone(&bus));
    bus.subscribe(writes("sells", answer)).await.unwrap();
    bus.subscribe(handles("s", &journal)).await.unwrap();
    bus.subscribe(handles("goes", &Journal::default()))
        .await
        .unwrap();
    bus.start().await.unwrap();
    for number in 0..10 {
        soon(bus.publish(counted("a", number))).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("b"), (0..10).collect::<Vec<_>>());
    assert_eq!(refused.load(SeqCst), 40);
    let log = store.read_log(Position::ZERO, 100).await.unwrap();
    assert_eq!(log.len(), 20, "what was undone is not in the log");
    let causes: Vec<EventId> = log
        .iter()
        .filter_map(|it| it.metadata().causation_id)
        .collect();
    assert_eq!(causes.len(), 10);
    assert!(store.verify().await.unwrap().is_sound());
    *held.lock().unwrap() = None;
    soon(bus.stop(Duration::from_secs(20))).await.unwrap();
    store.close().await;
}

/// What runs past its time-out is undone, once it returns.
#[tokio::test]
async fn r7_a_handler_that_takes_too_long_has_failed() {
    let place = Place::new();
    let calls = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&calls);
    let answer = move |_: &Counted, _: &mut SqliteConnection, cx: &HandlerContext| {
        counts.fetch_add(1, SeqCst);
        if cx.attempt() == 1 {
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    };
    let sells = writes("sells", answer).timeout(Duration::from_millis(10));
    let run = place.run([sells]).await;
    publish(&run, "a", 0..1).await;
    run.idle().await;
    assert_eq!((calls.load(SeqCst), place.rows().len()), (2, 1));
    assert_eq!(run.bus.statistics().of("sells").unwrap().failed_attempts, 1);
    run.stop().await;
}

#[tokio::test]
async fn r7_a_bus_that_has_no_such_connections_takes_no_such_handler() {
    let subscription = || writes("sells", |_, _, _| Ok(()));
    let volatile = InMemoryEventBus::new(BusConfig::default()).unwrap();
    let refused = volatile.subscribe(subscription()).await.unwrap_err();
    assert!(
        matches!(refused, SubscribeError::Invalid { .. }),
        "{refused}"
    );

    struct OtherConnection;
    let store = Arc::new(SqliteEventStore::in_memory(options()).unwrap());
    let durable = InMemoryEventBus::with_store(BusConfig::default(), store).unwrap();
    let other = |_: Event<Counted>, _: &mut OtherConnection, _: &HandlerContext| Ok(());
    let other = Subscription::from_transactional_fn("other", other);
    durable.subscribe(other).await.unwrap_err();
    let several = subscription().isolated(2);
    durable.subscribe(several).await.unwrap_err();
    durable.subscribe(subscription()).await.unwrap();
}

type Answers = Mutex<Vec<Box<dyn FnOnce() + Send>>>;

/// A store whose next transactions fail: before their commit, or in a way that nobody knows of.
struct Doubtful {
    inner: SqliteEventStore,
    not_committed: AtomicUsize,
    unknown: AtomicUsize,
    /// The same, once none is unknown any more.
    then_not_committed: AtomicUsize,
    hold: AtomicBool,
    /// Answers to transactions that are committed, once held.
    held: Arc<Answers>,
    was_held: Arc<tokio::sync::Notify>,
}

impl Doubtful {
    fn new(file: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: SqliteEventStore::open(file, options()).unwrap(),
            not_committed: AtomicUsize::new(0),
            unknown: AtomicUsize::new(0),
            then_not_committed: AtomicUsize::new(0),
            hold: AtomicBool::new(false),
            held: Arc::default(),
            was_held: Arc::default(),
        })
    }

    /// Publishes an event whose delivery is committed, and of which the bus is not told.
    async fn commit_and_hold(&self, bus: &InMemoryEventBus, event: domain_events::NewEvent) {
        self.hold.store(true, SeqCst);
        bus.publish(event).await.unwrap();
        soon(self.was_held.notified()).await;
    }

    async fn bus(self: &Arc<Self>, subscription: Subscription) -> InMemoryEventBus {
        let store = Arc::new(Intercepted(Arc::clone(self)));
        let config = BusConfig {
            progress_interval: Duration::from_millis(1),
            ..BusConfig::default()
        };
        let bus = InMemoryEventBus::with_store(config, store).unwrap();
        bus.subscribe(subscription).await.unwrap();
        soon(bus.start()).await.unwrap();
        bus
    }
}

fn one_less(count: &AtomicUsize) -> bool {
    let less = |left: usize| left.checked_sub(1);
    count.fetch_update(SeqCst, SeqCst, less).is_ok()
}

impl Interceptor for Doubtful {
    type Store = SqliteEventStore;

    fn store(&self) -> &SqliteEventStore {
        &self.inner
    }

    fn submit_transaction(&self, deliveries: TransactionalDeliveries, done: TransactionDone) {
        use domain_events::DeliveryStore as _;
        let fault = || StoreError::new(StoreErrorKind::Io, "a fault of the test");
        if one_less(&self.not_committed) {
            return done(Err(TransactionError::NotCommitted(fault())));
        }
        if one_less(&self.unknown) {
            let done = move |_| done(Err(TransactionError::OutcomeUnknown(fault())));
            return self.inner.submit_transaction(deliveries, Box::new(done));
        }
        if one_less(&self.then_not_committed) {
            return done(Err(TransactionError::NotCommitted(fault())));
        }
        if self.hold.load(SeqCst) {
            let (held, was_held) = (Arc::clone(&self.held), Arc::clone(&self.was_held));
            let hold = move |ends| {
                held.lock().unwrap().push(Box::new(move || done(ends)));
                was_held.notify_one();
            };
            return self.inner.submit_transaction(deliveries, Box::new(hold));
        }
        self.inner.submit_transaction(deliveries, done);
    }
}

/// A commit of which nobody knows whether it was made is settled by the same deliveries again.
#[tokio::test]
async fn r7_a_transaction_whose_outcome_is_unknown_is_not_made_twice() {
    let place = Place::new();
    let store = Doubtful::new(&place.file);
    let bus = store.bus(writes("sells", |_, _, _| Ok(()))).await;
    store.unknown.store(1, SeqCst);
    bus.publish(counted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    store.not_committed.store(1, SeqCst);
    bus.publish(counted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    // The second try of what may be committed does not come to the commit.
    store.unknown.store(1, SeqCst);
    store.then_not_committed.store(1, SeqCst);
    bus.publish(counted("a", 2)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(numbers_of(&place.rows(), "a"), [0, 1, 2]);
    assert_eq!(bus.statistics().of("sells").unwrap().handled, 3);
    soon(bus.stop(Duration::from_secs(20))).await.unwrap();
    store.inner.close().await;
}

/// What an earlier try may have made is known before anything is made alone.
#[tokio::test]
async fn r7_what_an_unknown_try_has_made_is_not_made_again_where_the_next_one_is_refused() {
    let place = Place::new();
    let tables = "CREATE TABLE parents (id INTEGER PRIMARY KEY); CREATE TABLE children \
                  (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)";
    place.connect().batch_execute(tables).unwrap();
    let run = place.run([]).await;
    for counter in ["a", "b", "c"] {
        publish(&run, counter, 0..1).await;
    }
    run.stop().await;
    let calls = Arc::new(AtomicU32::new(0));
    // Fails in the try that is committed, breaks the next one, and has its orphan's parent at last.
    let answer = move |event: &Counted, conn: &mut SqliteConnection, _: &HandlerContext| {
        if event.counter != "b" {
            return Ok(());
        }
        match calls.fetch_add(1, SeqCst) {
            0 => Err(HandlerError::transient("not yet")),
            1 => Ok(conn.batch_execute("INSERT INTO children VALUES (9)")?),
            _ => Ok(()),
        }
    };
    let store = Doubtful::new(&place.file);
    store.unknown.store(1, SeqCst);
    let bus = store.bus(writes("sells", answer)).await;
    soon(bus.wait_idle()).await.unwrap();
    let mut rows = place.rows();
    rows.sort_unstable();
    let once = ["a", "b", "c"].map(|counter| (counter.to_owned(), 0));
    assert_eq!(rows, once);
    assert!(store.inner.verify().await.unwrap().is_sound());
    soon(bus.stop(Duration::from_secs(20))).await.unwrap();
    store.inner.close().await;
}

/// A transaction that a handler has put in the place of the one that it was in is found out: what others
/// had written there is gone, and is written again.
#[tokio::test]
async fn p1_r7_a_transaction_in_the_place_of_another_is_found_out() {
    for in_memory in [false, true] {
        let (place, journal) = (Place::new(), Journal::default());
        let answer = |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| {
            if event.number % 10 == 3 && cx.attempt() == 1 {
                conn.batch_execute("ROLLBACK; BEGIN; SAVEPOINT de_handler")?;
            }
            Ok(())
        };
        let store = match in_memory {
            true => SqliteEventStore::in_memory(options()),
            false => SqliteEventStore::open(&place.file, options()),
        };
        let store = Arc::new(store.unwrap());
        let bus = InMemoryEventBus::with_store(BusConfig::default(), Arc::clone(&store)).unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        bus.subscribe(writes_to(answer, Arc::clone(&written)))
            .await
            .unwrap();
        bus.subscribe(handles("s", &journal)).await.unwrap();
        bus.start().await.unwrap();
        let publishing: Vec<_> = (0..60)
            .map(|number| bus.publish(counted(&format!("c{}", number % 4), number)))
            .collect();
        for published in futures(publishing).await {
            published.unwrap();
        }
        soon(bus.wait_idle()).await.unwrap();
        let mut all = written.lock().unwrap().clone();
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
        assert_eq!(journal.take().len(), 60);
        assert_eq!(store.head().await.unwrap(), Position::new(60));
        assert!(store.verify().await.unwrap().is_sound());
        soon(bus.stop(Duration::from_secs(20))).await.unwrap();
        store.close().await;
    }
}

/// A stop cuts off who waits for a transaction, which is committed all the same: what the stop saves must
/// not say that it was not.
#[tokio::test]
async fn r7_a_stop_that_cuts_a_transaction_off_does_not_undo_its_progress() {
    let place = Place::new();
    let store = Doubtful::new(&place.file);
    let bus = store.bus(writes("sells", |_, _, _| Ok(()))).await;
    bus.publish(counted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let journal = Journal::default();
    bus.subscribe(handles("s", &journal)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    store.commit_and_hold(&bus, counted("a", 1)).await;
    // What others have finished waits for its turn to be saved.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
    assert_eq!(report.cut_off, 1);
    drop(bus);
    store.inner.close().await;
    drop(store);

    let run = place.run([writes("sells", |_, _, _| Ok(()))]).await;
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), [0, 1]);
    run.stop().await;
}

/// What others have finished meanwhile is saved, but not what was known of the subscription before.
#[tokio::test]
async fn r7_no_save_of_others_undoes_the_progress_of_a_transaction() {
    let (place, journal) = (Place::new(), Journal::default());
    let store = Doubtful::new(&place.file);
    let bus = store.bus(writes("sells", |_, _, _| Ok(()))).await;
    bus.subscribe(handles("s", &journal)).await.unwrap();
    bus.publish(counted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    store.commit_and_hold(&bus, counted("a", 1)).await;
    // The transaction is committed, and nobody knows; whoever is to save has the time for it.
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(journal.numbers("a"), [0, 1]);
    drop(bus);
    store.inner.close().await;
    drop(store);

    let run = place.run([writes("sells", |_, _, _| Ok(()))]).await;
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), [0, 1]);
    run.stop().await;
}

/// What was asked for meanwhile is saved all the same.
#[tokio::test]
async fn r1_a_pause_is_kept_by_a_stop_that_cuts_a_transaction_off() {
    let place = Place::new();
    let store = Doubtful::new(&place.file);
    let bus = Arc::new(store.bus(writes("sells", |_, _, _| Ok(()))).await);
    store.commit_and_hold(&bus, counted("a", 0)).await;
    let pausing = Arc::clone(&bus);
    let pausing = tokio::spawn(async move { pausing.pause("sells").await });
    while bus.statistics().of("sells").unwrap().paused.is_none() {
        tokio::task::yield_now().await;
    }
    soon(bus.stop(Duration::ZERO)).await.unwrap();
    assert!(soon(pausing).await.unwrap());
    drop(bus);
    store.inner.close().await;
    drop(store);

    let run = place.run([writes("sells", |_, _, _| Ok(()))]).await;
    let stored = run.bus.stored_subscriptions().await.unwrap();
    assert!(stored[0].paused.is_some());
    assert!(run.bus.resume("sells").await);
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), [0]);
    run.stop().await;
}

/// Those that share its transaction are neither given up with it, nor out of time.
#[tokio::test]
async fn f1_r7_who_takes_too_long_is_the_only_one_that_is_told() {
    let place = Place::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = Arc::clone(&told);
    let answer = move |event: &Counted, _: &mut SqliteConnection, cx: &HandlerContext| {
        if (event.counter == "b" || event.counter == "c") && cx.attempt() == 1 {
            while !cx.cancellation().is_cancelled() {
                std::thread::yield_now();
            }
            return Ok(());
        }
        let is_late = cx
            .deadline()
            .is_some_and(|it| it < std::time::Instant::now());
        tells
            .lock()
            .unwrap()
            .push(cx.cancellation().is_cancelled() || is_late);
        Ok(())
    };
    let run = place.run([]).await;
    for counter in ["a", "b", "c", "d"] {
        publish(&run, counter, 0..1).await;
    }
    run.stop().await;
    let sells = writes("sells", answer).timeout(Duration::from_millis(30));
    let run = place.run([sells]).await;
    run.idle().await;
    assert_eq!(*told.lock().unwrap(), [false; 4]);
    assert_eq!(place.rows().len(), 4);
    assert_eq!(run.bus.statistics().of("sells").unwrap().failed_attempts, 2);
    run.stop().await;
}

/// One that asks whether it is given up is told of a stop, and so are those behind it.
#[tokio::test]
async fn l2_r7_a_stop_tells_the_handlers_of_a_transaction_that_it_cuts_off() {
    let place = Place::new();
    let began = Arc::new(tokio::sync::Notify::new());
    let begins = Arc::clone(&began);
    let answer = move |_: &Counted, _: &mut SqliteConnection, cx: &HandlerContext| {
        begins.notify_one();
        while !cx.cancellation().is_cancelled() {
            std::thread::yield_now();
        }
        Ok(())
    };
    let run = place.run([]).await;
    for counter in ["a", "b", "c"] {
        publish(&run, counter, 0..1).await;
    }
    run.stop().await;
    let run = place.run([writes("sells", answer)]).await;
    soon(began.notified()).await;
    let report = soon(run.bus.stop(Duration::ZERO)).await.unwrap();
    assert_eq!(report.cut_off, 1);
    soon(run.store.close()).await;
    assert_eq!(place.rows().len(), 3, "they have come to their end");
    let run = place.run([writes("sells", |_, _, _| Ok(()))]).await;
    run.idle().await;
    assert_eq!(place.rows().len(), 3);
    run.stop().await;
}

/// What it is given as another kind of subscription is not in its tables.
#[tokio::test]
async fn r7_a_projection_that_was_none_for_a_while_begins_anew() {
    let (place, journal) = (Place::new(), Journal::default());
    let run = place.run([first()]).await;
    publish(&run, "a", 0..5).await;
    run.idle().await;
    run.stop().await;
    let run = place.run([handles("totals", &journal)]).await;
    publish(&run, "a", 5..10).await;
    run.idle().await;
    run.stop().await;
    let run = place.run([first()]).await;
    run.idle().await;
    assert_eq!(total(&place, "a"), (0..10).sum::<i64>());
    run.stop().await;
}

/// What has failed is not in the progress any more, and so its row is saved before the next transaction.
#[tokio::test]
async fn r1_r7_what_has_failed_is_not_lost_between_two_transactions() {
    let place = Place::new();
    let store = Doubtful::new(&place.file);
    let fails_first =
        |event: &Counted, _: &mut SqliteConnection, cx: &HandlerContext| match event.counter == "a"
            && cx.attempt() == 1
        {
            true => Err(HandlerError::retry_after(
                Duration::from_secs(3_600),
                "later",
            )),
            false => Ok(()),
        };
    let bus = store.bus(writes("sells", fails_first)).await;
    store.commit_and_hold(&bus, counted("a", 0)).await;
    bus.publish(counted("b", 1)).await.unwrap();
    let failed = store.held.lock().unwrap().remove(0);
    failed();
    soon(store.was_held.notified()).await;
    assert_eq!(place.rows(), [("b".to_owned(), 1)]);
    drop(bus);
    store.inner.close().await;
    drop(store);

    // It waits for its second attempt, and is no more due than it was.
    let store = SqliteEventStore::open(&place.file, options()).unwrap();
    let unfinished = store.summary(&domain_events::EventQuery::Unfinished).await;
    assert_eq!(unfinished.unwrap().events, 1);
    assert!(store.verify().await.unwrap().is_sound());
    store.close().await;
}

/// Made once more in another transaction, an attempt publishes the same events.
#[tokio::test]
async fn p9_r7_what_a_handler_causes_has_the_same_id_in_every_transaction() {
    let place = Place::new();
    let ended = Arc::new(AtomicBool::new(false));
    let answer = move |event: &Counted, conn: &mut SqliteConnection, cx: &HandlerContext| {
        if event.counter == "caused" {
            return Ok(());
        }
        append_in(conn, [cx.caused(counted("caused", event.number))])?;
        if event.number == 3 && !ended.swap(true, SeqCst) {
            conn.batch_execute("ROLLBACK")?;
        }
        Ok(())
    };
    let run = place.run([]).await;
    for number in 0..4 {
        let event = counted(&format!("c{number}"), number);
        run.bus.publish(event).await.unwrap();
    }
    run.stop().await;
    let run = place.run([writes("sells", answer)]).await;
    run.idle().await;
    let log = run.store.read_log(Position::ZERO, 100).await.unwrap();
    let caused = log
        .iter()
        .filter_map(|it| Some((it.id(), it.metadata().causation_id?)));
    let caused: Vec<_> = caused.collect();
    assert_eq!(caused.len(), 4);
    for (id, cause) in caused {
        assert_eq!(id, EventId::derived(cause, "sells", 1));
    }
    run.stop().await;
}

/// How many of each counter, and their sum.
struct Totals {
    version: u32,
}

struct TotalsV1(Totals);
struct TotalsV2(Totals);

impl Totals {
    fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
        conn.batch_execute(
            "DROP TABLE IF EXISTS totals; \
             CREATE TABLE totals (counter TEXT PRIMARY KEY, total BIGINT NOT NULL)",
        )?;
        Ok(())
    }

    fn apply(
        &self,
        event: &Arc<EventEnvelope>,
        conn: &mut SqliteConnection,
    ) -> Result<(), HandlerError> {
        let counted = event.typed::<Counted>()?;
        sql_query(
            "INSERT INTO totals VALUES (?, ?) \
             ON CONFLICT (counter) DO UPDATE SET total = total + excluded.total",
        )
        .bind::<Text, _>(&counted.counter)
        .bind::<BigInt, _>(counted.number as i64 * i64::from(self.version))
        .execute(conn)?;
        Ok(())
    }
}

macro_rules! projection {
    ($name:ident, $version:literal) => {
        impl Projection<SqliteConnection> for $name {
            const VERSION: u32 = $version;

            fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
                self.0.begin(conn)
            }

            fn apply(
                &self,
                event: &Arc<EventEnvelope>,
                conn: &mut SqliteConnection,
                _: &HandlerContext,
            ) -> Result<(), HandlerError> {
                self.0.apply(event, conn)
            }
        }
    };
}

projection!(TotalsV1, 1);
projection!(TotalsV2, 2);

fn first() -> Subscription {
    Subscription::projection("totals", TotalsV1(Totals { version: 1 }))
}

fn second() -> Subscription {
    Subscription::projection("totals", TotalsV2(Totals { version: 2 }))
}

fn total(place: &Place, counter: &str) -> i64 {
    let total = format!("(SELECT coalesce(sum(total), 0) FROM totals WHERE counter = '{counter}')");
    sql::<BigInt>(&format!("SELECT {total}"))
        .get_result(&mut place.connect())
        .unwrap()
}

#[tokio::test]
async fn r7_a_projection_is_what_the_log_makes_of_it_and_is_built_again_in_another_version() {
    let place = Place::new();
    let run = place.run([]).await;
    publish(&run, "a", 0..10).await;
    run.stop().await;

    let run = place.run([first()]).await;
    publish(&run, "a", 10..20).await;
    run.idle().await;
    assert_eq!(total(&place, "a"), (0..20).sum::<i64>());
    run.crash().await;
    let run = place.run([first()]).await;
    publish(&run, "a", 20..30).await;
    run.idle().await;
    assert_eq!(total(&place, "a"), (0..30).sum::<i64>());
    let stored = run.bus.stored_subscriptions().await.unwrap();
    assert_eq!((stored[0].version, stored[0].lag), (Some(1), 0));
    run.stop().await;

    let run = place.run([second()]).await;
    run.idle().await;
    assert_eq!(total(&place, "a"), 2 * (0..30).sum::<i64>());
    let stored = run.bus.stored_subscriptions().await.unwrap();
    assert_eq!(stored[0].version, Some(2));
    run.stop().await;
}

#[tokio::test]
async fn d8_r7_a_projection_that_is_reset_begins_with_empty_tables() {
    let place = Place::new();
    let run = place.run([first()]).await;
    publish(&run, "a", 0..10).await;
    run.idle().await;
    run.bus.reset("totals", StartFrom::Beginning).await.unwrap();
    publish(&run, "a", 10..20).await;
    run.idle().await;
    assert_eq!(total(&place, "a"), (0..20).sum::<i64>());
    run.bus
        .reset("totals", StartFrom::After(Position::new(15)))
        .await
        .unwrap();
    run.idle().await;
    assert_eq!(total(&place, "a"), (15..20).sum::<i64>());
    // While nobody is subscribed, it is noted, and done when somebody is.
    assert!(run.bus.unsubscribe("totals").await);
    run.bus.reset("totals", StartFrom::Beginning).await.unwrap();
    let stored = run.bus.stored_subscriptions().await.unwrap();
    assert_eq!(stored[0].version, Some(0));
    run.bus.subscribe(first()).await.unwrap();
    run.idle().await;
    assert_eq!(total(&place, "a"), (0..20).sum::<i64>());
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

#[tokio::test]
async fn r7_a_status_tells_how_far_a_projection_is_behind() {
    let place = Place::new();
    let builder = EventSystem::builder().sqlite_shared(&place.file);
    let system = builder.subscribe(first()).start().await.unwrap();
    assert!(system.pause("totals").await);
    for number in 0..5 {
        system.publish(counted("a", number)).await.unwrap();
    }
    let status = system.status().await;
    let told: Vec<_> = status.projections().collect();
    assert_eq!((told.len(), told[0].version, told[0].lag), (1, Some(1), 5));
    let text = status.to_string();
    assert!(
        text.contains(r#"the projection "totals" is 5 behind"#),
        "{text}"
    );
    assert!(system.resume("totals").await);
    soon(system.wait_idle()).await.unwrap();
    let status = system.status().await;
    assert_eq!(status.projections().next().unwrap().lag, 0);
    assert!(!status.to_string().contains("projection"));
    system.shutdown(Duration::from_secs(10)).await.unwrap();
}

/// Nothing is begun by halves: neither the place in the log nor the tables.
#[tokio::test]
async fn r7_a_projection_that_cannot_begin_is_not_taken_aboard() {
    struct Never(bool);
    impl Projection<SqliteConnection> for Never {
        fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
            conn.batch_execute("CREATE TABLE never (x)")?;
            match self.0 {
                true => panic!("on purpose"),
                false => Err(HandlerError::permanent("no room for it")),
            }
        }

        fn apply(
            &self,
            _: &Arc<EventEnvelope>,
            _: &mut SqliteConnection,
            _: &HandlerContext,
        ) -> Result<(), HandlerError> {
            Ok(())
        }
    }
    let place = Place::new();
    let run = place.run([]).await;
    for panics in [false, true] {
        let never = Subscription::projection("never", Never(panics));
        let refused = run.bus.subscribe(never).await.unwrap_err();
        assert!(matches!(refused, SubscribeError::Store(_)), "{refused}");
    }
    assert!(run.bus.stored_subscriptions().await.unwrap().is_empty());
    let tables = "SELECT count(*) FROM sqlite_master WHERE name = 'never'";
    let tables = sql::<BigInt>(tables).get_result::<i64>(&mut place.connect());
    assert_eq!(tables.unwrap(), 0);
    run.stop().await;
}

/// What one of them has appended is undone with all that the start has made known.
#[tokio::test]
async fn r7_a_start_that_is_refused_leaves_no_gap_in_the_log() {
    struct Begins(&'static str);
    impl Projection<SqliteConnection> for Begins {
        fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
            append_in(conn, [counted(self.0, 7)])?;
            match self.0 {
                "refused" => Err(HandlerError::permanent("no")),
                _ => Ok(()),
            }
        }

        fn apply(
            &self,
            _: &Arc<EventEnvelope>,
            _: &mut SqliteConnection,
            _: &HandlerContext,
        ) -> Result<(), HandlerError> {
            Ok(())
        }
    }
    let (place, journal) = (Place::new(), Journal::default());
    let store = Arc::new(SqliteEventStore::open(&place.file, options()).unwrap());
    let bus = || InMemoryEventBus::with_store(BusConfig::default(), Arc::clone(&store)).unwrap();
    let refused = bus();
    for name in ["begun", "refused"] {
        let projection = Subscription::projection(name, Begins(name));
        refused.subscribe(projection).await.unwrap();
    }
    refused.start().await.unwrap_err();
    let bus = bus();
    bus.subscribe(handles("s", &journal)).await.unwrap();
    bus.start().await.unwrap();
    let receipt = bus.publish(counted("a", 0)).await.unwrap();
    let position = receipt.recorded().map(|it| it.position);
    assert_eq!(position, Some(Position::FIRST));
    let begun = Subscription::projection("begun", Begins("begun"));
    bus.subscribe(begun).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(
        journal.numbers("begun"),
        [7],
        "what it appends is delivered"
    );
    assert!(store.verify().await.unwrap().is_sound());
    soon(bus.stop(Duration::from_secs(20))).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn d8_r7_a_projection_that_does_not_begin_again_is_gone_and_can_come_back() {
    struct Sometimes(Arc<AtomicUsize>);
    impl Projection<SqliteConnection> for Sometimes {
        fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
            match self.0.load(SeqCst) {
                1 => return Err(HandlerError::permanent("not now")),
                2 => conn.batch_execute("ROLLBACK")?,
                _ => {}
            }
            conn.batch_execute("DELETE FROM sold")?;
            Ok(())
        }

        fn apply(
            &self,
            event: &Arc<EventEnvelope>,
            conn: &mut SqliteConnection,
            _: &HandlerContext,
        ) -> Result<(), HandlerError> {
            write(conn, &*event.typed::<Counted>()?)
        }
    }
    let (place, fails) = (Place::new(), Arc::new(AtomicUsize::new(0)));
    let sum = || Subscription::projection("sum", Sometimes(Arc::clone(&fails)));
    let run = place.run([sum()]).await;
    publish(&run, "a", 0..3).await;
    run.idle().await;
    fails.store(2, SeqCst);
    let reset = soon(run.bus.reset("sum", StartFrom::Beginning)).await;
    assert!(matches!(reset, Err(PlaceError::Subscribe(_))), "{reset:?}");
    fails.store(1, SeqCst);
    run.bus.subscribe(sum()).await.unwrap_err();
    publish(&run, "a", 3..4).await;
    run.idle().await;
    let rows = place.rows();
    assert!(rows.is_empty() || numbers_of(&rows, "a") == [0, 1, 2]);
    fails.store(0, SeqCst);
    run.bus.subscribe(sum()).await.unwrap();
    run.idle().await;
    assert_eq!(numbers_of(&place.rows(), "a"), [0, 1, 2, 3]);
    run.stop().await;
}

/// A type of its own, as an application has it.
#[tokio::test]
async fn r7_a_handler_may_be_a_type() {
    struct Sells;
    impl TransactionalHandler<Counted, SqliteConnection> for Sells {
        fn handle(
            &self,
            event: Event<Counted>,
            conn: &mut SqliteConnection,
            _: &HandlerContext,
        ) -> Result<(), HandlerError> {
            match event.number {
                1 => {
                    write(conn, &event)?;
                    Err(HandlerError::skip("of no interest"))
                }
                _ => write(conn, &event),
            }
        }
    }
    let place = Place::new();
    let run = place
        .run([Subscription::transactional("sells", Sells)])
        .await;
    publish(&run, "a", 0..3).await;
    run.idle().await;
    assert_eq!(
        numbers_of(&place.rows(), "a"),
        [0, 2],
        "what is skipped is undone"
    );
    let figures = run.bus.statistics();
    let sells = figures.of("sells").unwrap();
    assert_eq!((sells.handled, sells.skipped), (2, 1));
    run.stop().await;
}
