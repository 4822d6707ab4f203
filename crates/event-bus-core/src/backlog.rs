//! Working off what a blocked subscription has not handled of an aggregate: alone, in order.

mod log;
mod memory;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain_events::{DeliveryChange, DeliveryOutcome, EventEnvelope, Timestamp};

use crate::{
    attempt::{Decision, attempt, decide},
    engine::{Engine, discard},
    mailboxes::{BacklogStart, Behind, Blocked},
    pipeline::{Pipeline, Wake},
    subscriptions::Subscribed,
    timers::Due,
};

/// How many deliveries a worker makes before others get their turn.
const MOST_KEPT: usize = 16;

/// Makes the deliveries that are due, until one fails, none is left, or others should have a turn.
pub(crate) async fn work_off(engine: &Arc<Engine>, start: BacklogStart) {
    let Some(_running) = start.subscribed.begin() else {
        return drop_backlog(engine, &start);
    };
    match &engine.stores {
        None => memory::deliver_all(engine, &start).await,
        Some(stores) => log::deliver_all(engine, stores, &start).await,
    }
}

/// One attempt made.
struct Made {
    attempt: u32,
    first_attempt_at: Timestamp,
    decision: Decision,
    end: Instant,
}

async fn make(
    engine: &Arc<Engine>,
    start: &BacklogStart,
    envelope: &Arc<EventEnvelope>,
    attempts: u32,
    first_attempt_at: Timestamp,
    may_repeat: bool,
    now: Instant,
) -> Made {
    let number = attempts + 1;
    let first_attempt_at = if attempts == 0 {
        Timestamp::now()
    } else {
        first_attempt_at
    };
    let (ended, end) = attempt(engine, &start.subscribed, envelope, number, may_repeat, now).await;
    let age = Timestamp::now().since(first_attempt_at);
    let policy = start.subscribed.subscription.retry_policy();
    let decision = decide(ended, policy, number, age, fastrand::f64());
    Made {
        attempt: number,
        first_attempt_at,
        decision,
        end,
    }
}

/// Lets the backlog wait for its next attempt; durable, that starts after the commit (F4).
fn wait(
    engine: &Engine,
    start: &BacklogStart,
    made: &Made,
    delay: Duration,
    change: Option<DeliveryChange>,
) {
    let subscribed = &start.subscribed;
    let due = Due::after(delay, start.mailbox, subscribed);
    if made.attempt == 1 {
        subscribed.meters.waiting.up();
    }
    let mut pipeline = engine.lock();
    let Pipeline {
        mailboxes, cursor, ..
    } = &mut *pipeline;
    mailboxes.wait(start.mailbox, subscribed);
    let Some(blocked) = mailboxes.blocked(start.mailbox, subscribed) else {
        return;
    };
    blocked.attempts = made.attempt;
    blocked.first_attempt_at = made.first_attempt_at;
    match cursor {
        Some(cursor) => cursor.change(
            change.into_iter().chain(blocked.row(&start.aggregate)),
            Some(due),
        ),
        None => engine.timers.set(due),
    }
    drop(pipeline);
    engine.wake(Wake {
        saver: true,
        quiet: true,
        ..Wake::default()
    });
}

fn again(engine: &Engine, start: &BacklogStart) {
    let mut pipeline = engine.lock();
    pipeline.mailboxes.wait(start.mailbox, &start.subscribed);
    let ready = pipeline.mailboxes.due(start.mailbox, &start.subscribed);
    drop(pipeline);
    engine.wake(Wake {
        workers: usize::from(ready),
        ..Wake::default()
    });
}

fn no_longer_waiting(subscribed: &Subscribed, attempts: u32) {
    if attempts > 0 {
        subscribed.meters.waiting.down();
    }
}

/// The subscription was removed: its backlog is nobody's.
fn drop_backlog(engine: &Engine, start: &BacklogStart) {
    let ended = engine
        .lock()
        .mailboxes
        .unblock(start.mailbox, &start.subscribed);
    engine.wake(Wake {
        quiet: true,
        ..Wake::default()
    });
    let Some(Blocked {
        behind: Behind::Memory(behind),
        ..
    }) = ended
    else {
        return;
    };
    for record in behind {
        if let Some(target) = record.target(&start.subscribed) {
            engine.resolve(&record, target, DeliveryOutcome::Stopped);
        }
        discard(record);
    }
}
