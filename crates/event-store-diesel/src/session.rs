//! A connection with the names it has read, and the questions it answers.

use std::{collections::BTreeMap, slice, sync::Arc, time::Duration};

use diesel::{
    QueryResult, SqliteConnection,
    connection::{AnsiTransactionManager, TransactionManager},
};
use domain_events::{
    AttemptResult, DeadLetter, DeadLetterGroup, DeadLetterQuery, DeadLetterReason, EventEnvelope,
    EventId, EventQuery, EventSummary, PauseReason, Position, ProcessingOutcome, Recorded,
    StoreStatistics, StoredSubscription, Timestamp, Version,
};

use crate::{
    names::Names,
    queries::{self, DeadLetterRow, GroupRow, LetterFilter, ProcessingRow},
    rows::{Page, signed, unsigned},
    selection::{Selection, Unfinished},
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

    /// Asks several questions of one state of the database.
    pub(crate) fn at_once<T>(
        &mut self,
        ask: impl FnOnce(&mut Self) -> QueryResult<T>,
    ) -> QueryResult<T> {
        AnsiTransactionManager::begin_transaction_sql(&mut self.conn, "BEGIN")?;
        let answer = ask(self);
        let ended = AnsiTransactionManager::rollback_transaction(&mut self.conn);
        answer.and_then(|answer| ended.map(|()| answer))
    }

    pub(crate) fn head(&mut self) -> QueryResult<Position> {
        queries::head(&mut self.conn).map(|head| Position::new(unsigned(head)))
    }

    pub(crate) fn event(&mut self, id: EventId) -> QueryResult<Option<EventEnvelope>> {
        self.names.event(&mut self.conn, id)
    }

    pub(crate) fn event_at(&mut self, position: Position) -> QueryResult<Option<EventEnvelope>> {
        let found = queries::event_at(&mut self.conn, signed(position.get()))?;
        self.names.first(&mut self.conn, &found)
    }

    /// Up to `limit` of the events that `query` means, after a position.
    pub(crate) fn read(
        &mut self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> QueryResult<Page> {
        let page = |session: &mut Self| Selection::of(session, query)?.page(session, after, limit);
        let rows = match query {
            // Asked in several parts, which must not tell of different states: a page would leave
            // out what came between them.
            EventQuery::Correlated(_) | EventQuery::Unfinished => self.at_once(page),
            _ => page(self),
        }?;
        self.names.page(&mut self.conn, rows)
    }

    /// Events up to here are none that `query` counts, be it that some are kept for dead letters.
    fn not_read(&mut self, query: &EventQuery) -> QueryResult<Position> {
        match query {
            EventQuery::Unfinished => Ok(Position::ZERO),
            _ => self.pruned_through(),
        }
    }

    /// The log is kept after this position.
    pub(crate) fn pruned_through(&mut self) -> QueryResult<Position> {
        let position = queries::pruned_through(&mut self.conn)?;
        Ok(Position::new(unsigned(position)))
    }

    /// How many events `query` means, and where the first and the last are.
    pub(crate) fn summary(&mut self, query: &EventQuery) -> QueryResult<EventSummary> {
        let after = signed(self.not_read(query)?.get());
        let (events, first, last) = Selection::of(self, query)?.span(self, after)?;
        Ok(EventSummary {
            events: unsigned(events),
            first: self.recorded(first)?,
            last: self.recorded(last)?,
        })
    }

    /// Place and time of the event at a position, unless it is damaged.
    fn recorded(&mut self, position: Option<i64>) -> QueryResult<Option<Recorded>> {
        let Some(position) = position else {
            return Ok(None);
        };
        let found = queries::event_at(&mut self.conn, position)?;
        let Some(row) = found.first() else {
            return Ok(None);
        };
        let at = self.names.intact_time(&mut self.conn, row)?;
        Ok(at.map(|at| Recorded {
            position: Position::new(unsigned(position)),
            version: Version::new(unsigned(row.version())),
            at: Timestamp::from_micros(at),
        }))
    }

    /// What the store holds.
    pub(crate) fn statistics(&mut self) -> QueryResult<StoreStatistics> {
        let log = self.summary(&EventQuery::Log)?;
        let pruned_through = self.pruned_through()?;
        let unfinished = Unfinished::read(self)?;
        // A replay may be of an event that is in the log no more.
        let (unfinished, ..) = unfinished.span(self, signed(pruned_through.get()))?;
        Ok(StoreStatistics {
            log,
            pruned_through,
            finished: log.events.saturating_sub(unsigned(unfinished)),
            by_type: self.events_by_type()?,
            aggregates: unsigned(queries::count_aggregates(&mut self.conn)?),
            size: None,
        })
    }

    fn events_by_type(&mut self) -> QueryResult<BTreeMap<String, u64>> {
        let mut by_type = BTreeMap::new();
        let after = signed(self.pruned_through()?.get());
        for (key, events) in queries::events_by_type(&mut self.conn, after)? {
            let name = match key {
                Some(key) => self.names.event_type(&mut self.conn, key)?,
                None => None,
            };
            // A name that is damaged away is told like one that an event has lost.
            *by_type
                .entry(name.unwrap_or_default().to_string())
                .or_default() += unsigned(events);
        }
        Ok(by_type)
    }

    /// The latest attempts of the processing log.
    pub(crate) fn processing_log(
        &mut self,
        subscription: Option<&str>,
        limit: usize,
    ) -> QueryResult<Vec<ProcessingOutcome>> {
        let rows = queries::processing(&mut self.conn, subscription, limit)?;
        rows.into_iter().map(processing_outcome).collect()
    }

    /// What is kept of every subscription.
    pub(crate) fn subscriptions(&mut self) -> QueryResult<Vec<StoredSubscription>> {
        let rows = queries::named_subscriptions(&mut self.conn)?;
        let mut stored = Vec::with_capacity(rows.len());
        for (row, name) in rows {
            let id = row.subscription_id;
            let unfinished = Unfinished::of(self, slice::from_ref(&row), Some(id))?;
            let (lag, ..) = unfinished.span(self, 0)?;
            let paused = row.paused.as_deref().map(pause_reason).transpose()?;
            stored.push(StoredSubscription {
                name: name.into(),
                through: Position::new(unsigned(row.through)),
                lag: unsigned(lag),
                dead: unsigned(queries::count_dead_letters(&mut self.conn, id)?),
                paused,
                version: row.version.and_then(|version| u32::try_from(version).ok()),
            });
        }
        Ok(stored)
    }

    pub(crate) fn dead_letters(
        &mut self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> QueryResult<Vec<DeadLetter>> {
        let Some(filter) = self.letter_filter(query)? else {
            return Ok(Vec::new());
        };
        let rows = queries::dead_letters(&mut self.conn, &filter, limit)?;
        rows.into_iter()
            .map(|(row, name)| self.dead_letter(row, &name))
            .collect()
    }

    pub(crate) fn dead_letter_groups(
        &mut self,
        query: &DeadLetterQuery,
    ) -> QueryResult<Vec<DeadLetterGroup>> {
        let Some(filter) = self.letter_filter(query)? else {
            return Ok(Vec::new());
        };
        let rows = queries::dead_letter_groups(&mut self.conn, &filter)?;
        let time = |micros: Option<i64>| Timestamp::from_micros(micros.unwrap_or_default());
        let group = |(name, error, letters, first, last): GroupRow| DeadLetterGroup {
            subscription: name.into(),
            error: error.into(),
            letters: unsigned(letters),
            dead_at: time(first)..=time(last),
        };
        Ok(rows.into_iter().map(group).collect())
    }

    /// `None` where no letter can be meant: none is of a type or an aggregate that the log does not
    /// know.
    fn letter_filter<'a>(
        &mut self,
        query: &'a DeadLetterQuery,
    ) -> QueryResult<Option<LetterFilter<'a>>> {
        let conn = &mut self.conn;
        let event_type = match &query.event_type {
            Some(name) => Some(queries::event_type_key(conn, name)?),
            None => None,
        };
        let aggregate = match &query.aggregate {
            Some(aggregate) => Some(self.names.key(conn, aggregate)?),
            None => None,
        };
        let is_known = event_type != Some(None) && aggregate != Some(None);
        Ok(is_known.then(|| LetterFilter {
            query,
            event_type: event_type.flatten(),
            aggregate: aggregate.flatten(),
        }))
    }

    fn dead_letter(&mut self, row: DeadLetterRow, subscription: &str) -> QueryResult<DeadLetter> {
        let event = self.event_at(Position::new(unsigned(row.position)))?;
        let event = event.ok_or_else(|| broken("a dead letter without its event"))?;
        let reason = DeadLetterReason::parse(&row.reason);
        Ok(DeadLetter {
            number: unsigned(row.dead_letter_id),
            subscription: subscription.into(),
            event: Arc::new(event),
            reason: reason.ok_or_else(|| broken("a dead letter without a known reason"))?,
            attempts: count(row.attempts),
            error: row.error,
            first_attempt_at: Timestamp::from_micros(row.first_attempt_at),
            dead_at: Timestamp::from_micros(row.dead_at),
        })
    }
}

fn processing_outcome(row: ProcessingRow) -> QueryResult<ProcessingOutcome> {
    let id = <[u8; 16]>::try_from(row.event_id);
    let result = AttemptResult::from_stored(&row.result, row.note);
    Ok(ProcessingOutcome {
        subscription: row.subscription.into(),
        event_id: EventId::from_bytes(id.map_err(|_| broken("an attempt without an event"))?),
        position: Some(Position::new(unsigned(row.position))),
        attempt: count(row.attempt),
        result: result.ok_or_else(|| broken("an attempt without a known result"))?,
        ended_at: Timestamp::from_micros(row.ended_at),
        took: Duration::from_micros(unsigned(row.took)),
    })
}

/// Why a subscription is paused, as stored.
pub(crate) fn pause_reason(why: &str) -> QueryResult<PauseReason> {
    PauseReason::parse(why).ok_or_else(|| broken("a pause without a known reason"))
}

/// A number of attempts, as stored.
pub(crate) fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The error that the database holds something it cannot hold.
pub(crate) fn broken(what: &'static str) -> diesel::result::Error {
    diesel::result::Error::DeserializationError(what.into())
}
