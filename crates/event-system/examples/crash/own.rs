//! What the application keeps in the file besides: a table that it writes to together with events, and
//! one that a projection makes of them. Both have to agree with the log, whatever ended the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::BigInt, sql_types::Text,
};
use domain_events::{
    DomainEvent, EventEnvelope, HandlerContext, HandlerError, NewEvent, Position, Projection,
    RetryPolicy, Subscription,
};
use event_store_diesel::{SqliteOptions, append_in, prepare_connection};

use crate::{
    events::{ATTEMPTS, Counted},
    journal::Journal,
    plan::{End, Life},
};

/// The name of the projection.
pub(crate) const NAME: &str = "folds";

/// Numbers of events from here on, of those of a life, are in a table of the application's, too.
pub(crate) const OUTBOX: u64 = 500_000;

/// Whether the event with this number was written together with a row.
fn has_row(number: u64) -> bool {
    number % 1_000_000 >= OUTBOX
}

/// A connection of the application's.
pub(crate) struct Application {
    conn: SqliteConnection,
}

impl Application {
    pub(crate) fn new(file: &Path) -> Result<Self> {
        let path = file.to_str().context("a path that is no text")?;
        let mut conn = SqliteConnection::establish(path)?;
        prepare_connection(&mut conn, &SqliteOptions::default())?;
        conn.batch_execute("CREATE TABLE IF NOT EXISTS outbox (number BIGINT PRIMARY KEY)")?;
        Ok(Self { conn })
    }

    /// Writes a row and an event, or neither. Returns where the event is.
    pub(crate) fn write(
        &mut self,
        number: u64,
        event: NewEvent,
        undo: bool,
    ) -> Result<Option<Position>> {
        let written = self.conn.immediate_transaction(|conn| {
            sql_query("INSERT INTO outbox VALUES (?)")
                .bind::<BigInt, _>(number.cast_signed())
                .execute(conn)?;
            let appended = append_in(conn, [event])?;
            match undo {
                true => Err(Undone::OnPurpose),
                false => Ok(appended[0].event.position()),
            }
        });
        match written {
            Err(Undone::OnPurpose) => Ok(None),
            Err(Undone::For(error)) => Err(error),
            Ok(position) => Ok(position),
        }
    }
}

enum Undone {
    OnPurpose,
    For(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Undone {
    fn from(error: E) -> Self {
        Self::For(error.into())
    }
}

/// The projection: a number for each counter, which tells every event and their order.
pub(crate) struct Folds {
    life: Life,
    journal: Arc<Journal>,
    moments: AtomicU64,
}

impl Folds {
    pub(crate) fn subscription(life: &Life, journal: &Arc<Journal>) -> Subscription {
        let projection = Self {
            life: life.clone(),
            journal: Arc::clone(journal),
            moments: AtomicU64::new(0),
        };
        let retry = RetryPolicy::exponential().base(std::time::Duration::from_millis(1));
        Subscription::projection(NAME, projection).retry(retry.max_attempts(ATTEMPTS))
    }

    fn is_end(&self, end: End) -> bool {
        let nth = || self.moments.fetch_add(1, Ordering::Relaxed);
        self.life.end == end && nth() == self.life.nth
    }
}

/// What an event makes of what those before it have made.
fn next(before: i64, number: u64) -> i64 {
    before
        .wrapping_mul(1_000_003)
        .wrapping_add(number.cast_signed())
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    fold: i64,
}

impl Projection<SqliteConnection> for Folds {
    fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
        conn.batch_execute(
            "DROP TABLE IF EXISTS folded; \
             CREATE TABLE folded (counter TEXT PRIMARY KEY, fold BIGINT NOT NULL)",
        )?;
        Ok(())
    }

    fn apply(
        &self,
        event: &Arc<EventEnvelope>,
        conn: &mut SqliteConnection,
        cx: &HandlerContext,
    ) -> Result<(), HandlerError> {
        if event.event_type() != Counted::EVENT_TYPE {
            return Ok(());
        }
        let counted = event.typed::<Counted>()?;
        let before = sql_query("SELECT fold FROM folded WHERE counter = ?")
            .bind::<Text, _>(&counted.counter)
            .load::<Row>(conn)?;
        let before = before.first().map_or(0, |row| row.fold);
        sql_query("INSERT OR REPLACE INTO folded VALUES (?, ?)")
            .bind::<Text, _>(&counted.counter)
            .bind::<BigInt, _>(next(before, counted.number))
            .execute(conn)?;
        if self.is_end(End::InTransaction) {
            self.journal.die();
        }
        match counted.number % 7 == 3 && cx.attempt() < ATTEMPTS {
            true => Err(HandlerError::transient("not yet")),
            false => Ok(()),
        }
    }
}

/// What the application's tables hold.
#[derive(Default)]
pub(crate) struct Tables {
    rows: BTreeSet<u64>,
    folded: BTreeMap<String, i64>,
}

impl Tables {
    /// Those of a file; empty ones where the process ended before it had made any.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let conn = rusqlite::Connection::open(file)?;
        let mut tables = Self::default();
        if let Ok(mut rows) = conn.prepare("SELECT number FROM outbox") {
            for number in rows.query_map([], |row| row.get::<_, i64>(0))? {
                tables.rows.insert(number?.cast_unsigned());
            }
        }
        if let Ok(mut folded) = conn.prepare("SELECT counter, fold FROM folded") {
            for row in folded.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (counter, fold) = row?;
                tables.folded.insert(counter, fold);
            }
        }
        Ok(tables)
    }

    /// Says where the tables do not agree with the events of the log, in order, and with those of them
    /// that the projection has finished: counter, number, whether it is one of these.
    pub(crate) fn faults<'a>(
        &self,
        log: impl Iterator<Item = (&'a str, u64, bool)>,
    ) -> Vec<String> {
        let (mut rows, mut folded) = (BTreeSet::new(), BTreeMap::<String, i64>::new());
        for (counter, number, is_finished) in log {
            if has_row(number) {
                rows.insert(number);
            }
            if is_finished {
                let fold = folded.entry(counter.to_owned()).or_default();
                *fold = next(*fold, number);
            }
        }
        let mut faults = Vec::new();
        let apart: Vec<_> = rows.symmetric_difference(&self.rows).collect();
        if !apart.is_empty() {
            faults.push(format!(
                "a row without its event, or an event without its row: {apart:?}"
            ));
        }
        if folded != self.folded {
            let (found, expected) = (&self.folded, folded);
            faults.push(format!(
                "the projection is {found:?}, and the log makes {expected:?}"
            ));
        }
        faults
    }
}
