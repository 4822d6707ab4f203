//! A connection with the names it has read, and the questions it answers.

use std::ops::RangeInclusive;

use diesel::{QueryResult, SqliteConnection};
use domain_events::{
    AggregateRef, DeadLetter, DeadLetterReason, EventEnvelope, EventId, Position, Timestamp,
    Version,
};

use crate::{
    names::Names,
    queries::{self, DeadLetterRow},
    rows::unsigned,
};

/// A connection with the names it has read.
pub(crate) struct Session {
    pub(crate) conn: SqliteConnection,
    pub(crate) names: Names,
}

impl Session {
    pub(crate) fn new(conn: SqliteConnection) -> Self {
        let names = Names::default();
        Self { conn, names }
    }

    pub(crate) fn head(&mut self) -> QueryResult<Position> {
        queries::head(&mut self.conn).map(|head| Position::new(unsigned(head)))
    }

    pub(crate) fn event(&mut self, id: EventId) -> QueryResult<Option<EventEnvelope>> {
        let Some(row) = queries::event(&mut self.conn, &id)? else {
            return Ok(None);
        };
        self.names.envelope(&mut self.conn, row).map(Some)
    }

    pub(crate) fn log(&mut self, after: Position, limit: usize) -> QueryResult<Vec<EventEnvelope>> {
        let rows = queries::events_after(&mut self.conn, after, limit)?;
        self.names.envelopes(&mut self.conn, rows)
    }

    pub(crate) fn history(
        &mut self,
        aggregate: &AggregateRef,
        versions: &RangeInclusive<Version>,
        limit: usize,
    ) -> QueryResult<Vec<EventEnvelope>> {
        let Some(key) = self.names.key(&mut self.conn, aggregate)? else {
            return Ok(Vec::new());
        };
        let (first, last) = (*versions.start(), *versions.end());
        let rows = queries::events_of_aggregate(&mut self.conn, key, first, last, limit)?;
        self.names.envelopes_of(&mut self.conn, rows, aggregate)
    }

    pub(crate) fn dead_letters(
        &mut self,
        subscription: Option<&str>,
        limit: usize,
    ) -> QueryResult<Vec<DeadLetter>> {
        let rows = queries::dead_letters(&mut self.conn, subscription, limit)?;
        rows.into_iter()
            .map(|(row, name)| self.dead_letter(row, &name))
            .collect()
    }

    fn dead_letter(&mut self, row: DeadLetterRow, subscription: &str) -> QueryResult<DeadLetter> {
        let event = match queries::event_at(&mut self.conn, row.position)? {
            Some(event) => self.names.envelope(&mut self.conn, event)?,
            None => return Err(broken("a dead letter without its event")),
        };
        let reason = DeadLetterReason::parse(&row.reason);
        Ok(DeadLetter {
            subscription: subscription.into(),
            position: event.position(),
            event_id: event.id(),
            event_type: event.event_type().to_owned(),
            aggregate: event.aggregate().clone(),
            reason: reason.ok_or_else(|| broken("a dead letter without a known reason"))?,
            attempts: count(row.attempts),
            error: row.error,
            first_attempt_at: Timestamp::from_micros(row.first_attempt_at),
            dead_at: Timestamp::from_micros(row.dead_at),
        })
    }
}

/// A number of attempts, as stored.
pub(crate) fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The error that the database holds something it cannot hold.
pub(crate) fn broken(what: &'static str) -> diesel::result::Error {
    diesel::result::Error::DeserializationError(what.into())
}
