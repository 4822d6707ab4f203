//! A backlog in the log: however many events wait, one row stands for them (durable, R1).

use std::{sync::Arc, time::Duration};

use domain_events::{
    DeliveryChange, DeliveryOutcome, EventEnvelope, Position, Recorded, StoreError, Timestamp,
    Version, WaitingDelivery,
};

use super::{First, MOST_KEPT, make};
use crate::{
    after::After,
    attempt::{Decision, Given},
    blocked::{Behind, Stand},
    dead_letters::mourn,
    engine::{Engine, Stores, discard},
    mailboxes::BacklogStart,
    say::say,
    seat::Worker,
    state::State,
    timers::Due,
    worker::{count, dead_letter},
};

/// How long after a fault of the store its next use is tried.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// Reads the aggregate's events from the first unfinished one on, and delivers them.
pub(super) async fn deliver_all(
    engine: &Arc<Engine>,
    worker: &Worker,
    stores: &Stores,
    start: &BacklogStart,
) {
    let Some(Here {
        version,
        through: known_through,
        ..
    }) = engine.step(|state, _| state.here(start))
    else {
        return;
    };
    let versions = version..=Version::new(i64::MAX as u64);
    let reading = stores
        .events
        .read_aggregate(&start.aggregate, versions, MOST_KEPT);
    let page = match reading.await {
        Ok(page) => page,
        Err(error) => return after_fault(engine, start, &error),
    };
    let mut end = (page.len() < MOST_KEPT).then_some(known_through);
    for envelope in page {
        let envelope = Arc::new(envelope);
        let here = engine.step(|state, _| state.here(start));
        let (Some(here), Some(recorded)) = (here, envelope.recorded()) else {
            return;
        };
        if recorded.position > here.through {
            end = Some(here.through);
            break;
        }
        if !start.subscribed.may_go_on(Some(start.mailbox)) {
            end = None;
            break;
        }
        let mut goes_on = true;
        if start.subscribed.subscription.matches(&envelope) {
            goes_on = deliver(engine, worker, start, &envelope, recorded, here).await;
        } else {
            engine.step(|state, after| state.advance_in_log(start, recorded, None, after));
        }
        discard(envelope);
        if !goes_on {
            return;
        }
    }
    engine.step(|state, after| state.rest_of_log(start, end, after));
}

/// Where a backlog in the log stands.
struct Here {
    version: Version,
    through: Position,
    repeats_through: Position,
    first: First,
    uncounted: Position,
}

/// Makes one delivery. Returns whether the next may follow; else it failed and waits.
async fn deliver(
    engine: &Arc<Engine>,
    worker: &Worker,
    start: &BacklogStart,
    envelope: &Arc<EventEnvelope>,
    recorded: Recorded,
    here: Here,
) -> bool {
    let (position, subscribed) = (recorded.position, &start.subscribed);
    let Some(id) = subscribed.id else {
        return false;
    };
    let given = Given {
        envelope,
        attempt: 1,
        may_be_repeat: position <= here.repeats_through,
        is_replay: false,
    };
    if here.first.attempts == 0 && position <= here.uncounted {
        engine.step(|_, _| {
            subscribed.steps.matching.up();
            subscribed.steps.left.up();
        });
    }
    let Some(made) = make(engine, worker, start, here.first, given).await else {
        return false;
    };
    let (outcome, change) = match made.decision {
        Decision::Retry(delay, ref error) => {
            let waiting = WaitingDelivery {
                position,
                aggregate: start.aggregate.clone(),
                attempts: made.attempt,
                first_attempt_at: made.first_attempt_at(),
                due_at: Timestamp::now().after(delay),
                last_error: error.clone(),
            };
            let change = Some(DeliveryChange::Waiting(id, waiting));
            engine.step(|state, after| state.wait(start, &made, delay, change, after));
            return false;
        }
        Decision::Done(outcome) => {
            count(
                worker,
                subscribed,
                outcome,
                Timestamp::now().since(recorded.at),
            );
            let had_row = here.first.attempts > 0;
            let finished = had_row.then_some(DeliveryChange::Finished(id, position));
            (outcome, finished)
        }
        Decision::GiveUp(reason, ref error) => {
            let began = made.first_attempt_at();
            let error = error.clone();
            let letter = dead_letter(subscribed, envelope, reason, made.attempt, began, error);
            mourn(subscribed, &letter);
            (
                DeliveryOutcome::Dead,
                Some(DeliveryChange::Dead(id, letter)),
            )
        }
    };
    engine.step(|state, after| {
        subscribed.steps.left.down();
        state.advance_in_log(start, recorded, change, after);
        let pipeline = state.pipelines.get_mut(subscribed.pipeline);
        if let Some(cursor) = pipeline.and_then(|it| it.cursor.as_mut()) {
            let record = cursor.resolve_left(position, subscribed, outcome);
            after.told.extend(record);
        }
    });
    true
}

impl State {
    fn here(&mut self, start: &BacklogStart) -> Option<Here> {
        let pipeline = self.pipelines.get_mut(start.subscribed.pipeline)?;
        let repeats_through = pipeline.cursor.as_ref()?.repeats_through;
        let blocked = pipeline
            .mailboxes
            .blocked(start.mailbox, &start.subscribed)?;
        let Behind::Log {
            version, through, ..
        } = blocked.behind
        else {
            return None;
        };
        Some(Here {
            version,
            through,
            repeats_through,
            first: First::of(blocked),
            uncounted: blocked.uncounted,
        })
    }

    /// Moves on behind a delivery. What is to be committed of it moves the row in the same commit,
    /// so that a delivery is never both over and blocked (R1).
    fn advance_in_log(
        &mut self,
        start: &BacklogStart,
        done: Recorded,
        change: Option<DeliveryChange>,
        after: &mut After,
    ) {
        let Some(blocked) = self.backlog(start) else {
            return;
        };
        blocked.attempts = 0;
        if let Behind::Log { from, version, .. } = &mut blocked.behind {
            (*from, *version) = (done.position.next(), done.version.next());
        }
        if change.is_some() {
            let row = blocked.row(&start.aggregate);
            self.unsaved.change(change.into_iter().chain(row), None);
            after.saver = true;
        }
    }

    /// Ends the block where everything passed over is done, else gives others their turn. `end` is
    /// how far the aggregate was passed over when no more of its events were found up to there.
    fn rest_of_log(&mut self, start: &BacklogStart, end: Option<Position>, after: &mut After) {
        let Some(id) = start.subscribed.id else {
            return;
        };
        let Some(blocked) = self.backlog(start) else {
            return;
        };
        let Behind::Log { from, through, .. } = blocked.behind else {
            return;
        };
        let is_done = from > through || end == Some(through);
        let row = blocked.row(&start.aggregate);
        after.saver = true;
        if !is_done {
            self.unsaved.change(row, None);
            return self.again(start, after);
        }
        if let Some(pipeline) = self.pipelines.get_mut(start.subscribed.pipeline) {
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.unblock(start.mailbox, &start.subscribed);
        }
        let unblocked = DeliveryChange::Unblocked(id, start.aggregate.clone());
        self.unsaved.change([unblocked], None);
        after.quiet = true;
    }
}

fn after_fault(engine: &Engine, start: &BacklogStart, error: &StoreError) {
    let BacklogStart {
        mailbox,
        subscribed,
        aggregate,
    } = start;
    let name = subscribed.name();
    say!(error, "backlog not read", "subscription" = name, "aggregate" = aggregate,
        "again.in.ms" = AFTER_FAULT.as_millis(); error);
    engine.step(|state, after| {
        if let Some(pipeline) = state.pipelines.get_mut(subscribed.pipeline) {
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.set_stand(*mailbox, subscribed, Stand::Waiting);
        }
        after
            .due
            .push(Due::after(AFTER_FAULT, *mailbox, subscribed));
        after.quiet = true;
    });
}
