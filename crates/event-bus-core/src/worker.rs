//! A worker: takes what is ready, runs it, acts on how it ended.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain_events::{
    DeadLetter, DeadLetterReason, DeliveryChange, DeliveryOutcome, EventEnvelope, Timestamp,
    WaitingDelivery,
};

use crate::{
    attempt::{Decision, attempt, decide},
    backlog,
    engine::Engine,
    lifecycle::Phase,
    mailboxes::{Behind, Blocked, Round, Start},
    subscriptions::Subscribed,
    timers::Due,
};

/// Works until the bus is stopped.
pub(crate) async fn run(engine: Arc<Engine>) {
    let mut kept = None;
    loop {
        let start = match kept.take() {
            Some(start) => Some(start),
            None => engine.next_start().await,
        };
        kept = match start {
            None => return,
            Some(Start::Round(round)) => lead(&engine, round).await,
            Some(Start::Backlog(start)) => {
                backlog::work_off(&engine, start).await;
                None
            }
        };
    }
}

/// Leads an event through its subscriptions, one after the other, highest priority first (D3).
async fn lead(engine: &Arc<Engine>, round: Round) -> Option<Start> {
    let Round {
        record,
        passed_over,
        ..
    } = &round;
    let mut now = Instant::now();
    let mut finished = false;
    for (target, subscribed) in record.targets.iter().enumerate() {
        if passed_over.contains(&target) {
            continue;
        }
        // A handler that blocked its thread has outlived the stop.
        if engine.lifecycle.phase() >= Phase::Closing {
            return None;
        }
        let Some(_running) = subscribed.begin() else {
            finished |= record.resolve(target, DeliveryOutcome::Stopped);
            record.tell();
            continue;
        };
        let (ended, end) = attempt(
            engine,
            subscribed,
            &record.envelope,
            1,
            record.may_be_repeat,
            now,
        )
        .await;
        let age = end - now;
        now = end;
        let policy = subscribed.subscription.retry_policy();
        match decide(ended, policy, 1, age, fastrand::f64()) {
            Decision::Done(outcome) => {
                count(
                    subscribed,
                    outcome,
                    now.saturating_duration_since(record.accepted_at),
                );
                finished |= record.resolve(target, outcome);
                record.tell();
            }
            Decision::Retry(delay, error) => block(engine, &round, target, age, delay, error),
            Decision::GiveUp(reason, error) => {
                let letter =
                    dead_letter(subscribed, &record.envelope, reason, 1, before(age), error);
                engine.give_up(letter, record, target);
            }
        }
    }
    engine.finish_round(round, finished)
}

/// Counts a delivery that is handled or skipped.
pub(crate) fn count(subscribed: &Subscribed, outcome: DeliveryOutcome, since_publish: Duration) {
    let meters = &subscribed.meters;
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

/// The moment this long ago.
pub(crate) fn before(age: Duration) -> Timestamp {
    let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(Timestamp::now().as_micros().saturating_sub(age))
}

/// Blocks a subscription on the aggregate whose event it failed to handle, until the retry is
/// through; durable, the delivery and all later ones of the aggregate are left to the log.
fn block(
    engine: &Engine,
    round: &Round,
    target: usize,
    age: Duration,
    delay: Duration,
    error: String,
) {
    let Round {
        record, mailbox, ..
    } = round;
    let subscribed = &record.targets[target];
    let first_attempt_at = before(age);
    let due = Due::after(delay, *mailbox, subscribed);
    let mut pipeline = engine.lock();
    if pipeline.is_closed {
        return;
    }
    subscribed.meters.waiting.up();
    let (Some(id), Some(recorded)) = (subscribed.id, record.envelope.recorded()) else {
        let behind = Behind::Memory([Arc::clone(record)].into());
        let blocked = Blocked::new(Arc::clone(subscribed), behind, 1, first_attempt_at);
        pipeline.mailboxes.block(*mailbox, blocked);
        drop(pipeline);
        return engine.timers.set(due);
    };
    let from = recorded.position;
    let behind = Behind::Log {
        from,
        version: recorded.version,
        through: from,
    };
    let aggregate = record.envelope.aggregate();
    let blocked = Blocked::new(Arc::clone(subscribed), behind, 1, first_attempt_at);
    let row = blocked.row(aggregate);
    pipeline.mailboxes.block(*mailbox, blocked);
    let waiting = WaitingDelivery {
        position: from,
        aggregate: aggregate.clone(),
        attempts: 1,
        first_attempt_at,
        due_at: Timestamp::now().after(delay),
        last_error: error,
    };
    // The rows and the leaving are one step, so that progress never passes without the rows (R1).
    if let Some(cursor) = &mut pipeline.cursor {
        cursor.change(
            [DeliveryChange::Waiting(id, waiting)]
                .into_iter()
                .chain(row),
            Some(due),
        );
    }
    let mut wake = pipeline.leave(record, target);
    drop(pipeline);
    wake.saver = true;
    engine.wake(wake);
}
