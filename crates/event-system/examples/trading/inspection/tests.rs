//! The pass against small files made by hand: a sound one passes, and each fault is found.

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use domain_events::{Position, Timestamp};

use super::*;
use crate::{
    decimal::Decimal,
    desk::{Desk, Outcome},
    events::{CandleClosed, OrderApproved, OrderExecuted, Side},
    exchange::{self, Answer},
    files::Files,
    trace::{Sighting, Trace},
};

const TABLES: &str = "
    CREATE TABLE de_event_types (type_key INTEGER PRIMARY KEY, event_type TEXT UNIQUE);
    CREATE TABLE de_aggregates (aggregate_key INTEGER PRIMARY KEY, aggregate_type TEXT,
        aggregate_id TEXT, head_version INTEGER);
    CREATE TABLE de_events (position INTEGER PRIMARY KEY, event_id BLOB, type_key INTEGER,
        aggregate_key INTEGER, version INTEGER, payload BLOB, causation_id BLOB);
    CREATE TABLE de_subscriptions (subscription_id INTEGER PRIMARY KEY, name TEXT,
        through INTEGER, unfinished BLOB);
    CREATE TABLE de_waiting (subscription_id INTEGER, position INTEGER);
    CREATE TABLE de_blocked (subscription_id INTEGER, from_position INTEGER);
    CREATE TABLE de_dead_letters (subscription_id INTEGER, position INTEGER);
    INSERT INTO de_aggregates VALUES (1, 'market', 'A-B', 0), (2, 'book', 'A-B', 0);";

/// A run made by hand: sixteen candles, one cross at the last, and what follows from it.
struct Made {
    _folder: tempfile::TempDir,
    files: Files,
    input: Vec<CandleClosed>,
    counted: Vec<Counted>,
}

/// Writes the log; ids are positions.
struct Log(SqliteConnection, i64);

impl Log {
    fn add(
        &mut self,
        name: &str,
        aggregate: i64,
        cause: Option<i64>,
        payload: &impl serde::Serialize,
    ) -> i64 {
        let Self(connection, position) = self;
        *position += 1;
        let cause = cause.map_or("NULL".to_owned(), |cause| format!("x'{cause:032x}'"));
        let payload = serde_json::to_string(payload).unwrap();
        let insert = format!(
            "INSERT OR IGNORE INTO de_event_types (event_type) VALUES ('{name}');
             UPDATE de_aggregates SET head_version = head_version + 1
                 WHERE aggregate_key = {aggregate};
             INSERT INTO de_events SELECT {position}, x'{position:032x}', type_key, {aggregate},
                 head_version, CAST('{payload}' AS BLOB), {cause}
                 FROM de_event_types, de_aggregates
                 WHERE event_type = '{name}' AND aggregate_key = {aggregate};"
        );
        connection.batch_execute(&insert).unwrap();
        *position
    }
}

fn candle(minute: i64, close: i64) -> CandleClosed {
    let close = Decimal::from_units(close);
    CandleClosed {
        market: "A-B".to_owned(),
        time: Timestamp::from_micros(minute * 60_000_000),
        open: close,
        high: close,
        low: close,
        close,
        volume: Decimal::from_units(7),
    }
}

fn approval() -> OrderApproved {
    let order = |number| OrderApproved {
        market: "A-B".to_owned(),
        order_id: format!("A-B/{number}"),
        side: Side::Buy,
        price: Decimal::from_units(1_000_000_000),
        quantity: Decimal::from_units(10_000_000),
    };
    let executes =
        |order: &OrderApproved| matches!(exchange::call(order, 1), Ok(Answer::Executed(_)));
    (0..).map(order).find(executes).unwrap()
}

fn made() -> Made {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::beside(&folder.path().join("a.db"));
    let mut connection = SqliteConnection::establish(&files.log().to_string_lossy()).unwrap();
    connection.batch_execute(TABLES).unwrap();
    let mut log = Log(connection, 0);

    let input: Vec<_> = (0..16)
        .map(|minute| candle(minute, 100 + minute / 15))
        .collect();
    let candles = input
        .iter()
        .map(|it| log.add("market.candle-closed", 1, None, it));
    let last = candles.last();
    let trigger = serde_json::json!({"cross": "above"});
    log.add("trading.trigger-condition-met", 2, last, &trigger);
    let signal = serde_json::json!({"side": "buy"});
    let signal = log.add("trading.signal-generated", 2, last, &signal);
    let approval = approval();
    let approved = log.add("trading.order-approved", 2, Some(signal), &approval);
    log.add("trading.order-placed", 2, Some(approved), &approval);
    let Ok(Answer::Executed(fill)) = exchange::call(&approval, 1) else {
        unreachable!()
    };
    let executed = OrderExecuted {
        market: approval.market,
        order_id: approval.order_id,
        side: approval.side,
        price: fill.price,
        quantity: approval.quantity,
        amount: fill.amount,
        fee: fill.fee,
    };
    let execution = log.add("trading.order-executed", 2, Some(approved), &executed);
    let desk = Desk::open(files.desk()).unwrap();
    let position = Position::new(execution.unsigned_abs());
    let Outcome::Opened(opened) = desk.book(position, &executed).unwrap() else {
        unreachable!()
    };
    log.add("trading.position-opened", 2, Some(execution), &opened);

    let trace = Trace::begin_run(files.trace()).unwrap();
    let mut counted = Vec::new();
    for (name, positions) in [
        ("strategy", 1..=16),
        ("risk", 18..=18),
        ("broker", 19..=19),
        ("portfolio", 21..=21),
        ("audit", 1..=22),
    ] {
        counted.push(Counted {
            subscription: name.to_owned(),
            done: positions.clone().count() as u64,
            retries: 0,
            waiting: 0,
        });
        log.0.batch_execute(&format!("INSERT INTO de_subscriptions (name, through, unfinished) VALUES ('{name}', 22, x'')")).unwrap();
        for position in positions {
            trace.note(&sighting(name, position, 1)).unwrap();
        }
    }
    Made {
        _folder: folder,
        files,
        input,
        counted,
    }
}

fn sighting(subscription: &str, position: u64, attempt: u32) -> Sighting<'_> {
    let aggregate_type = if position <= 16 { "market" } else { "book" };
    Sighting {
        subscription,
        aggregate_type,
        aggregate_id: "A-B",
        position,
        attempt,
    }
}

impl Made {
    /// The statements that are contradicted after `damage` was done to the log.
    fn contradicted(&self, damage: &str) -> Vec<&'static str> {
        let mut connection =
            SqliteConnection::establish(&self.files.log().to_string_lossy()).unwrap();
        connection.batch_execute(damage).unwrap();
        let findings = self.findings();
        let verdicts = findings.verdicts.iter();
        verdicts
            .filter(|it| !it.against.is_empty())
            .map(|it| it.what)
            .collect()
    }

    fn findings(&self) -> Findings {
        let evidence = Evidence::gather(&self.files, &self.input, &self.counted).unwrap();
        Findings::of(evidence).unwrap()
    }
}

#[test]
fn a_sound_run_passes_and_is_counted() {
    let made = made();
    assert_eq!(made.contradicted(""), [""; 0]);
    let findings = made.findings();
    assert!(findings.is_clean());
    assert_eq!(findings.events[0], ("market.candle-closed".to_owned(), 16));
    assert_eq!(findings.books.len(), 1);
    assert_eq!(
        findings.portfolio_checksum(),
        made.findings().portfolio_checksum()
    );
}

#[test]
fn what_is_missing_is_lost() {
    let lost = |position: u32, what: &str| {
        let made = made();
        let found = made.contradicted(&format!(
            "DELETE FROM de_events WHERE position = {position}"
        ));
        assert!(found.contains(&what), "{position}: {found:?}");
        assert!(made.findings().against(Kind::Lost) > 0);
    };
    lost(3, "every input candle is in the log");
    lost(3, "the log has no gap");
    lost(17, "every cross has its trigger and its signal");
    lost(18, "every cross has its trigger and its signal");
    lost(19, "every signal has its answer");
    lost(20, "every approval was placed");
    lost(21, "every order fared as the exchange decides");
    lost(
        22,
        "every execution is booked, and told where it did something",
    );
}

#[test]
fn a_candle_with_another_price_is_not_the_one_given() {
    let damage = "UPDATE de_events SET payload = replace(CAST(payload AS TEXT), '101', '100')
                  WHERE position = 16";
    let found = made().contradicted(damage);
    assert!(
        found.contains(&"every input candle is in the log"),
        "{found:?}"
    );
    assert!(
        found.contains(&"every event that follows has its cause"),
        "{found:?}"
    );
}

#[test]
fn an_event_that_someone_did_not_see_is_lost() {
    let made = made();
    let trace = std::fs::read_to_string(made.files.trace()).unwrap();
    let without = trace.replace("risk\tbook\tA-B\t18\t1\n", "");
    std::fs::write(made.files.trace(), without).unwrap();
    let found = made.contradicted("");
    assert_eq!(
        found,
        [
            "every event was seen by everyone who wants it",
            "handled, skipped and dead are what was seen in this run"
        ]
    );
}

#[test]
fn a_desk_that_earned_something_else_is_found() {
    let made = made();
    let mut desk = SqliteConnection::establish(&made.files.desk().to_string_lossy()).unwrap();
    let before = made.findings().portfolio_checksum();
    desk.batch_execute("UPDATE positions SET profit = 1")
        .unwrap();
    assert_eq!(
        made.contradicted(""),
        ["profit and positions are those of the executions"]
    );
    assert_ne!(made.findings().portfolio_checksum(), before);
}

#[test]
fn an_overtaking_is_a_violation_and_a_retry_or_a_later_runs_repeat_is_none() {
    let made = made();
    let trace = Trace::begin_run(made.files.trace()).unwrap();
    trace.note(&sighting("audit", 21, 1)).unwrap();
    trace.note(&sighting("audit", 21, 2)).unwrap();
    trace.note(&sighting("audit", 22, 1)).unwrap();
    assert_eq!(made.findings().against(Kind::Order), 0);
    let repeats: Vec<_> = made
        .findings()
        .deliveries
        .iter()
        .map(|it| it.repeats)
        .collect();
    assert_eq!(repeats, [0, 0, 0, 0, 2]);
    trace.note(&sighting("audit", 21, 3)).unwrap();
    assert_eq!(made.findings().against(Kind::Order), 1);
    trace.note(&sighting("audit", 22, 2)).unwrap();
    trace.note(&sighting("audit", 22, 2)).unwrap();
    assert_eq!(made.findings().against(Kind::Order), 2);
}

#[test]
fn what_was_never_seen_may_not_come_after_something_later() {
    let made = made();
    let trace = std::fs::read_to_string(made.files.trace()).unwrap();
    let line = "audit\tmarket\tA-B\t7\t1\n";
    let late = format!("{}run\n{line}", trace.replace(line, ""));
    std::fs::write(made.files.trace(), late).unwrap();
    let found = made.contradicted("");
    assert!(
        found.contains(&"over all runs, nothing was first seen after something later"),
        "{found:?}"
    );
}

#[test]
fn surplus_and_wrong_figures_are_found() {
    let twice =
        "INSERT INTO de_events SELECT 23, x'99', type_key, aggregate_key, 7, payload, causation_id
                 FROM de_events WHERE position = 22";
    assert!(
        made()
            .contradicted(twice)
            .contains(&"nothing was published twice")
    );
    let dead = "INSERT INTO de_dead_letters VALUES (2, 18)";
    assert_eq!(
        made().contradicted(dead),
        ["only orders that the exchange gives up are dead letters"]
    );
    let waiting = "INSERT INTO de_waiting VALUES (2, 18)";
    assert_eq!(made().contradicted(waiting), ["nothing is left to do"]);
    let behind = "UPDATE de_subscriptions SET through = 21 WHERE name = 'audit'";
    assert_eq!(made().contradicted(behind), ["nothing is left to do"]);
}
