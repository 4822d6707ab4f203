//! The independent pass: what the closed files say, asked in SQL of its own.
//!
//! Nothing of the system is asked but its figures, and those only to compare them. What should
//! have happened is worked out again from the candles in the log.

mod checks;
mod evidence;
#[cfg(test)]
mod tests;

use diesel::{SqliteConnection, prelude::*, sql_query, sql_types::BigInt};

use self::{checks::CHECKS, evidence::Text};
pub(crate) use self::{
    checks::Kind,
    evidence::{Counted, Evidence},
};
use crate::random;

/// What the pass found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Each check with what contradicts it.
    pub(crate) verdicts: Vec<Verdict>,
    /// Event types and how many events of each the log has.
    pub(crate) events: Vec<(String, u64)>,
    /// Subscriptions and how many dead letters and repeated attempts each has.
    pub(crate) deliveries: Vec<Deliveries>,
    /// Markets and what their books hold and have earned.
    pub(crate) books: Vec<Book>,
}

/// A check and everything that contradicts it.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) kind: Kind,
    pub(crate) what: &'static str,
    pub(crate) against: Vec<String>,
}

/// What the files say of one subscription, over all runs.
#[derive(Debug, QueryableByName)]
pub(crate) struct Deliveries {
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub(crate) subscription: String,
    #[diesel(sql_type = BigInt)]
    pub(crate) dead_letters: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) repeats: i64,
}

/// One market's book, in units of 1e-8.
#[derive(Debug, QueryableByName)]
pub(crate) struct Book {
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub(crate) market: String,
    #[diesel(sql_type = BigInt)]
    pub(crate) quantity: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) cost: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) profit: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) closed: i64,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    count: i64,
}

const EVENTS: &str =
    "SELECT type AS name, count(*) AS count FROM event GROUP BY type ORDER BY type";

const DELIVERIES: &str = "
    SELECT s.name AS subscription,
           (SELECT count(*) FROM dead_letter WHERE subscription = s.name) AS dead_letters,
           (SELECT count(*) FROM sighting WHERE subscription = s.name)
             - (SELECT count(*) FROM (SELECT DISTINCT position, attempt
                                      FROM sighting WHERE subscription = s.name)) AS repeats
    FROM log.de_subscriptions s ORDER BY s.subscription_id";

const BOOKS: &str = "
    SELECT p.market, p.quantity, p.cost, p.profit,
           (SELECT count(*) FROM fill
            WHERE market = p.market AND kind = 'closed') AS closed
    FROM desk.positions p ORDER BY p.market";

impl Findings {
    /// Asks the evidence everything.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(crate) fn of(evidence: Evidence) -> QueryResult<Self> {
        let mut connection = evidence.into_connection();
        let connection = &mut connection;
        let verdicts = CHECKS.iter().map(|check| {
            let against: Vec<Text> = sql_query(check.against).load(connection)?;
            Ok(Verdict {
                kind: check.kind,
                what: check.what,
                against: against.into_iter().map(|text| text.text).collect(),
            })
        });
        Ok(Self {
            verdicts: verdicts.collect::<QueryResult<_>>()?,
            events: counts(connection)?,
            deliveries: sql_query(DELIVERIES).load(connection)?,
            books: sql_query(BOOKS).load(connection)?,
        })
    }

    /// How much contradicts the checks of one kind.
    pub(crate) fn against(&self, kind: Kind) -> usize {
        let of_kind = self.verdicts.iter().filter(|verdict| verdict.kind == kind);
        of_kind.map(|verdict| verdict.against.len()).sum()
    }

    /// Whether nothing contradicts anything.
    pub(crate) fn is_clean(&self) -> bool {
        self.verdicts
            .iter()
            .all(|verdict| verdict.against.is_empty())
    }

    /// One number for what all books hold and have earned.
    pub(crate) fn portfolio_checksum(&self) -> String {
        let books = self.books.iter().fold(String::new(), |text, book| {
            text + &format!(
                "{} {} {} {}\n",
                book.market, book.quantity, book.cost, book.profit
            )
        });
        format!("{:016x}", random::hashed(&books))
    }
}

fn counts(connection: &mut SqliteConnection) -> QueryResult<Vec<(String, u64)>> {
    let counts: Vec<Count> = sql_query(EVENTS).load(connection)?;
    let counts = counts.into_iter();
    Ok(counts
        .map(|Count { name, count }| (name, count.unsigned_abs()))
        .collect())
}
