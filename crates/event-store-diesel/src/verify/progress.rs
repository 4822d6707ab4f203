//! The progress of subscriptions: it can be read, and what is unfinished is in the log.

use diesel::{QueryResult, SqliteConnection};
use domain_events::PauseReason;

use super::{Check, PAGE, Page, standings::Progress};
use crate::{
    queries::{self, SubscriptionRow},
    session::Session,
    verification::{Row, Rule},
};

/// The subscriptions, each with its unfinished positions: a page has some of these.
#[derive(Default)]
pub(super) struct Subscriptions {
    /// The subscription that is checked, and the position up to which it is.
    at: (i64, i64),
}

impl Check for Subscriptions {
    const TABLE: &'static str = "de_subscriptions";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let mut page = Page::default();
        let (id, after) = self.at;
        let Some(row) = queries::subscription_from(conn, id)? else {
            page.is_last = true;
            return Ok(page);
        };
        // The one of the page before may be gone.
        let after = if row.subscription_id == id { after } else { 0 };
        let left = check(conn, &row, after, &mut page)?;
        self.at = match left {
            Some(position) => (row.subscription_id, position),
            None => (row.subscription_id + 1, 0),
        };
        page.rows = usize::from(left.is_none());
        Ok(page)
    }
}

/// Checks some of the unfinished positions after one. Returns the last of them if there are more.
fn check(
    conn: &mut SqliteConnection,
    row: &SubscriptionRow,
    after: i64,
    page: &mut Page,
) -> QueryResult<Option<i64>> {
    let (table, id) = (Subscriptions::TABLE, row.subscription_id);
    let paused = row.paused.as_deref().map(PauseReason::parse);
    if after == 0 && paused == Some(None) {
        page.find(table, Row::Number(id), Rule::PauseReason);
    }
    let Some(progress) = Progress::read(row.through, &row.unfinished) else {
        let through = row.through;
        page.find(table, Row::Number(id), Rule::Progress { through });
        return Ok(None);
    };
    let mut left = progress.unfinished.iter().filter(|it| **it > after);
    let mut last = after;
    for &position in left.by_ref().take(PAGE) {
        last = position;
        check_unfinished(conn, id, position, page)?;
    }
    Ok(left.next().map(|_| last))
}

fn check_unfinished(
    conn: &mut SqliteConnection,
    subscription: i64,
    position: i64,
    page: &mut Page,
) -> QueryResult<()> {
    // That it does not wait and is not dead, the tables of those say; where its aggregate is blocked, it
    // is blocked.
    if queries::aggregate_at(conn, position)?.is_none() {
        let row = Row::Delivery {
            subscription,
            position,
        };
        page.find(Subscriptions::TABLE, row, Rule::NoEvent);
    }
    Ok(())
}
