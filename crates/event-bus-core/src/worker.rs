//! A worker: takes what is ready, runs it, acts on how it ended.

use std::{sync::Arc, time::Duration};

use domain_events::{
    DeadLetter, DeadLetterReason, DeliveryChange, DeliveryOutcome, EventEnvelope, Timestamp,
    WaitingDelivery,
};
use tokio::time::Instant;

use crate::{
    after::After,
    attempt::{Attempt, Decision, Given, attempt, decide},
    backlog,
    blocked::{Behind, Blocked, Stand},
    dead_letters::mourn,
    engine::{Engine, discard},
    lifecycle::Phase,
    mailboxes::{MailboxId, Start},
    record::Record,
    run::Run,
    seat::Worker,
    state::State,
    subscriptions::{Begun, Subscribed},
    timers::Due,
};

/// How long a worker leads the events of one aggregate before it looks what else there is.
const LONGEST_RUN: Duration = Duration::from_micros(100);

/// Works until there is nothing more to be done in the pipeline.
pub(crate) async fn run(engine: Arc<Engine>, worker: Worker) {
    let mut run = Run::default();
    while let Some(start) = engine.next(&worker, &mut run).await {
        match start {
            Start::Run => {
                if lead_all(&engine, &worker, &mut run).await.is_none() {
                    return;
                }
            }
            Start::Backlog(start) => {
                backlog::work_off(&engine, &worker, &start).await;
                // Perhaps the last to hold a subscription that has gone.
                discard(start);
            }
        }
        // A worker that always finds something lets others have the thread now and then.
        tokio::task::coop::consume_budget().await;
    }
}

/// Leads the events of a run through their subscriptions, as long as nothing speaks against it.
/// `None` where the bus was stopped meanwhile.
async fn lead_all(engine: &Arc<Engine>, worker: &Worker, run: &mut Run) -> Option<()> {
    let began = Instant::now();
    let mut now = began;
    for place in 0..run.records.len() {
        let led = lead(engine, worker, run, place, &mut now).await?;
        run.done += 1;
        run.finished |= u32::from(led.finished) << place;
        // A subscription that was blocked meanwhile is passed over from the next event on; and a
        // handler that took its time makes others wait who may be more urgent.
        if led.blocked || led.waited || now.saturating_duration_since(began) > LONGEST_RUN {
            break;
        }
    }
    Some(())
}

/// What came of leading an event.
#[derive(Default)]
struct Led {
    /// Whether no delivery holds the event any more.
    finished: bool,
    /// Whether a subscription was blocked on the aggregate.
    blocked: bool,
    /// Whether a handler did not come to its end at once.
    waited: bool,
}

/// Leads an event through its subscriptions, one after the other, highest priority first (D3).
async fn lead(
    engine: &Arc<Engine>,
    worker: &Worker,
    run: &mut Run,
    place: usize,
    now: &mut Instant,
) -> Option<Led> {
    let record = &Arc::clone(&run.records[place]);
    let mut led = Led::default();
    for (target, subscribed) in record.targets.iter().enumerate() {
        if run.passed_over.contains(&target) {
            continue;
        }
        // A handler that blocked its thread has outlived the stop.
        if engine.lifecycle.phase() >= Phase::Closing {
            return None;
        }
        let running = match subscribed.begin(worker.seat()) {
            Begun::Runs(running) => running,
            Begun::Removed(_running) => {
                led.finished |= record.resolve(target, DeliveryOutcome::Stopped);
                record.tell();
                continue;
            }
            Begun::Paused(_running) => {
                led.blocked = true;
                engine.step(|state, after| state.hold(run.mailbox, record, target, after));
                continue;
            }
        };
        let began = *now;
        let waiting = || {
            led.waited = true;
            // What is done holds no room while a handler waits.
            if run.settled < run.done {
                engine.step(|state, after| state.settle(worker.pipeline, run, after));
            }
        };
        let made = attempt(
            engine,
            worker,
            subscribed,
            Given::of(record),
            began,
            waiting,
        )
        .await;
        *now = made.end;
        led.act(engine, worker, run.mailbox, record, target, made);
        drop(running);
    }
    Some(led)
}

impl Led {
    /// Acts on how a first attempt ended.
    fn act(
        &mut self,
        engine: &Engine,
        worker: &Worker,
        mailbox: MailboxId,
        record: &Arc<Record>,
        target: usize,
        made: Attempt,
    ) {
        let subscribed = &record.targets[target];
        let policy = subscribed.subscription.retry_policy();
        match decide(made.ended, policy, 1, made.took, fastrand::f64()) {
            Decision::Done(outcome) => {
                count(worker, subscribed, outcome, made.end - record.accepted_at);
                self.finished |= record.resolve(target, outcome);
                record.tell();
            }
            Decision::Retry(delay, error) => {
                self.blocked = true;
                let failed = Failed {
                    mailbox,
                    record,
                    target,
                    took: made.took,
                };
                engine.step(|state, after| state.block(&failed, delay, error, after));
            }
            Decision::GiveUp(reason, error) => {
                let first_attempt_at = crate::blocked::before(made.took);
                let letter = dead_letter(
                    subscribed,
                    &record.envelope,
                    reason,
                    1,
                    first_attempt_at,
                    error,
                );
                mourn(subscribed, &letter);
                self.blocked = true;
                engine.step(|state, after| state.give_up(mailbox, letter, record, target, after));
            }
        }
    }
}

/// A first attempt that failed.
pub(crate) struct Failed<'a> {
    mailbox: MailboxId,
    record: &'a Arc<Record>,
    target: usize,
    took: Duration,
}

/// Counts a delivery that is handled or skipped.
pub(crate) fn count(
    worker: &Worker,
    subscribed: &Subscribed,
    outcome: DeliveryOutcome,
    since_publish: Duration,
) {
    let meters = subscribed.meters.of(worker.number);
    if outcome == DeliveryOutcome::Skipped {
        meters.skipped.up();
    } else {
        meters.handled.up();
        meters.publish_to_handled.record(since_publish);
    }
}

/// What is kept of a delivery given up.
pub(crate) fn dead_letter(
    subscribed: &Subscribed,
    envelope: &EventEnvelope,
    reason: DeadLetterReason,
    attempts: u32,
    first_attempt_at: Timestamp,
    error: String,
) -> DeadLetter {
    DeadLetter {
        subscription: Arc::clone(subscribed.name()),
        position: envelope.position(),
        event_id: envelope.id(),
        event_type: envelope.event_type().to_owned(),
        aggregate: envelope.aggregate().clone(),
        reason,
        attempts,
        error,
        first_attempt_at,
        dead_at: Timestamp::now(),
    }
}

impl State {
    /// Blocks a subscription on the aggregate whose event it failed to handle, until the retry is
    /// through; durable, the delivery and all later ones of the aggregate are left to the log.
    fn block(&mut self, failed: &Failed<'_>, delay: Duration, error: String, after: &mut After) {
        let Failed {
            mailbox,
            record,
            target,
            took,
        } = *failed;
        let subscribed = &record.targets[target];
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        if self.is_closed {
            return;
        }
        subscribed.meters.shared().waiting.up();
        let now = Instant::now();
        let began = now.checked_sub(took).unwrap_or(now);
        let due = Due::after(delay, mailbox, subscribed);
        let blocked = Blocked::new(subscribed, Behind::of(record), Stand::Waiting);
        let blocked = blocked.attempted(1, began);
        let Some((id, recorded)) = subscribed.id.zip(record.envelope.recorded()) else {
            after.due.push(due);
            after.told.extend(blocked.note_rest());
            pipeline.mailboxes.block(mailbox, blocked);
            return self.drop_if_removed(mailbox, subscribed, after);
        };
        let aggregate = record.envelope.aggregate();
        let waiting = WaitingDelivery {
            position: recorded.position,
            aggregate: aggregate.clone(),
            attempts: 1,
            first_attempt_at: blocked.first_attempt_at(),
            due_at: Timestamp::now().after(delay),
            last_error: error,
        };
        // The rows and the leaving are one step, so that progress never passes without the rows (R1).
        let rows = [DeliveryChange::Waiting(id, waiting)];
        self.unsaved
            .change(rows.into_iter().chain(blocked.row(aggregate)), Some(due));
        pipeline.mailboxes.block(mailbox, blocked);
        after.saver = true;
        self.leave(subscribed.pipeline, record, target, after);
        self.drop_if_removed(mailbox, subscribed, after);
    }

    /// Holds a delivery until its subscription is resumed. Where it has been already, the delivery
    /// waits for the end of the run alone.
    pub(crate) fn hold(
        &mut self,
        mailbox: MailboxId,
        record: &Arc<Record>,
        target: usize,
        after: &mut After,
    ) {
        let subscribed = &record.targets[target];
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        if self.is_closed {
            return;
        }
        let blocked = Blocked::new(subscribed, Behind::of(record), Stand::AfterRun);
        let row = blocked.row(record.envelope.aggregate());
        pipeline.mailboxes.block(mailbox, blocked);
        if let Some(blocked) = pipeline.mailboxes.blocked(mailbox, subscribed) {
            after.told.extend(blocked.note_rest());
        }
        if pipeline.cursor.is_some() {
            self.unsaved.change(row, None);
            after.saver = true;
            self.leave(subscribed.pipeline, record, target, after);
        }
        self.drop_if_removed(mailbox, subscribed, after);
    }
}

impl Behind {
    /// The backlog that begins, and ends, with this event.
    pub(crate) fn of(record: &Arc<Record>) -> Self {
        match record.envelope.recorded() {
            None => Self::Memory([Arc::clone(record)].into()),
            Some(recorded) => Self::Log {
                from: recorded.position,
                version: recorded.version,
                through: recorded.position,
            },
        }
    }
}
