//! What deviates from success without being over: deliveries that wait, blocked aggregates, starts.

use diesel::{QueryResult, SqliteConnection};

use super::{
    Check, PAGE, Page,
    standings::{Delivery, Standings},
};
use crate::{
    queries::{self, BlockedRow, WaitingRow},
    session::Session,
    verification::{Row, Rule, Standing},
};

/// Deliveries that wait.
#[derive(Default)]
pub(super) struct Waiting {
    last: (i64, i64),
}

/// Blocked aggregates.
#[derive(Default)]
pub(super) struct Blocked {
    last: (i64, i64),
}

/// Deliveries that were started.
#[derive(Default)]
pub(super) struct Started {
    last: (i64, i64),
}

impl Check for Waiting {
    const TABLE: &'static str = "de_waiting";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let rows = queries::waiting_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        let mut standings = Standings::default();
        for row in rows {
            self.last = (row.subscription_id, row.position);
            let place = Row::Delivery {
                subscription: row.subscription_id,
                position: row.position,
            };
            for rule in broken_by_waiting(conn, &mut standings, &row)? {
                page.find(Self::TABLE, place.clone(), rule);
            }
        }
        Ok(page)
    }
}

fn broken_by_waiting(
    conn: &mut SqliteConnection,
    standings: &mut Standings,
    row: &WaitingRow,
) -> QueryResult<Vec<Rule>> {
    let mut broken = Vec::new();
    let (subscription, position) = (row.subscription_id, row.position);
    match row.attempts {
        ..0 => broken.push(Rule::Negative),
        0 if !row.is_replay => broken.push(Rule::NoAttempt),
        _ => {}
    }
    if let Some(progress) = standings.progress(conn, subscription)?
        && position > progress.through
    {
        let through = progress.through;
        broken.push(Rule::BehindProgress { through });
    }
    let Some((aggregate, version)) = queries::version_at(conn, position)? else {
        broken.push(Rule::NoEvent);
        return Ok(broken);
    };
    if aggregate != row.aggregate_key {
        broken.push(Rule::OtherAggregate);
    }
    let delivery = Delivery {
        subscription,
        position,
        aggregate,
    };
    for other in [Standing::Unfinished, Standing::Dead] {
        if standings.is(conn, delivery, other)? {
            broken.push(Rule::Twice(other));
        }
    }
    match queries::blocked_from(conn, subscription, aggregate)? {
        // In another order than per aggregate, a subscription has no block, and needs none.
        None if !queries::has_blocked(conn, subscription)? => {}
        None => broken.push(Rule::NotBlocked),
        // A replay goes before all that is blocked, and is none of it.
        Some(from) if row.is_replay && position >= from => {
            broken.push(Rule::Twice(Standing::Blocked));
        }
        Some(from) if !row.is_replay => {
            let before = queries::position_below(conn, aggregate, version)?;
            if position < from || before.is_some_and(|before| before >= from) {
                broken.push(Rule::NotFirst);
            }
        }
        Some(_) => {}
    }
    Ok(broken)
}

impl Check for Blocked {
    const TABLE: &'static str = "de_blocked";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let rows = queries::blocked_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for row in rows {
            self.last = (row.subscription_id, row.aggregate_key);
            let place = Row::Aggregate {
                subscription: row.subscription_id,
                aggregate: row.aggregate_key,
            };
            for rule in broken_by_blocked(conn, &row)? {
                page.find(Self::TABLE, place.clone(), rule);
            }
        }
        Ok(page)
    }
}

fn broken_by_blocked(conn: &mut SqliteConnection, row: &BlockedRow) -> QueryResult<Vec<Rule>> {
    let mut broken = Vec::new();
    let aggregate = row.aggregate_key;
    if row.from_position < 0 || row.from_version < 0 {
        broken.push(Rule::Negative);
    }
    if queries::aggregate(conn, aggregate)?.is_none() {
        broken.push(Rule::NoAggregate(aggregate));
    }
    let left_out = queries::position_below(conn, aggregate, row.from_version)?;
    if left_out.is_some_and(|position| position >= row.from_position) {
        broken.push(Rule::BlockedVersion);
    }
    if let Some(event) = &row.parked_behind
        && !is_dead_or_replayed(conn, row, event)?
    {
        broken.push(Rule::ParkedBehindNothing);
    }
    Ok(broken)
}

/// Whether an event is of the blocked aggregate, and a dead letter of the subscription or the
/// replay of one.
fn is_dead_or_replayed(
    conn: &mut SqliteConnection,
    row: &BlockedRow,
    event: &[u8],
) -> QueryResult<bool> {
    let Some((position, aggregate)) = queries::place_of(conn, event)? else {
        return Ok(false);
    };
    let subscription = row.subscription_id;
    let is_one = queries::has_open_letter(conn, subscription, position)?
        || queries::waits(conn, subscription, position)? == Some(true);
    Ok(is_one && aggregate == row.aggregate_key)
}

impl Check for Started {
    const TABLE: &'static str = "de_started";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let rows = queries::started_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for (subscription, position, unclean_ends) in rows {
            self.last = (subscription, position);
            let place = Row::Delivery {
                subscription,
                position,
            };
            if unclean_ends < 0 {
                page.find(Self::TABLE, place.clone(), Rule::Negative);
            }
            if queries::aggregate_at(conn, position)?.is_none() {
                page.find(Self::TABLE, place, Rule::NoEvent);
            }
        }
        Ok(page)
    }
}
