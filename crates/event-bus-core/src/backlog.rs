//! Working off what a blocked subscription has not handled of an aggregate: alone, in order.

mod log;
mod memory;

use std::{sync::Arc, time::Duration};

use domain_events::{DeliveryChange, DeliveryOutcome, Timestamp};
use tokio::time::Instant;

use crate::{
    after::After,
    attempt::{Attempt, Decision, Given, attempt, decide},
    blocked::{Behind, Blocked, Stand},
    breaker,
    engine::Engine,
    mailboxes::{BacklogStart, MailboxId},
    pipeline::Pipeline,
    seat::Worker,
    state::State,
    subscribed::{Begun, Subscribed},
    timers::Due,
    transactional::Turn,
    worker::say_paused,
};

/// How many deliveries a worker makes before others get their turn.
const MOST_KEPT: usize = 16;

/// Makes the deliveries that are due, until one fails, none is left, or others should have a turn.
pub(crate) async fn work_off(engine: &Arc<Engine>, worker: &Worker, start: &BacklogStart) {
    let begun = start.subscribed.begin(worker.seat(), Some(start.mailbox));
    let _running = match begun {
        Begun::Runs(running) => running,
        Begun::Held(_running) | Begun::Removed(_running) => {
            return engine.step(|state, after| state.again(start, after));
        }
    };
    let in_log = engine.look(|state| {
        let pipeline = state.pipelines.get(start.subscribed.pipeline);
        pipeline.is_some_and(Pipeline::leaves_to_log)
    });
    match engine.stores.as_ref().filter(|_| in_log) {
        None => memory::deliver_all(engine, worker, start).await,
        Some(stores) => log::deliver_all(engine, worker, stores, start).await,
    }
    if start.subscribed.is_probe(start.mailbox) {
        engine.step(|state, after| state.probe_over(start, after));
    }
}

/// Where the first delivery of a backlog stands.
#[derive(Clone, Copy)]
struct First {
    attempts: u32,
    began: Instant,
}

impl First {
    fn of(blocked: &Blocked) -> Self {
        let Blocked {
            attempts, began, ..
        } = *blocked;
        Self { attempts, began }
    }
}

/// One attempt made.
struct Made {
    attempt: u32,
    is_replay: bool,
    began: Instant,
    decision: Decision,
    end: Instant,
    /// Held until the decision was acted on.
    _turn: Option<Turn>,
}

impl Made {
    fn first_attempt_at(&self) -> Timestamp {
        crate::blocked::before(self.began.elapsed())
    }
}

/// Makes an attempt of the first delivery. `None` where it does not count, and the backlog waits: a
/// probe that failed (F8), an event that is newer than this program (F7).
async fn make(
    engine: &Arc<Engine>,
    worker: &Worker,
    start: &BacklogStart,
    first: First,
    given: Given<'_>,
) -> Option<Made> {
    let subscribed = &start.subscribed;
    let is_probe = subscribed.is_probe(start.mailbox);
    let number = first.attempts + 1;
    let began = if first.attempts == 0 {
        Instant::now()
    } else {
        first.began
    };
    let is_replay = given.is_replay;
    let given = Given {
        attempt: number,
        ..given
    };
    let Attempt {
        ended, end, turn, ..
    } = attempt(engine, worker, subscribed, given, Instant::now(), || {}).await;
    let speaks = breaker::speaks(&ended);
    match speaks {
        _ if !is_probe => breaker::note(engine, subscribed, speaks),
        Some(true) => breaker::close(engine, subscribed),
        Some(false) => {
            engine.step(|state, after| state.probe_failed(start, after));
            return None;
        }
        None => {}
    }
    let policy = subscribed.subscription.retry_policy();
    let decision = decide(ended, policy, number, began.elapsed(), fastrand::f64());
    if let Decision::Pause(why) = decision {
        engine.step(|state, after| {
            state.pause(subscribed, why, after);
            state.again(start, after);
        });
        say_paused(subscribed, why);
        return None;
    }
    Some(Made {
        attempt: number,
        is_replay,
        began,
        decision,
        end,
        _turn: turn,
    })
}

impl State {
    fn backlog(&mut self, start: &BacklogStart) -> Option<&mut Blocked> {
        let pipeline = self.pipelines.get_mut(start.subscribed.pipeline)?;
        pipeline.mailboxes.blocked(start.mailbox, &start.subscribed)
    }

    /// Lets the backlog wait for its next attempt; durable, that starts after the commit (F4).
    fn wait(
        &mut self,
        start: &BacklogStart,
        made: &Made,
        delay: Duration,
        change: Option<DeliveryChange>,
        after: &mut After,
    ) {
        let subscribed = &start.subscribed;
        let due = Due::after(delay, start.mailbox, subscribed);
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        mailboxes.set_stand(start.mailbox, subscribed, Stand::Waiting);
        let Some(blocked) = mailboxes.blocked(start.mailbox, subscribed) else {
            return;
        };
        blocked.is_at_replay = made.is_replay;
        (blocked.attempts, blocked.began) = (made.attempt, made.began);
        after.told.extend(blocked.note_rest());
        let row = blocked.row(&start.aggregate);
        if change.is_some() {
            self.unsaved
                .change(change.into_iter().chain(row), Some(due));
            after.saver = true;
        } else {
            after.due.push(due);
        }
        after.quiet = true;
        self.drop_if_removed(start.mailbox, subscribed, after);
    }

    /// Gives others their turn, or has the backlog held where its subscription is paused, or dropped
    /// where it is removed.
    fn again(&mut self, start: &BacklogStart, after: &mut After) {
        let BacklogStart {
            mailbox,
            subscribed,
            ..
        } = start;
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        mailboxes.set_stand(*mailbox, subscribed, Stand::Waiting);
        if subscribed.is_removed() {
            return self.drop_if_removed(*mailbox, subscribed, after);
        }
        let ready = mailboxes.go(*mailbox, subscribed);
        if let Some(blocked) = mailboxes.blocked(*mailbox, subscribed) {
            after.told.extend(blocked.note_rest());
        }
        pipeline.wake_workers(usize::from(ready), after);
        after.quiet |= !ready;
    }

    /// Whether a replay may be made: that it is asked for has to be committed before. Else it comes after
    /// the next commit.
    fn may_replay(&mut self, start: &BacklogStart, after: &mut After) -> bool {
        let saves = self.unsaved.saves();
        let Some(blocked) = self.backlog(start).filter(|it| it.replays_from > saves) else {
            return true;
        };
        let attempts = blocked.attempts;
        let BacklogStart {
            mailbox,
            subscribed,
            ..
        } = start;
        if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.set_stand(*mailbox, subscribed, Stand::Waiting);
        }
        // An earlier run may have made some.
        let due = match attempts {
            0 => Due::now(*mailbox, subscribed),
            _ => Due::after(Duration::ZERO, *mailbox, subscribed),
        };
        self.unsaved.change(None, Some(due));
        after.saver = true;
        false
    }

    /// Drops what a removed subscription has left behind, unless a worker is at it, which then does.
    pub(crate) fn drop_if_removed(
        &mut self,
        mailbox: MailboxId,
        subscribed: &Arc<Subscribed>,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        let at_rest = |blocked: &mut Blocked| blocked.stand() != Stand::Running;
        let is_left = mailboxes.blocked(mailbox, subscribed).is_some_and(at_rest);
        if !(is_left && subscribed.is_removed()) {
            return;
        }
        let Some((aggregate, ended)) = mailboxes.unblock(mailbox, subscribed) else {
            return;
        };
        after.quiet = true;
        if let Some(row) = ended.row(&aggregate) {
            self.unsaved.change([row], None);
            after.saver = true;
        }
        let mut covered = ended.covered(std::iter::empty());
        covered.sort_unstable();
        if let Behind::Memory(behind) = ended.behind {
            for record in behind {
                let position = record.envelope.position();
                let has_row = position.is_some_and(|it| covered.binary_search(&it).is_ok());
                if let Some(target) = record.target(subscribed).filter(|_| has_row) {
                    self.leave(subscribed.pipeline, &record, target, after);
                    after.told.push(record);
                    continue;
                }
                if let Some(target) = record.target(subscribed)
                    && record.resolve(target, DeliveryOutcome::Stopped)
                {
                    self.finish(subscribed.pipeline, &record, after);
                }
                after.tell(record);
            }
        }
        self.admit(after);
    }
}
