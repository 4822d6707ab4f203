//! A page of an aggregate's history, and whether an event is missing from it: versions have no gaps.

use std::ops::RangeInclusive;

use diesel::QueryResult;

use crate::{
    queries,
    rows::FoundRows,
    session::{Session, broken},
};

/// Up to `limit` events of the aggregate with this key, with these versions, after a position. An
/// error where one is missing (F7): a damaged key or version leads to no row, or to another one's.
pub(crate) fn page(
    session: &mut Session,
    key: i64,
    versions: &RangeInclusive<i64>,
    after: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let conn = &mut session.conn;
    // Before the page, which then reaches at least so far.
    let head = queries::head_version(conn, key)?;
    let rows = queries::events_of_aggregate(conn, key, versions, after, limit)?;
    let (first, last) = (*versions.start().max(&1), *versions.end().min(&head));
    let is_missing = match found(session, &rows, first)? {
        Found::WithGap => true,
        Found::Nothing => rows.len() < limit && first <= last && is_lost(session, key, last)?,
        Found::From(start, end) => {
            rows.len() < limit && end < last || start > first && is_lost(session, key, start - 1)?
        }
        Found::OnlyDamage => false,
    };
    match is_missing {
        true => Err(broken("a history with an event missing")),
        false => Ok(rows),
    }
}

/// What a page says of the versions it has.
enum Found {
    Nothing,
    /// No event that could be trusted.
    OnlyDamage,
    WithGap,
    /// All from the first to the last.
    From(i64, i64),
}

/// What `rows` say; they should begin with this version.
fn found(session: &mut Session, rows: &FoundRows, first: i64) -> QueryResult<Found> {
    let mut start = None;
    for (row, place) in rows.iter().zip(0..) {
        if row.version() == start.unwrap_or(first) + place {
            start = start.or(Some(first));
            continue;
        }
        // One that is damaged is at its place all the same.
        if session.names.intact_time(&mut session.conn, row)?.is_none() {
            continue;
        }
        if start.is_some() {
            return Ok(Found::WithGap);
        }
        start = Some(row.version() - place);
    }
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    Ok(match start {
        Some(start) => Found::From(start, start + count - 1),
        None if rows.is_empty() => Found::Nothing,
        None => Found::OnlyDamage,
    })
}

/// Whether an event is neither there nor can have been pruned, which begins with the oldest (R8).
fn is_lost(session: &mut Session, key: i64, version: i64) -> QueryResult<bool> {
    let conn = &mut session.conn;
    Ok(queries::pruned_through(conn)? == 0 && !queries::has_version(conn, key, version)?)
}
