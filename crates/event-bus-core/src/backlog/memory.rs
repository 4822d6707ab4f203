//! A backlog in memory: the events themselves wait (volatile, or in another order than per aggregate).

use std::{sync::Arc, time::Duration};

use domain_events::{DeliveryChange, DeliveryOutcome, Timestamp, WaitingDelivery};

use super::{First, MOST_KEPT, Made, make};
use crate::{
    after::After,
    attempt::{Decision, Given},
    blocked::{Behind, Stand},
    dead_letters::mourn,
    engine::{Engine, discard},
    mailboxes::BacklogStart,
    record::Record,
    seat::Worker,
    state::State,
    subscribed::Subscribed,
    timers::Due,
    worker::{count, dead_letter},
};

/// Delivers the events that wait, from the first on.
pub(super) async fn deliver_all(engine: &Arc<Engine>, worker: &Worker, start: &BacklogStart) {
    let subscribed = &start.subscribed;
    for _ in 0..MOST_KEPT {
        if !subscribed.may_go_on(Some(start.mailbox)) {
            break;
        }
        let Some((record, first)) = engine.step(|state, after| state.first(start, after)) else {
            return;
        };
        let Some(target) = record.target(subscribed) else {
            return;
        };
        let Some(made) = make(engine, worker, start, first, Given::of(&record)).await else {
            return;
        };
        let goes_on = match made.decision {
            Decision::Retry(delay, ref error) => {
                let waits = waiting(&record, &made, delay, error);
                let waits = waits.and_then(|it| Some(DeliveryChange::Waiting(subscribed.id?, it)));
                return engine.step(|state, after| state.wait(start, &made, delay, waits, after));
            }
            // Made no decision of.
            Decision::Pause(_) => return,
            Decision::Done(outcome) => {
                count(worker, subscribed, outcome, made.end - record.accepted_at);
                let had_row = first.attempts > 0 || record.marks.is_replay;
                engine.step(|state, after| {
                    state.done(start, &record, target, outcome, after);
                    if had_row && let Some(row) = finished(subscribed, &record) {
                        state.unsaved.change([row], None);
                        after.saver = true;
                    }
                    state.advance(start, after)
                })
            }
            Decision::GiveUp(reason, ref error) => {
                let began = made.first_attempt_at();
                let error = error.clone();
                let letter = dead_letter(
                    subscribed,
                    &record.envelope,
                    reason,
                    made.attempt,
                    began,
                    error,
                );
                let told = letter.clone();
                let (kept, goes_on) = engine.step(|state, after| {
                    state.pop_first(start);
                    let kept = state.give_up(start.mailbox, letter, &record, target, after);
                    (kept, state.advance(start, after))
                });
                if kept {
                    mourn(subscribed, &told);
                }
                goes_on
            }
        };
        discard(record);
        if !goes_on {
            return;
        }
    }
    engine.step(|state, after| state.again(start, after));
}

/// The row of a delivery that waits for its next attempt; `None` on a volatile bus.
fn waiting(record: &Record, made: &Made, delay: Duration, error: &str) -> Option<WaitingDelivery> {
    Some(WaitingDelivery {
        position: record.envelope.position()?,
        aggregate: record.envelope.aggregate().clone(),
        attempts: made.attempt,
        first_attempt_at: made.first_attempt_at(),
        due_at: Timestamp::now().after(delay),
        last_error: error.to_owned(),
        is_replay: record.marks.is_replay,
    })
}

fn finished(subscribed: &Subscribed, record: &Record) -> Option<DeliveryChange> {
    let position = record.envelope.position()?;
    Some(DeliveryChange::Finished(subscribed.id?, position))
}

impl State {
    /// The first delivery; the block ends where there is none.
    fn first(&mut self, start: &BacklogStart, after: &mut After) -> Option<(Arc<Record>, First)> {
        let blocked = self.backlog(start)?;
        let Behind::Memory(behind) = &blocked.behind else {
            return None;
        };
        if let Some(record) = behind.front() {
            let found = (Arc::clone(record), First::of(blocked));
            let may_go = !found.0.marks.is_replay || self.may_replay(start, after);
            return may_go.then_some(found);
        }
        self.advance(start, after);
        None
    }

    /// Ends the first delivery with its outcome.
    fn done(
        &mut self,
        start: &BacklogStart,
        record: &Arc<Record>,
        target: usize,
        outcome: DeliveryOutcome,
        after: &mut After,
    ) {
        self.pop_first(start);
        if record.resolve(target, outcome) {
            self.finish(start.subscribed.pipeline, record, after);
            self.admit(after);
        }
        after.tell(Arc::clone(record));
    }

    fn pop_first(&mut self, start: &BacklogStart) {
        let Some(blocked) = self.backlog(start) else {
            return;
        };
        blocked.attempts = 0;
        if let Behind::Memory(behind) = &mut blocked.behind {
            // The worker holds the record, so that nothing of the user's is dropped here.
            behind.pop_front();
        }
    }

    /// Whether the backlog goes on at once: not where it is parked, and it ends with the last
    /// delivery.
    fn advance(&mut self, start: &BacklogStart, after: &mut After) -> bool {
        let Some(blocked) = self.backlog(start) else {
            return false;
        };
        if matches!(blocked.stand(), Stand::Parked(_)) {
            return false;
        }
        if let Some(by) = blocked.parked_again.take() {
            self.park(start.mailbox, &start.subscribed, by, None, after);
            return false;
        }
        if let Some(delay) = blocked.resume_next() {
            let subscribed = &start.subscribed;
            after.due.push(Due::after(delay, start.mailbox, subscribed));
            if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
                let mailboxes = &mut pipeline.mailboxes;
                mailboxes.set_stand(start.mailbox, subscribed, Stand::Waiting);
            }
            after.quiet = true;
            return false;
        }
        let is_over = blocked.is_empty();
        if is_over && let Some(pipeline) = self.pipelines.get_mut(start.subscribed.pipeline) {
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.unblock(start.mailbox, &start.subscribed);
            after.quiet = true;
        }
        !is_over
    }
}
