//! Dead letters: each is of an event, and one that is open is nothing else.

use diesel::{QueryResult, SqliteConnection};
use domain_events::DeadLetterReason;

use super::{
    Check, PAGE, Page,
    standings::{Delivery, Standings},
};
use crate::{
    queries::{self, KeptLetter},
    session::Session,
    verification::{Row, Rule, Standing},
};

/// Dead letters, open or settled.
#[derive(Default)]
pub(super) struct Letters {
    last: i64,
}

impl Check for Letters {
    const TABLE: &'static str = "de_dead_letters";

    fn page(&mut self, session: &mut Session) -> QueryResult<Page> {
        let conn = &mut session.conn;
        let rows = queries::letters_after(conn, self.last, PAGE)?;
        let mut page = Page::of(rows.len());
        let mut standings = Standings::default();
        for row in rows {
            self.last = row.dead_letter_id;
            for rule in broken_by(conn, &mut standings, &row)? {
                page.find(Self::TABLE, Row::Number(row.dead_letter_id), rule);
            }
        }
        Ok(page)
    }
}

fn broken_by(
    conn: &mut SqliteConnection,
    standings: &mut Standings,
    row: &KeptLetter,
) -> QueryResult<Vec<Rule>> {
    let mut broken = Vec::new();
    if DeadLetterReason::parse(&row.reason).is_none() {
        broken.push(Rule::LetterReason);
    }
    if row.attempts < 0 {
        broken.push(Rule::Negative);
    }
    let (is_open, settled_as) = (row.settled_at.is_none(), row.settled_as.as_deref());
    match settled_as {
        None if is_open => {}
        Some("replayed" | "discarded") if !is_open => {}
        _ => broken.push(Rule::Settlement),
    }
    let (subscription, position) = (row.subscription_id, row.position);
    let Some(aggregate) = queries::aggregate_at(conn, position)? else {
        broken.push(Rule::NoEvent);
        return Ok(broken);
    };
    if !is_open {
        return Ok(broken);
    }
    if let Some(progress) = standings.progress(conn, subscription)?
        && position > progress.through
    {
        let through = progress.through;
        broken.push(Rule::BehindProgress { through });
    }
    let delivery = Delivery {
        subscription,
        position,
        aggregate,
    };
    // That it does not wait, the table of what waits says.
    for other in [Standing::Unfinished, Standing::Blocked] {
        if standings.is(conn, delivery, other)? {
            broken.push(Rule::Twice(other));
        }
    }
    Ok(broken)
}
