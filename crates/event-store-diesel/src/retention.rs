//! Pruning the log: the oldest events go, step by step, as far as nobody is still to have them (R8).

use diesel::{QueryResult, SqliteConnection};
use domain_events::{Position, Promise, Pruned, Retention, StoreError, promise};

use crate::{
    SqliteEventStore, failure, positions, queries,
    rows::{signed, unsigned},
    selection,
    session::broken,
    transaction::Transaction,
    writer::{Fault, Request},
};

/// How many events are removed in one transaction: others write between two.
const STEP: usize = 1_000;

impl SqliteEventStore {
    pub(crate) async fn prune_steps(&self, keep: Retention) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        let mut next = Some(0);
        while let Some(after) = next {
            let (promise, taken) = promise();
            self.hand_over(PruneRequest {
                keep,
                after,
                step: Step::default(),
                promise,
            });
            let step = taken.await.unwrap_or_else(|| Err(failure::closed()))?;
            pruned.events += step.events;
            pruned.through = step.through;
            next = step.next;
        }
        Ok(pruned)
    }
}

/// The next step through the events that are to go, from the oldest on: those that an earlier pruning
/// has kept for dead letters may be let go now.
struct PruneRequest {
    keep: Retention,
    /// Where the step before this one has ended.
    after: i64,
    step: Step,
    promise: Promise<Result<Step, StoreError>>,
}

#[derive(Clone, Copy, Default)]
struct Step {
    events: u64,
    through: Position,
    /// Where the next step begins, if there is one.
    next: Option<i64>,
}

impl Request for PruneRequest {
    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        // What was appended in this transaction may be all there is.
        tx.write_rows()?;
        // Asked anew in each step: somebody may have begun at the beginning meanwhile.
        let last = last_not_kept(tx, self.keep)?.min(finished_by_all(tx.conn)?);
        self.step = step(tx.conn, self.after, last)?;
        Ok(())
    }

    fn answer(self: Box<Self>, end: Result<(), Fault>) {
        let Self { step, promise, .. } = *self;
        promise.keep(end.map(|()| step).map_err(Fault::into_error));
    }
}

fn step(conn: &mut SqliteConnection, after: i64, last: i64) -> QueryResult<Step> {
    let end = queries::last_of_stretch(conn, after, last, STEP)?;
    let pruned = queries::pruned_through(conn)?;
    // Behind the last event of a full step there may be more.
    let through = end.unwrap_or(last);
    let events = queries::prune_events(conn, after, through)?;
    queries::prune_settled_letters(conn, after, through)?;
    if through > pruned {
        queries::update_pruned_through(conn, through)?;
    }
    Ok(Step {
        events: events as u64,
        through: Position::new(unsigned(pruned.max(through))),
        next: end,
    })
}

/// The last position that is not to be kept.
fn last_not_kept(tx: &mut Transaction<'_>, keep: Retention) -> QueryResult<i64> {
    let head = queries::head(tx.conn)?;
    let last = match keep {
        Retention::Latest(events) => head.saturating_sub(signed(events)),
        Retention::Since(time) => {
            selection::first_recorded_from(tx.conn, tx.names, time.as_micros())? - 1
        }
        Retention::After(position) => signed(position.get()),
    };
    Ok(last.clamp(0, head))
}

/// Up to here every subscription has finished everything, but for dead letters and their replays.
fn finished_by_all(conn: &mut SqliteConnection) -> QueryResult<i64> {
    let mut first = queries::first_of_exceptions(conn)?.unwrap_or(i64::MAX);
    for row in queries::subscriptions(conn)? {
        let unfinished = positions::decode(&row.unfinished);
        let unfinished = unfinished.ok_or_else(|| broken("progress that cannot be read"))?;
        let open = unfinished.first().map(|position| signed(position.get()));
        first = first
            .min(open.unwrap_or(i64::MAX))
            .min(row.through.saturating_add(1));
    }
    Ok(first - 1)
}
