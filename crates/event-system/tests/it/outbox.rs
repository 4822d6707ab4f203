//! Events that the application commits itself, with its own data (P7), and where it must (P8).

use std::{
    env,
    io::{BufRead, BufReader, Write, stdin},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use diesel::{
    Connection, QueryResult, RunQueryDsl, SqliteConnection, connection::SimpleConnection, dsl::sql,
    result::Error, sql_query, sql_types::BigInt,
};
use domain_events::{
    AppendError, DomainEventPublisher, EventBus, EventId, EventStore, ExpectedVersion, NewEvent,
    Position, PublishError, StoreErrorKind, Version,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{
    AppendInError, SqliteEventStore, SqliteOptions, append_in, prepare_connection,
};
use event_system::{Config, EventSystem, Store};
use std::sync::Arc;
use tempfile::{TempDir, tempdir};

use crate::recovery::{Journal, Run, counted, handles, soon};

/// An application's database, with a table of its own besides ours.
struct Shop {
    _dir: TempDir,
    file: PathBuf,
}

impl Shop {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let file = dir.path().join("shop.db");
        let store = SqliteEventStore::open(&file, SqliteOptions::default()).unwrap();
        store.close_blocking();
        let this = Self { _dir: dir, file };
        let table = "CREATE TABLE stock (item INTEGER PRIMARY KEY, pieces INTEGER NOT NULL)";
        this.connect().batch_execute(table).unwrap();
        this
    }

    fn connect(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(self.file.to_str().unwrap()).unwrap();
        prepare_connection(&mut conn, &options()).unwrap();
        conn
    }

    fn pieces(&self) -> i64 {
        let pieces = sql::<BigInt>("SELECT coalesce(sum(pieces), 0) FROM stock");
        pieces.get_result(&mut self.connect()).unwrap()
    }

    async fn run(&self, journal: &Journal) -> Run {
        Run::start_with(&self.file, options(), 1_000, [handles("s", journal)]).await
    }
}

fn options() -> SqliteOptions {
    SqliteOptions {
        share_database: true,
        ..SqliteOptions::default()
    }
}

fn stock(conn: &mut SqliteConnection, item: u64) -> QueryResult<usize> {
    sql_query(format!("INSERT INTO stock VALUES ({item}, 1)")).execute(conn)
}

/// Takes an item into the stock, and says so.
fn sell(conn: &mut SqliteConnection, counter: &str, number: u64) -> Position {
    let sold = conn.immediate_transaction(|conn| {
        stock(conn, number)?;
        let appended = append_in(conn, [counted(counter, number)]).map_err(failed)?;
        Ok::<_, Error>(appended[0].event.position().unwrap())
    });
    sold.unwrap()
}

fn failed(error: AppendInError) -> Error {
    Error::QueryBuilderError(Box::new(error))
}

#[tokio::test]
async fn p7_what_is_changed_and_the_event_of_it_are_committed_together_or_not_at_all() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    let rolled_back = conn.immediate_transaction(|conn| {
        stock(conn, 7)?;
        append_in(conn, [counted("a", 7), counted("never", 7)]).map_err(failed)?;
        Err::<(), _>(Error::RollbackTransaction)
    });
    assert_eq!(rolled_back, Err(Error::RollbackTransaction));
    assert_eq!(run.store.head().await.unwrap(), Position::ZERO);
    assert_eq!(shop.pieces(), 0);

    assert_eq!(sell(&mut conn, "a", 0), Position::FIRST);
    assert_eq!(shop.pieces(), 1);
    run.bus.wake();
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0]);
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

/// Nothing but the next publish tells the bus that there is something before it.
#[tokio::test]
async fn p7_what_was_appended_without_a_word_comes_before_what_is_published_next() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    for number in (0..30).step_by(3) {
        sell(&mut conn, "a", number);
        sell(&mut conn, "a", number + 1);
        let published = run.bus.publish(counted("a", number + 2)).await.unwrap();
        let handled = soon(published.handled()).await.unwrap();
        assert!(handled.is_success());
    }
    // All of them, though nobody has asked for the log to be looked at.
    assert_eq!(journal.numbers("a"), (0..30).collect::<Vec<_>>());
    run.idle().await;
    run.stop().await;
}

#[tokio::test]
async fn l3_idle_means_that_nothing_is_behind_in_the_log_whoever_has_put_it_there() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    for number in 0..20 {
        sell(&mut conn, "a", number);
        run.idle().await;
        assert_eq!(journal.numbers("a").len() as u64, number + 1);
    }
    run.stop().await;
}

/// The process ends before the bus is told, or before the bus has looked.
#[tokio::test]
async fn p7_a_crash_between_the_commit_and_the_wake_loses_nothing() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    run.bus.publish(counted("a", 0)).await.unwrap();
    run.idle().await;
    sell(&mut conn, "a", 1);
    run.bus.wake();
    sell(&mut conn, "a", 2);
    run.crash().await;
    sell(&mut conn, "a", 3);

    let run = shop.run(&journal).await;
    run.bus.publish(counted("a", 4)).await.unwrap();
    run.idle().await;
    let mut numbers = journal.numbers("a");
    numbers.dedup();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

/// What the writer knows by heart of versions, types and aggregates is not what is there any more.
#[tokio::test]
async fn p6_p7_publisher_and_application_take_turns_in_one_history() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    for version in (0..20).step_by(2) {
        let event = counted("both", version).expect(exact(version));
        run.bus.publish(event).await.unwrap();
        let appended = conn.immediate_transaction(|conn| {
            let event = counted("both", version + 1).expect(exact(version + 1));
            let own = counted(&format!("own {version}"), 0).expect(ExpectedVersion::NoStream);
            append_in(conn, [event, own]).map_err(failed)
        });
        let versions = appended.unwrap().into_iter().map(|it| it.event.version());
        assert!(versions.eq([Some(Version::new(version + 2)), Some(Version::FIRST)]));
        let own = counted(&format!("own {version}"), 1).expect(exact(1));
        run.bus.publish(own).await.unwrap();
    }
    run.idle().await;
    assert_eq!(journal.numbers("both"), (0..20).collect::<Vec<_>>());
    assert!(run.store.verify().await.unwrap().is_sound());
    run.stop().await;
}

fn exact(version: u64) -> ExpectedVersion {
    ExpectedVersion::Exact(Version::new(version))
}

/// A refusal leaves the transaction as it was: what it did before is committed, and nothing else.
#[tokio::test]
async fn p6_p7_what_is_refused_leaves_no_trace_in_the_transaction() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let (id, mut conn) = (EventId::new(), shop.connect());
    let first = run.bus.publish(counted("a", 0).id(id)).await.unwrap();
    conn.immediate_transaction(|conn| {
        stock(conn, 1)?;
        let late = counted("a", 1).expect(ExpectedVersion::NoStream);
        let refused = append_in(conn, [counted("b", 0), late]).unwrap_err();
        assert!(matches!(
            refused,
            AppendInError::Append(AppendError::WrongVersion { .. })
        ));
        let refused = append_in(conn, [counted("a", 9).id(id)]).unwrap_err();
        assert!(matches!(
            refused,
            AppendInError::Append(AppendError::IdTaken { .. })
        ));
        let large = counted(&"x".repeat(1024 * 1024), 0);
        let refused = append_in(conn, [large]).unwrap_err();
        assert!(matches!(
            refused,
            AppendInError::Append(AppendError::PayloadTooLarge { .. })
        ));
        let there = append_in(conn, [counted("a", 0).id(id)]).map_err(failed)?;
        assert!(there[0].already_there);
        assert_eq!(there[0].event.recorded(), first.recorded());
        assert!(append_in(conn, Vec::<NewEvent>::new()).unwrap().is_empty());
        append_in(conn, [counted("a", 1)]).map_err(failed).map(drop)
    })
    .unwrap();
    run.idle().await;
    assert_eq!((shop.pieces(), journal.numbers("a").len()), (1, 2));
    assert!(journal.numbers("b").is_empty());
    run.stop().await;
}

/// Nor does what fails half-way, whoever commits the rest.
#[tokio::test]
async fn p7_what_fails_half_way_leaves_no_trace_in_the_transaction() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    let breaks = "CREATE TRIGGER breaks BEFORE INSERT ON de_aggregates \
                  BEGIN SELECT RAISE(ABORT, 'on purpose'); END";
    conn.batch_execute(breaks).unwrap();
    conn.immediate_transaction(|conn| {
        let failed = append_in(conn, [counted("a", 0)]).unwrap_err();
        assert!(matches!(
            failed,
            AppendInError::Append(AppendError::Store(_))
        ));
        stock(conn, 1)
    })
    .unwrap();
    conn.batch_execute("DROP TRIGGER breaks").unwrap();
    assert_eq!(shop.pieces(), 1);
    assert_eq!(run.store.head().await.unwrap(), Position::ZERO);
    assert!(run.store.verify().await.unwrap().is_sound());
    assert_eq!(sell(&mut conn, "a", 2), Position::FIRST);
    run.stop().await;
}

/// A transaction that has begun with reading cannot write once somebody else has.
#[tokio::test]
async fn p7_a_transaction_that_cannot_write_is_told_so() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let run = shop.run(&journal).await;
    let mut conn = shop.connect();
    let refused = append_in(&mut conn, [counted("a", 0)]).unwrap_err();
    assert!(matches!(refused, AppendInError::NoTransaction), "{refused}");

    conn.batch_execute("PRAGMA busy_timeout = 3600000").unwrap();
    let refused = conn.transaction(|conn| {
        sql::<BigInt>("SELECT count(*) FROM stock").get_result::<i64>(conn)?;
        run.bus.publish_blocking(vec![counted("a", 0)]).unwrap();
        // At once, however long it would wait for a lock.
        Ok::<_, Error>(append_in(conn, [counted("a", 1)]).unwrap_err())
    });
    let refused = refused.unwrap();
    assert!(matches!(refused, AppendInError::Deferred(_)), "{refused}");
    assert!(refused.to_string().contains("immediate_transaction"));
    // Where nobody has written in between, it may.
    let appended = conn.transaction(|conn| {
        sql::<BigInt>("SELECT count(*) FROM stock").get_result::<i64>(conn)?;
        append_in(conn, [counted("a", 1)]).map_err(failed)
    });
    assert_eq!(appended.unwrap()[0].event.version(), Some(Version::new(2)));
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1]);
    run.stop().await;
}

#[test]
fn p7_a_database_without_a_log_is_told_from_one_with_it() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("other.db");
    let mut conn = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    prepare_connection(&mut conn, &options()).unwrap_err();
    conn.immediate_transaction(|conn| {
        let refused = append_in(conn, [counted("a", 0)]).unwrap_err();
        assert!(matches!(refused, AppendInError::NoLog(_)), "{refused}");
        Ok::<_, Error>(())
    })
    .unwrap();

    let shop = Shop::new();
    let mut conn = shop.connect();
    let newer = "UPDATE de_format SET version = version + 1";
    conn.batch_execute(newer).unwrap();
    prepare_connection(&mut conn, &options()).unwrap_err();
    conn.immediate_transaction(|conn| {
        let refused = append_in(conn, [counted("a", 0)]).unwrap_err();
        assert!(matches!(refused, AppendInError::NoLog(_)), "{refused}");
        Ok::<_, Error>(())
    })
    .unwrap();
}

#[test]
fn p7_a_prepared_connection_has_the_settings_of_the_store() {
    let shop = Shop::new();
    let mut conn = SqliteConnection::establish(shop.file.to_str().unwrap()).unwrap();
    let options = SqliteOptions {
        busy_timeout: Duration::from_millis(77),
        ..options()
    };
    prepare_connection(&mut conn, &options).unwrap();
    for (name, value) in [
        ("busy_timeout", 77),
        ("synchronous", 2),
        ("foreign_keys", 1),
    ] {
        let found = sql::<BigInt>(&format!("PRAGMA {name}")).get_result::<i64>(&mut conn);
        assert_eq!(found.unwrap(), value, "{name}");
    }
}

/// The caller waits for the writer, and the writer for the caller's transaction.
#[tokio::test]
async fn p8_within_a_write_transaction_it_is_an_error_that_says_what_to_do() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let config = Config {
        store: Store::Sqlite(shop.file.clone()),
        sqlite: SqliteOptions {
            busy_timeout: Duration::from_millis(20),
            ..options()
        },
        ..Config::default()
    };
    let system = EventSystem::builder().config(config);
    let system = system.subscribe(handles("s", &journal)).start().await;
    let system = system.unwrap();
    let publisher = system.publisher();
    let mut conn = shop.connect();
    conn.immediate_transaction(|conn| {
        stock(conn, 1)?;
        let refused = publisher.publish(counted("a", 0)).unwrap_err();
        let PublishError::Append(AppendError::Store(error)) = &refused else {
            panic!("{refused}");
        };
        assert_eq!(error.kind(), StoreErrorKind::Busy);
        assert!(error.to_string().contains("append_in"), "{error}");
        append_in(conn, [counted("a", 0)]).map_err(failed).map(drop)
    })
    .unwrap();
    system.wake();
    soon(system.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0], "once, and not what was refused");
    publisher.publish(counted("a", 1)).unwrap();
    soon(system.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0, 1]);
    system.shutdown(Duration::from_secs(10)).await.unwrap();
}

const FILE: &str = "SHOP_OF_ANOTHER_PROCESS";

/// Sells as often as it is told to.
#[test]
#[ignore = "a process of its own, started by the test below"]
#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn another_process() {
    let Some(path) = env::var_os(FILE) else {
        return;
    };
    let mut conn = SqliteConnection::establish(Path::new(&path).to_str().unwrap()).unwrap();
    prepare_connection(&mut conn, &options()).unwrap();
    for line in stdin().lines() {
        let numbers: Vec<u64> = line
            .unwrap()
            .split(' ')
            .map(|it| it.parse().unwrap())
            .collect();
        for number in numbers[0]..numbers[1] {
            sell(&mut conn, "theirs", number);
        }
        println!("\nsold");
    }
}

/// Nobody says a word to the bus; both write at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_what_another_process_appends_is_found_by_the_watch() {
    let (shop, journal) = (Shop::new(), Journal::default());
    let store = Arc::new(SqliteEventStore::open(&shop.file, options()).unwrap());
    let config = BusConfig {
        watch: Some(Duration::from_millis(5)),
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::with_store(config, Arc::clone(&store)).unwrap();
    bus.subscribe(handles("s", &journal)).await.unwrap();
    bus.start().await.unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "outbox::another_process",
            "--exact",
            "--nocapture",
            "--ignored",
        ])
        .env(FILE, &shop.file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut orders = child.stdin.take().unwrap();
    for (round, from) in (0..200).step_by(50).enumerate() {
        writeln!(orders, "{from} {}", from + 50).unwrap();
        for number in 0..20 {
            let number = 20 * round as u64 + number;
            soon(bus.publish(counted("ours", number))).await.unwrap();
        }
        assert!(said.any(|line| line.unwrap() == "sold"));
        let last = || journal.numbers("theirs").last() == Some(&(from + 49));
        soon(async {
            while !last() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    drop(orders);
    assert!(child.wait().unwrap().success());
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("theirs"), (0..200).collect::<Vec<_>>());
    assert_eq!(journal.numbers("ours"), (0..80).collect::<Vec<_>>());
    assert_eq!(shop.pieces(), 200);
    assert!(store.verify().await.unwrap().is_sound());
    soon(bus.stop(Duration::from_secs(20))).await.unwrap();
    store.close().await;
}
