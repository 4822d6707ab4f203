//! The log: every event is what was written, and none is missing between the first and the last.

use diesel::QueryResult;

use super::{Check, PAGE, Page};
use crate::{
    names::Names,
    queries,
    rows::FoundRow,
    session::Session,
    verification::{Row, Rule},
};

/// Payloads of so many bytes end a page, however few they are.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The events in the order of the log.
#[derive(Default)]
pub(super) struct Log {
    last: i64,
    /// Of its own: what a connection has read earlier may be damaged by now.
    names: Names,
    /// When the last event that is not damaged was recorded.
    recorded_at: Option<i64>,
}

impl Check for Log {
    const TABLE: &'static str = "de_events";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        // Of what was pruned, be it since the page before, nothing is missing.
        let pruned = queries::pruned_through(conn)?;
        let rows = queries::events_after(conn, self.last, PAGE, PAGE_BYTES)?;
        let mut page = Page::of(rows.len());
        page.is_last = rows.is_empty();
        for row in rows.iter() {
            let position = row.position();
            if position != self.last + 1 && position > pruned + 1 {
                page.find(Self::TABLE, Row::Number(position), Rule::PositionGap);
            }
            self.last = position;
            self.check_row(session, row, &mut page)?;
        }
        if page.is_last {
            self.check_end(session, pruned, &mut page)?;
        }
        Ok(page)
    }
}

impl Log {
    fn check_row(
        &mut self,
        session: &mut Session,
        row: FoundRow<'_>,
        page: &mut Page,
    ) -> QueryResult<()> {
        let (names, conn) = (&mut self.names, &mut session.conn);
        let mut find = |rule| page.find(Self::TABLE, Row::Number(row.position()), rule);
        let (event_type, aggregate) = (row.type_key(), row.aggregate_key());
        if names.event_type(conn, event_type)?.is_none() {
            find(Rule::NoEventType(event_type));
        }
        if names.aggregate(conn, aggregate)?.is_none() {
            find(Rule::NoAggregate(aggregate));
        }
        match names.intact_time(conn, row)? {
            None => find(Rule::Checksum),
            Some(at) if self.recorded_at.is_some_and(|before| at < before) => {
                find(Rule::RecordedEarlier);
            }
            at => self.recorded_at = at,
        }
        Ok(())
    }

    fn check_end(&self, session: &mut Session, pruned: i64, page: &mut Page) -> QueryResult<()> {
        let (given, last) = (queries::head(&mut session.conn)?, self.last);
        // A log can be pruned to nothing.
        if last.max(pruned) != given {
            page.find(
                Self::TABLE,
                Row::Number(last),
                Rule::LastPosition { last, given },
            );
        }
        Ok(())
    }
}
