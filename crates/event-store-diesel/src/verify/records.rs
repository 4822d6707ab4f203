//! What is kept beside the log and the deliveries: names of event types, attempts, and runs.

use diesel::QueryResult;
use domain_events::{AttemptResult, MAX_NAME_BYTES};

use super::{Check, PAGE, Page};
use crate::{
    queries,
    session::Session,
    verification::{Row, Rule},
};

/// The names of event types.
#[derive(Default)]
pub(super) struct EventTypes {
    last: i64,
}

/// The attempts of the processing log.
#[derive(Default)]
pub(super) struct Processing {
    last: i64,
}

/// The runs.
#[derive(Default)]
pub(super) struct Runs {
    last: i64,
}

impl Check for EventTypes {
    const TABLE: &'static str = "de_event_types";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let rows = queries::event_types_after(&mut session.conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for (key, name) in rows {
            self.last = key;
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                page.find(Self::TABLE, Row::Number(key), Rule::Name);
            }
        }
        Ok(page)
    }
}

impl Check for Processing {
    const TABLE: &'static str = "de_processing";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let rows = queries::processing_after(&mut session.conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for (id, event_id, attempt, result) in rows {
            self.last = id;
            let mut find = |rule| page.find(Self::TABLE, Row::Number(id), rule);
            if event_id.len() != 16 {
                find(Rule::NoEvent);
            }
            if attempt < 1 {
                find(Rule::NoAttempt);
            }
            if AttemptResult::from_stored(&result, None).is_none() {
                find(Rule::AttemptResult);
            }
        }
        Ok(page)
    }
}

impl Check for Runs {
    const TABLE: &'static str = "de_runs";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let given = queries::head(conn)?;
        let rows = queries::runs_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        for (run, repeats_through) in rows {
            self.last = run;
            if !(0..=given).contains(&repeats_through) {
                page.find(Self::TABLE, Row::Number(run), Rule::Repeats { given });
            }
        }
        Ok(page)
    }
}
