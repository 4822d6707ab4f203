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
        let pruned = queries::pruned_through(conn)?;
        let after = self
            .last
            .map_or((i64::MIN, i64::MIN), |it| (it.aggregate, it.version));
        let rows = queries::versions_after(conn, after, PAGE)?;
        let mut page = Page::of(rows.len());
        for row in rows {
            let place = Row::Version {
                aggregate: row.aggregate,
                version: row.version,
            };
            let before = self.last.filter(|it| it.aggregate == row.aggregate);
            // Before the first, there was none.
            let (version, position) = before.map_or((0, 0), |it| (it.version, it.position));
            // Behind what was pruned, be it kept for a dead letter, others may have been.
            if row.version != version + 1 && position >= pruned {
                page.find(Self::TABLE, place, Rule::VersionGap);
            } else if row.position <= position {
                page.find(Self::TABLE, place, Rule::VersionOrder);
            }
            self.last = Some(row);
        }
        page.rows = 0;
        Ok(page)
    }
}

impl Check for Aggregates {
    const TABLE: &'static str = "de_aggregates";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let pruned = queries::pruned_through(conn)?;
        let rows = queries::aggregates_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for (key, head) in rows {
            self.last = key;
            match queries::last_version(conn, key)? {
                // Behind what was pruned, be it kept for a dead letter, others may have been.
                Some((last, at)) if last != head && (last > head || at >= pruned) => {
                    page.find(Self::TABLE, Row::Number(key), Rule::Head { head, last });
                }
                None if pruned == 0 => page.find(Self::TABLE, Row::Number(key), Rule::NoEvents),
                _ => {}
            }
        }
        Ok(page)
    }
}
