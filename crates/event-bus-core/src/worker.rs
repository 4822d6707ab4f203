//! A worker: takes what is ready, runs it, acts on how it ended.

use std::{sync::Arc, time::Duration};

use domain_events::{
    DeadLetter, DeadLetterReason, DeliveryOutcome, EventEnvelope, PauseReason, Timestamp,
};
use tokio::time::Instant;

use crate::{
    attempt::{Attempt, Decision, Given, attempt, decide},
    backlog, batches,
    blocking::Failed,
    breaker,
    dead_letters::mourn,
    engine::{Engine, discard},
    lifecycle::Phase,
    mailboxes::{MailboxId, Start},
    record::Record,
    run::Run,
    say::say,
    seat::Worker,
    subscribed::{Begun, Subscribed},
};

/// How long a worker leads the events of one aggregate before it looks what else there is.
const LONGEST_RUN: Duration = Duration::from_micros(100);

/// Works until there is nothing more to be done in the pipeline.
pub(crate) async fn run(engine: Arc<Engine>, worker: Worker) {
    let mut run = Run::default();
    loop {
        if let Some(batch) = worker.batch.filter(|batch| !batch.linger.is_zero())
            && let Some(start) = batches::company(&engine, &worker, batch).await
        {
            backlog::work_off(&engine, &worker, &start).await;
            discard(start);
            continue;
        }
        let Some(start) = engine.next(&worker, &mut run).await else {
            return;
        };
        match start {
            Start::Run => {
                let led = match worker.batch {
                    None => lead_all(&engine, &worker, &mut run).await,
                    Some(batch) => batches::lead(&engine, &worker, &mut run, batch).await,
                };
                if led.is_none() {
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
    let mut now = Instant::now();
    let long = now + LONGEST_RUN;
    for place in 0..run.records.len() {
        let led = lead(engine, worker, run, place, &mut now).await?;
        run.finished.push(led.finished);
        // A subscription that was blocked meanwhile is passed over from the next event on; and a
        // handler that took its time makes others wait who may be more urgent.
        if led.blocked || led.waited || now > long {
            break;
        }
    }
    Some(())
}

/// What came of leading an event.
#[derive(Default)]
pub(crate) struct Led {
    /// Whether no delivery holds the event any more.
    pub(crate) finished: bool,
    /// Whether a subscription was blocked on the aggregate.
    pub(crate) blocked: bool,
    /// Whether a delivery is done, and others of the event follow.
    done: bool,
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
    for (target, subscribed) in record.targets().iter().enumerate() {
        if run.passed_over.contains(&target) {
            continue;
        }
        // A handler that blocked its thread has outlived the stop.
        if engine.lifecycle.phase() >= Phase::Closing {
            return None;
        }
        let running = match subscribed.begin(worker.seat(), None) {
            Begun::Runs(running) => running,
            Begun::Removed(_running) => {
                led.finished |= record.resolve(target, DeliveryOutcome::Stopped);
                record.tell();
                continue;
            }
            Begun::Held(_running) => {
                led.blocked = true;
                engine.step(|state, after| state.hold(run.mailbox, record, target, after));
                continue;
            }
        };
        let began = *now;
        let waiting = || {
            led.waited = true;
            // What is done holds no room while a handler waits, and is saved meanwhile (R2).
            let is_unsaved = engine.stores.is_some() && led.done;
            if run.settled < run.done() || is_unsaved {
                engine.step(|state, after| {
                    state.settle(worker.pipeline, run, after);
                    after.saver |= is_unsaved && state.unsaved.progress();
                });
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
        breaker::note(engine, subscribed, breaker::speaks(&made.ended));
        led.act(engine, worker, run.mailbox, record, target, made);
        drop(running);
    }
    Some(led)
}

impl Led {
    /// Acts on how a first attempt ended.
    pub(crate) fn act(
        &mut self,
        engine: &Engine,
        worker: &Worker,
        mailbox: MailboxId,
        record: &Arc<Record>,
        target: usize,
        made: Attempt,
    ) {
        let subscribed = &record.targets()[target];
        let policy = subscribed.subscription.retry_policy();
        match decide(made.ended, policy, 1, made.took, fastrand::f64()) {
            Decision::Done(outcome) => {
                count(worker, subscribed, outcome, made.end - record.accepted_at);
                self.finished |= record.resolve(target, outcome);
                self.done = true;
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
            Decision::Pause(why) => {
                self.blocked = true;
                engine.step(|state, after| {
                    state.pause(subscribed, why, after);
                    state.hold(mailbox, record, target, after);
                });
                say_paused(subscribed, why);
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
                self.blocked = true;
                let told = letter.clone();
                let kept = engine
                    .step(|state, after| state.give_up(mailbox, letter, record, target, after));
                if kept {
                    mourn(subscribed, &told);
                }
            }
        }
    }
}

/// Says that a subscription is paused, and not because somebody asked for it.
pub(crate) fn say_paused(subscribed: &Subscribed, why: PauseReason) {
    say!(warn, "subscription paused", "subscription" = subscribed.name(); why);
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
    envelope: &Arc<EventEnvelope>,
    reason: DeadLetterReason,
    attempts: u32,
    first_attempt_at: Timestamp,
    error: String,
) -> DeadLetter {
    DeadLetter {
        number: 0,
        subscription: Arc::clone(subscribed.name()),
        event: Arc::clone(envelope),
        reason,
        attempts,
        error,
        first_attempt_at,
        dead_at: Timestamp::now(),
    }
}
