//! The histories of aggregates: versions without gaps, in the order of the log, up to the head.

use diesel::QueryResult;

use super::{Check, PAGE, Page};
use crate::{
    queries::{self, VersionRow},
    session::Session,
    verification::{Row, Rule},
};

/// The versions of all aggregates, aggregate by aggregate.
#[derive(Default)]
pub(super) struct Versions {
    last: Option<VersionRow>,
}

/// The rows of aggregates.
#[derive(Default)]
pub(super) struct Aggregates {
    last: i64,
}

impl Check for Versions {
    // The rows are those of the log, which are counted there.
    const TABLE: &'static str = "de_events";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let is_pruned = queries::first_position(conn)?.is_some_and(|first| first > 1);
        let after = self
            .last
            .map_or((i64::MIN, i64::MIN), |it| (it.aggregate, it.version));
        // Beside what was pruned since the page before, nothing can be missing.
        let mut before = match self.last {
            Some(row) if queries::has_version(conn, row.aggregate, row.version)? => Some(row),
            _ => None,
        };
        let rows = queries::versions_after(conn, after, PAGE)?;
        let mut page = Page::of(rows.len());
        for row in rows {
            let place = Row::Version {
                aggregate: row.aggregate,
                version: row.version,
            };
            let same = before.filter(|before| before.aggregate == row.aggregate);
            match same {
                Some(before) if row.version != before.version + 1 => {
                    page.find(Self::TABLE, place, Rule::VersionGap);
                }
                Some(before) if row.position <= before.position => {
                    page.find(Self::TABLE, place, Rule::VersionOrder);
                }
                None if row.version != 1 && !is_pruned => {
                    page.find(Self::TABLE, place, Rule::VersionGap);
                }
                _ => {}
            }
            before = Some(row);
        }
        self.last = before.or(self.last);
        page.rows = 0;
        Ok(page)
    }
}

impl Check for Aggregates {
    const TABLE: &'static str = "de_aggregates";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let is_pruned = queries::first_position(conn)? != Some(1);
        let rows = queries::aggregates_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for (key, head) in rows {
            self.last = key;
            match queries::last_version(conn, key)? {
                Some(last) if last != head => {
                    page.find(Self::TABLE, Row::Number(key), Rule::Head { head, last });
                }
                None if !is_pruned => page.find(Self::TABLE, Row::Number(key), Rule::NoEvents),
                _ => {}
            }
        }
        Ok(page)
    }
}
