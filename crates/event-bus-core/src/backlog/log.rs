//! A backlog in the log: however many events wait, one row stands for them (durable, R1).

use std::sync::Arc;

use domain_events::{
    DeliveryChange, DeliveryOutcome, EventEnvelope, EventId, Position, Recorded, StoreError,
    Timestamp, Version, WaitingDelivery,
};

use super::{First, MOST_KEPT, make};
use crate::{
    after::After,
    attempt::{Decision, Given},
    blocked::{Behind, Stand},
    dead_letters::mourn,
    engine::{AFTER_FAULT, Engine, Stores, discard},
    mailboxes::BacklogStart,
    say::say,
    seat::Worker,
    state::State,
    timers::Due,
    worker::{count, dead_letter},
};

/// Delivers a dead letter again where one is the first delivery; else reads the aggregate's events
/// from the first unfinished one on, and delivers them.
pub(super) async fn deliver_all(
    engine: &Arc<Engine>,
    worker: &Worker,
    stores: &Stores,
    start: &BacklogStart,
) {
    let Some(here) = engine.step(|state, _| state.here(start)) else {
        return;
    };
    if let Some(replay) = here.replay {
        if !engine.step(|state, after| state.may_replay(start, after)) {
            return;
        }
        return deliver_again(engine, worker, stores, start, (replay, here)).await;
    }
    let Here {
        version,
        through: known_through,
        ..
    } = here;
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
        if recorded.position < here.from {
            engine.step(|state, _| state.skip_in_log(start, recorded));
            discard(envelope);
            continue;
        }
        if here.replay.is_some() {
            end = None;
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
            engine.step(|state, after| state.advance_in_log(start, recorded, false, None, after));
        }
        discard(envelope);
        if !goes_on {
            return;
        }
    }
    engine.step(|state, after| state.rest_of_log(start, end, after));
}

/// Delivers a dead letter again.
async fn deliver_again(
    engine: &Arc<Engine>,
    worker: &Worker,
    stores: &Stores,
    start: &BacklogStart,
    (position, here): (Position, Here),
) {
    let envelope = match stores.events.at(position).await {
        Ok(envelope) => envelope.map(Arc::new),
        Err(error) => return after_fault(engine, start, &error),
    };
    let recorded = envelope.as_ref().and_then(|it| it.recorded());
    let (Some(envelope), Some(recorded)) = (envelope, recorded) else {
        // Dead letters are kept, and so are their events (R8).
        return engine.step(|state, after| state.drop_replay(start, position, after));
    };
    let goes_on = deliver(engine, worker, start, &envelope, recorded, here).await;
    discard(envelope);
    if goes_on {
        engine.step(|state, after| state.rest_of_log(start, None, after));
    }
}

/// Where a backlog in the log stands.
struct Here {
    from: Position,
    replay: Option<Position>,
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
    let is_replay = here.replay.is_some();
    let given = Given {
        envelope,
        attempt: 1,
        may_be_repeat: position <= here.repeats_through,
        is_replay,
    };
    if here.first.attempts == 0 && position <= here.uncounted && !is_replay {
        engine.step(|_, _| {
            subscribed.steps.matching.up();
            subscribed.steps.left.up();
        });
    }
    let Some(made) = make(engine, worker, start, here.first, given).await else {
        return false;
    };
    let mut told = None;
    let (outcome, change) = match made.decision {
        Decision::Retry(delay, ref error) => {
            let waiting = WaitingDelivery {
                position,
                aggregate: start.aggregate.clone(),
                attempts: made.attempt,
                first_attempt_at: made.first_attempt_at(),
                due_at: Timestamp::now().after(delay),
                last_error: error.clone(),
                is_replay,
            };
            let change = Some(DeliveryChange::Waiting(id, waiting));
            engine.step(|state, after| state.wait(start, &made, delay, change, after));
            return false;
        }
        Decision::Pause(_) => return false,
        Decision::Done(outcome) => {
            count(
                worker,
                subscribed,
                outcome,
                Timestamp::now().since(recorded.at),
            );
            let had_row = here.first.attempts > 0 || is_replay;
            let finished = had_row.then_some(DeliveryChange::Finished(id, position));
            (outcome, finished)
        }
        Decision::GiveUp(reason, ref error) => {
            let began = made.first_attempt_at();
            let error = error.clone();
            let letter = dead_letter(subscribed, envelope, reason, made.attempt, began, error);
            told = Some(letter.clone());
            (
                DeliveryOutcome::Dead,
                Some(DeliveryChange::Dead(id, letter)),
            )
        }
    };
    let goes_on = engine.step(|state, after| {
        subscribed.steps.left.down();
        if outcome == DeliveryOutcome::Dead {
            subscribed.note_dead();
        }
        state.advance_in_log(start, recorded, is_replay, change, after);
        let pipeline = state.pipelines.get_mut(subscribed.pipeline);
        if let Some(cursor) = pipeline.and_then(|it| it.cursor.as_mut()) {
            let record = cursor.resolve_left(position, subscribed, outcome);
            after.told.extend(record);
        }
        match outcome {
            DeliveryOutcome::Dead => state.after_dead_letter(start, envelope.id(), recorded, after),
            _ => state.park_again(start, after),
        }
    });
    if let Some(letter) = told {
        mourn(subscribed, &letter);
    }
    goes_on
}

impl State {
    fn here(&mut self, start: &BacklogStart) -> Option<Here> {
        let pipeline = self.pipelines.get_mut(start.subscribed.pipeline)?;
        let repeats_through = pipeline.cursor.as_ref()?.repeats_through;
        let blocked = pipeline
            .mailboxes
            .blocked(start.mailbox, &start.subscribed)?;
        let Behind::Log {
            from,
            version,
            through,
            ..
        } = blocked.behind
        else {
            return None;
        };
        Some(Here {
            from,
            replay: blocked.first_replay(),
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
        is_replay: bool,
        change: Option<DeliveryChange>,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(start.subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        let Some(blocked) = mailboxes.blocked(start.mailbox, &start.subscribed) else {
            return;
        };
        blocked.end_first(is_replay);
        if let Behind::Log {
            from,
            version,
            passed_over,
            ..
        } = &mut blocked.behind
            && !is_replay
        {
            (*from, *version) = (done.position.next(), done.version.next());
            *passed_over = passed_over.saturating_sub(1);
            // It may not have been read again as yet, and is not to be delivered when it is.
            self.subscriptions.covered(&start.subscribed, done.position);
        }
        if change.is_some() {
            let row = blocked.row(&start.aggregate);
            self.unsaved.change(change.into_iter().chain(row), None);
            after.saver = true;
        } else {
            // Saved as any success is, and not only with the last of the page (R2, R3).
            blocked.has_moved = true;
            after.saver |= self.unsaved.moved();
        }
    }

    /// Goes on behind an event that was given out before the block.
    fn skip_in_log(&mut self, start: &BacklogStart, done: Recorded) {
        let behind = self.backlog(start).map(|blocked| &mut blocked.behind);
        if let Some(Behind::Log { version, .. }) = behind {
            *version = done.version.next();
        }
    }

    /// Forgets a replay of what is not in the log any more.
    fn drop_replay(&mut self, start: &BacklogStart, position: Position, after: &mut After) {
        if let Some(blocked) = self.backlog(start) {
            blocked.end_first(true);
        }
        start.subscribed.steps.left.down();
        let finished = |id| DeliveryChange::Finished(id, position);
        self.unsaved.change(start.subscribed.id.map(finished), None);
        self.rest_of_log(start, None, after);
    }

    /// Does to those behind a delivery that was given up what the failure policy says. Returns whether
    /// the next may follow.
    fn after_dead_letter(
        &mut self,
        start: &BacklogStart,
        event: EventId,
        recorded: Recorded,
        after: &mut After,
    ) -> bool {
        let BacklogStart {
            mailbox,
            subscribed,
            ..
        } = start;
        self.follow_policy(*mailbox, subscribed, event, Some(recorded), after);
        let blocked = self.backlog(start);
        !blocked.is_some_and(|blocked| matches!(blocked.stand(), Stand::Parked(_)))
    }

    /// Parks the backlog again where it was parked behind another dead letter than the one that was
    /// delivered. Returns whether the next may follow: else it is.
    fn park_again(&mut self, start: &BacklogStart, after: &mut After) -> bool {
        let Some(blocked) = self.backlog(start).filter(|it| it.replays.is_empty()) else {
            return true;
        };
        match blocked.parked_again.take() {
            Some(by) => self.park(start.mailbox, &start.subscribed, by, None, after),
            None => return true,
        }
        false
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
        let is_done = (from > through || end == Some(through)) && blocked.replays.is_empty();
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
    engine.store_fails(error.kind(), &error.to_string());
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
