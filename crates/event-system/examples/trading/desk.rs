//! The portfolio's own tables, in a database of their own beside the event log.
//!
//! Of their own, because `SQLite` has one writer a file: in the log's file every booking would wait
//! for the log's commits. The guard against repeats is the row of the fill: where there is one for
//! the position, it is the answer.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection, prelude::*};
use domain_events::Position;
use serde::{Deserialize, Serialize};

use crate::{
    decimal::Decimal,
    events::{OrderExecuted, PositionClosed, PositionOpened, Side},
};

diesel::table! {
    positions (market) {
        market -> Text,
        quantity -> BigInt,
        cost -> BigInt,
        profit -> BigInt,
    }
}

diesel::table! {
    fills (position) {
        position -> BigInt,
        market -> Text,
        outcome -> Text,
    }
}

/// Synchronous is NORMAL: a commit survives the end of the process, which is what is proved here.
const SETTINGS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA busy_timeout = 5000;
";

const TABLES: &str = "
    -- What each market's book holds now, what was paid for it, and what was earned so far.
    CREATE TABLE IF NOT EXISTS positions (
        market   TEXT PRIMARY KEY NOT NULL,
        quantity INTEGER NOT NULL,
        cost     INTEGER NOT NULL,
        profit   INTEGER NOT NULL
    ) STRICT;
    -- What each execution led to, by its place in the log: the guard against repeats.
    CREATE TABLE IF NOT EXISTS fills (
        position INTEGER PRIMARY KEY NOT NULL,
        market   TEXT NOT NULL,
        outcome  TEXT NOT NULL
    ) STRICT;
";

/// What an execution did to its book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Opened(PositionOpened),
    Closed(PositionClosed),
    /// Bought while something was held, or sold while nothing was.
    Nothing,
}

/// The tables, open for booking.
pub(crate) struct Desk(Mutex<SqliteConnection>);

/// An execution that was not booked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeskError {
    #[error("the desk's tables were not read or written")]
    Database(#[from] diesel::result::Error),
    #[error("the outcome of an execution was not read or written")]
    Outcome(#[from] serde_json::Error),
    #[error("the execution was not booked: its amounts are out of range")]
    OutOfRange,
}

impl Desk {
    /// Opens the tables at `path`, and creates them where there are none.
    ///
    /// # Errors
    /// When the file cannot be opened, or is not a database.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut connection = SqliteConnection::establish(&path.to_string_lossy())?;
        connection.batch_execute(SETTINGS)?;
        connection.batch_execute(TABLES)?;
        Ok(Self(Mutex::new(connection)))
    }

    /// Books the execution at `position`, once: a repeat gets the outcome of the first time.
    ///
    /// # Errors
    /// When the tables cannot be read or written; nothing is booked then.
    pub(crate) fn book(
        &self,
        position: Position,
        executed: &OrderExecuted,
    ) -> Result<Outcome, DeskError> {
        let position = i64::try_from(position.get()).map_err(|_| DeskError::OutOfRange)?;
        // Held for a commit without fsync, some ten microseconds, and over no await.
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Immediate: the guard is read under the lock that the booking is written under.
        connection.immediate_transaction(|connection| {
            if let Some(outcome) = outcome_of(connection, position)? {
                return Ok(serde_json::from_str(&outcome)?);
            }
            let book = book_of(connection, &executed.market)?;
            let (book, outcome) = book.after(executed).ok_or(DeskError::OutOfRange)?;
            save(connection, position, &book, &outcome)?;
            Ok(outcome)
        })
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

fn outcome_of(connection: &mut SqliteConnection, position: i64) -> QueryResult<Option<String>> {
    let outcome = fills::table.find(position).select(fills::outcome);
    outcome.get_result(connection).optional()
}

fn book_of(connection: &mut SqliteConnection, market: &str) -> QueryResult<Book> {
    let book = positions::table.find(market).get_result(connection);
    Ok(book.optional()?.unwrap_or_else(|| Book::empty(market)))
}

fn save(
    connection: &mut SqliteConnection,
    position: i64,
    book: &Book,
    outcome: &Outcome,
) -> Result<(), DeskError> {
    let fill = (
        fills::position.eq(position),
        fills::market.eq(&book.market),
        fills::outcome.eq(serde_json::to_string(outcome)?),
    );
    diesel::replace_into(positions::table)
        .values(book)
        .execute(connection)?;
    diesel::insert_into(fills::table)
        .values(fill)
        .execute(connection)?;
    Ok(())
}

/// What a market's book holds; all numbers in units of 1e-8.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Insertable)]
#[diesel(table_name = positions)]
struct Book {
    market: String,
    quantity: i64,
    cost: i64,
    profit: i64,
}

impl Book {
    fn empty(market: &str) -> Self {
        Self {
            market: market.to_owned(),
            quantity: 0,
            cost: 0,
            profit: 0,
        }
    }

    /// The book after an execution, and what that did; `None` where a sum is out of range.
    fn after(self, executed: &OrderExecuted) -> Option<(Self, Outcome)> {
        match (executed.side, self.quantity) {
            (Side::Buy, 0) => self.opened(executed),
            (Side::Sell, held) if held > 0 => self.closed(executed),
            _ => Some((self, Outcome::Nothing)),
        }
    }

    fn opened(self, executed: &OrderExecuted) -> Option<(Self, Outcome)> {
        let cost = executed.amount.plus(executed.fee)?;
        let opened = PositionOpened {
            market: executed.market.clone(),
            order_id: executed.order_id.clone(),
            quantity: executed.quantity,
            cost,
        };
        let (quantity, cost) = (executed.quantity.units(), cost.units());
        Some((
            Self {
                quantity,
                cost,
                ..self
            },
            Outcome::Opened(opened),
        ))
    }

    fn closed(self, executed: &OrderExecuted) -> Option<(Self, Outcome)> {
        let received = executed.amount.minus(executed.fee)?;
        let profit = received.minus(Decimal::from_units(self.cost))?;
        let closed = PositionClosed {
            market: executed.market.clone(),
            order_id: executed.order_id.clone(),
            quantity: executed.quantity,
            profit,
        };
        let profit = self.profit.checked_add(profit.units())?;
        let book = Self {
            quantity: 0,
            cost: 0,
            profit,
            ..self
        };
        Some((book, Outcome::Closed(closed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executed(side: Side, amount: i64) -> OrderExecuted {
        OrderExecuted {
            market: "KRW-BTC".to_owned(),
            order_id: format!("{side:?}/{amount}"),
            side,
            price: Decimal::from_units(amount * 10),
            quantity: Decimal::from_units(10_000_000),
            amount: Decimal::from_units(amount),
            fee: Decimal::from_units(1),
        }
    }

    fn booked(desk: &Desk, position: u64, side: Side, amount: i64) -> Outcome {
        desk.book(Position::new(position), &executed(side, amount))
            .unwrap()
    }

    #[test]
    fn a_purchase_opens_and_a_sale_closes() {
        let desk = Desk::open(Path::new(":memory:")).unwrap();
        assert_eq!(booked(&desk, 1, Side::Sell, 90), Outcome::Nothing);
        let Outcome::Opened(opened) = booked(&desk, 2, Side::Buy, 100) else {
            panic!("not opened");
        };
        assert_eq!(opened.cost.units(), 101);
        assert_eq!(booked(&desk, 3, Side::Buy, 50), Outcome::Nothing);
        let Outcome::Closed(closed) = booked(&desk, 4, Side::Sell, 120) else {
            panic!("not closed");
        };
        assert_eq!(closed.profit.units(), 18);
        assert_eq!(booked(&desk, 5, Side::Sell, 120), Outcome::Nothing);
    }

    #[test]
    fn a_repeat_gets_the_first_outcome_and_books_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("desk");
        let first = booked(&Desk::open(&path).unwrap(), 1, Side::Buy, 100);
        let desk = Desk::open(&path).unwrap();
        assert_eq!(booked(&desk, 1, Side::Buy, 100), first);
        let Outcome::Closed(closed) = booked(&desk, 2, Side::Sell, 120) else {
            panic!("not closed");
        };
        assert_eq!(booked(&desk, 1, Side::Buy, 100), first);
        assert_eq!(closed.profit.units(), 18);
        assert_eq!(booked(&desk, 3, Side::Sell, 500), Outcome::Nothing);
    }
}
