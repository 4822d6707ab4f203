//! What a query means in the rows of the log.

use std::{collections::BTreeSet, ops::RangeInclusive};

use diesel::{QueryResult, SqliteConnection};
use domain_events::{CorrelationId, EventQuery, Position, Timestamp};

use crate::{
    history,
    names::Names,
    positions,
    queries::{self, Span, SubscriptionRow},
    rows::{FoundRow, FoundRows, signed},
    session::{Session, broken},
};

/// The rows of the log that a query means.
pub(crate) enum Selection {
    Nothing,
    Positions(RangeInclusive<i64>),
    /// The key of an aggregate, and versions.
    History(i64, RangeInclusive<i64>),
    /// The key of a type.
    OfType(i64),
    Chain(CorrelationId),
    Unfinished(Unfinished),
}

/// Positions that some subscription has not finished.
pub(crate) struct Unfinished {
    /// All after this one, and of those before it
    pub(crate) after: i64,
    /// these.
    pub(crate) before: BTreeSet<i64>,
}

impl Selection {
    pub(crate) fn of(session: &mut Session, query: &EventQuery) -> QueryResult<Self> {
        let found = match query {
            EventQuery::Log => Some(Self::Positions(1..=i64::MAX)),
            EventQuery::History(aggregate, versions) => {
                let first = signed(versions.start().get());
                let last = signed(versions.end().get());
                let key = session.names.key(&mut session.conn, aggregate)?;
                key.map(|key| Self::History(key, first..=last))
            }
            EventQuery::OfType(name) => {
                queries::event_type_key(&mut session.conn, name)?.map(Self::OfType)
            }
            EventQuery::Correlated(id) => Some(Self::Chain(*id)),
            EventQuery::Recorded(time) => Some(Self::Positions(recorded(session, time)?)),
            EventQuery::Unfinished => Some(Self::Unfinished(Unfinished::read(session)?)),
        };
        Ok(found.unwrap_or(Self::Nothing))
    }

    /// Up to `limit` of the rows, after a position, in the order of the log.
    pub(crate) fn page(
        &self,
        session: &mut Session,
        after: Position,
        limit: usize,
    ) -> QueryResult<FoundRows> {
        let (conn, after) = (&mut session.conn, signed(after.get()));
        match self {
            Self::Nothing => Ok(FoundRows::default()),
            Self::Positions(range) => {
                let after = after.max(range.start() - 1);
                queries::events_between(conn, after, *range.end(), limit)
            }
            Self::History(key, versions) => history::page(session, *key, versions, after, limit),
            Self::OfType(key) => of_type(conn, *key, after, limit),
            Self::Chain(id) => chain(conn, *id, after, limit),
            Self::Unfinished(unfinished) => unfinished.page(session, after, limit),
        }
    }

    /// How many rows there are after a position, and the positions of the first and the last.
    pub(crate) fn span(&self, session: &mut Session, after: i64) -> QueryResult<Span> {
        let conn = &mut session.conn;
        match self {
            Self::Nothing => Ok((0, None, None)),
            Self::Positions(range) => {
                let range = *range.start().max(&(after + 1))..=*range.end();
                queries::span_between(conn, &range)
            }
            Self::History(key, versions) => queries::span_of_aggregate(conn, *key, versions, after),
            Self::OfType(key) => queries::span_of_type(conn, *key, after),
            Self::Chain(id) => span_of_chain(conn, *id, after),
            Self::Unfinished(unfinished) => unfinished.span(session, after),
        }
    }
}

/// The positions of what was recorded at this time. Times ascend with the positions, so that they
/// are found by halving, with no index that every append would have to pay for.
fn recorded(
    session: &mut Session,
    time: &RangeInclusive<Timestamp>,
) -> QueryResult<RangeInclusive<i64>> {
    let Session { conn, names } = session;
    let first = first_recorded_from(conn, names, time.start().as_micros())?;
    let last = match time.end().as_micros().checked_add(1) {
        Some(end) => first_recorded_from(conn, names, end)? - 1,
        None => i64::MAX,
    };
    Ok(first..=last)
}

/// The first position that was recorded at or after a time, or the one after the last.
pub(crate) fn first_recorded_from(
    conn: &mut SqliteConnection,
    names: &mut Names,
    time: i64,
) -> QueryResult<i64> {
    let (mut low, mut high) = (1, queries::head(conn)? + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match intact_from(conn, names, middle)? {
            Some((position, at)) if at < time => low = position + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// Position and time of the first event at or after a position that is not damaged: what a damaged
/// one says of its time could lead past events that are not.
fn intact_from(
    conn: &mut SqliteConnection,
    names: &mut Names,
    mut position: i64,
) -> QueryResult<Option<(i64, i64)>> {
    while let Some(row) = queries::event_from(conn, position)?.first() {
        if let Some(at) = names.intact_time(conn, row)? {
            return Ok(Some((row.position(), at)));
        }
        position = row.position() + 1;
    }
    Ok(None)
}

/// How many positions are searched for a type in one transaction.
const STRETCH: i64 = 16_384;

/// Events of a type, searched for in one stretch of the log after the other: an index of types
/// would cost every append more than this costs those who seldom ask.
fn of_type(
    conn: &mut SqliteConnection,
    key: i64,
    mut after: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let head = queries::head(conn)?;
    let mut page = FoundRows::default();
    while after < head && page.len() < limit {
        let last = after.saturating_add(STRETCH);
        let left = limit - page.len();
        page.append(queries::events_of_type(conn, key, after, last, left)?);
        after = last;
    }
    Ok(page)
}

fn chain(
    conn: &mut SqliteConnection,
    id: CorrelationId,
    after: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let mut page = queries::events_of_chain(conn, id, after, limit)?;
    let beginning = queries::beginning(conn, id, after)?;
    if !beginning.is_empty() {
        page.append(beginning);
        page.sort_in_last();
        page.truncate(limit);
    }
    Ok(page)
}

fn span_of_chain(conn: &mut SqliteConnection, id: CorrelationId, after: i64) -> QueryResult<Span> {
    let (count, first, last) = queries::span_of_chain(conn, id, after)?;
    let beginning = queries::beginning(conn, id, after)?;
    let Some(at) = beginning.first().map(FoundRow::position) else {
        return Ok((count, first, last));
    };
    let first = first.map_or(at, |first| first.min(at));
    let last = last.map_or(at, |last| last.max(at));
    Ok((count + 1, Some(first), Some(last)))
}

impl Unfinished {
    pub(crate) fn read(session: &mut Session) -> QueryResult<Self> {
        let rows = queries::subscriptions(&mut session.conn)?;
        Self::of(session, &rows, None)
    }

    /// What some of the subscriptions have not finished; `only` is the number of the one, where it is
    /// one.
    pub(crate) fn of(
        session: &mut Session,
        rows: &[SubscriptionRow],
        only: Option<i64>,
    ) -> QueryResult<Self> {
        let conn = &mut session.conn;
        let after = rows.iter().map(|row| row.through).min();
        let after = after.unwrap_or(i64::MAX);
        let mut before = BTreeSet::new();
        for row in rows {
            let unfinished = positions::decode(&row.unfinished);
            let unfinished = unfinished.ok_or_else(|| broken("progress that cannot be read"))?;
            before.extend(unfinished.iter().map(|position| signed(position.get())));
        }
        before.extend(queries::waiting_positions(conn, only)?);
        before.extend(queries::blocked_positions(conn, only)?);
        // What a subscription waits for may not be in the log yet.
        let last = after.min(queries::head(conn)?);
        before.retain(|&position| position <= last);
        Ok(Self { after, before })
    }

    fn page(&self, session: &mut Session, after: i64, limit: usize) -> QueryResult<FoundRows> {
        let conn = &mut session.conn;
        let mut page = FoundRows::default();
        for &position in self.before.iter().filter(|&&it| it > after).take(limit) {
            page.append(queries::event_at(conn, position)?);
        }
        let (after, left) = (after.max(self.after), limit.saturating_sub(page.len()));
        page.append(queries::events_between(conn, after, i64::MAX, left)?);
        Ok(page)
    }

    /// How many there are after a position, and the positions of the first and the last.
    pub(crate) fn span(&self, session: &mut Session, after: i64) -> QueryResult<Span> {
        let behind = self.after.max(after).saturating_add(1)..=i64::MAX;
        let (count, first, last) = match self.after {
            i64::MAX => (0, None, None),
            _ => queries::span_between(&mut session.conn, &behind)?,
        };
        let before = self.before.range(after.saturating_add(1)..).copied();
        let first = before.clone().next().or(first);
        let last = last.or_else(|| before.clone().next_back());
        let before = i64::try_from(before.count()).unwrap_or(i64::MAX);
        Ok((count + before, first, last))
    }
}
