//! Working off what a blocked subscription has not handled of an aggregate: alone, in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain_events::{
    DeliveryChange, DeliveryOutcome, EventEnvelope, Position, Recorded, StoreError, Timestamp,
    Version, WaitingDelivery,
};

use crate::{
    attempt::{Decision, Ended, attempt, decide},
    engine::{Engine, Stores, discard},
    mailboxes::{BacklogStart, Behind, Blocked},
    pipeline::{Pipeline, Wake},
    record::Record,
    subscriptions::Subscribed,
    timers::Due,
    worker::{count, dead_letter, done},
};

/// How many deliveries a worker makes before others get their turn.
const MOST_KEPT: usize = 16;

/// How long after a fault of the store its next use is tried.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// Makes the deliveries that are due, until one fails, none is left, or others should have a turn.
pub(crate) async fn work_off(engine: &Arc<Engine>, start: BacklogStart) {
    let Some(_running) = start.subscribed.begin() else {
        return drop_backlog(engine, &start);
    };
    match &engine.stores {
        None => from_memory(engine, &start).await,
        Some(stores) => from_log(engine, stores, &start).await,
    }
}

async fn from_memory(engine: &Arc<Engine>, start: &BacklogStart) {
    for _ in 0..MOST_KEPT {
        let Some((record, attempts, first_attempt_at)) = first_in_memory(engine, start) else {
            return;
        };
        let Some(target) = record.target(&start.subscribed) else {
            return;
        };
        let now = Instant::now();
        let made = make(
            engine,
            start,
            &record.envelope,
            attempts,
            first_attempt_at,
            false,
            now,
        )
        .await;
        match made.decision {
            Decision::Retry(delay, _) => return wait(engine, start, &made, delay, None),
            Decision::Done(outcome) => {
                advance_in_memory(engine, start, attempts);
                done(engine, &record, target, outcome, made.end);
            }
            Decision::GiveUp(reason, error) => {
                let subscribed = &start.subscribed;
                let letter = dead_letter(
                    subscribed,
                    &record.envelope,
                    reason,
                    made.attempt,
                    made.first_attempt_at,
                    error,
                );
                advance_in_memory(engine, start, attempts);
                engine.give_up(letter, &record, target);
            }
        }
        discard(record);
    }
    again(engine, start);
}

fn first_in_memory(engine: &Engine, start: &BacklogStart) -> Option<(Arc<Record>, u32, Timestamp)> {
    let mut pipeline = engine.lock();
    let blocked = pipeline
        .mailboxes
        .blocked(start.mailbox, &start.subscribed)?;
    let Behind::Memory(behind) = &blocked.behind else {
        return None;
    };
    Some((
        Arc::clone(behind.front()?),
        blocked.attempts,
        blocked.first_attempt_at,
    ))
}

/// Moves on to the next delivery; the block ends with the last one.
fn advance_in_memory(engine: &Engine, start: &BacklogStart, attempts: u32) {
    let mut pipeline = engine.lock();
    let mailboxes = &mut pipeline.mailboxes;
    let Some(blocked) = mailboxes.blocked(start.mailbox, &start.subscribed) else {
        return;
    };
    blocked.attempts = 0;
    let Behind::Memory(behind) = &mut blocked.behind else {
        return;
    };
    let ended = behind.pop_front();
    let is_empty = behind.is_empty();
    let unblocked = is_empty.then(|| mailboxes.unblock(start.mailbox, &start.subscribed));
    drop(pipeline);
    drop((ended, unblocked));
    no_longer_waiting(&start.subscribed, attempts);
}

/// Reads the aggregate's events from the first unfinished one on, and delivers them.
async fn from_log(engine: &Arc<Engine>, stores: &Stores, start: &BacklogStart) {
    let Some(Here {
        version,
        through: known_through,
    }) = here(engine, start)
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
    let is_last = page.len() < MOST_KEPT;
    for envelope in page {
        let envelope = Arc::new(envelope);
        let (Some(here), Some(recorded)) = (here(engine, start), envelope.recorded()) else {
            return;
        };
        if recorded.position > here.through {
            break;
        }
        if start.subscribed.subscription.matches(&envelope) {
            if deliver(engine, start, &envelope, recorded).await.is_none() {
                return;
            }
        } else {
            advance_in_log(engine, start, recorded, None);
        }
    }
    rest(engine, start, is_last.then_some(known_through));
}

/// Where a backlog in the log stands.
struct Here {
    version: Version,
    through: Position,
}

fn here(engine: &Engine, start: &BacklogStart) -> Option<Here> {
    let mut pipeline = engine.lock();
    match pipeline
        .mailboxes
        .blocked(start.mailbox, &start.subscribed)?
        .behind
    {
        Behind::Log {
            version, through, ..
        } => Some(Here { version, through }),
        Behind::Memory(_) => None,
    }
}

/// Makes one delivery. `None` where it failed and waits for its next attempt.
async fn deliver(
    engine: &Arc<Engine>,
    start: &BacklogStart,
    envelope: &Arc<EventEnvelope>,
    recorded: Recorded,
) -> Option<()> {
    let (position, subscribed) = (recorded.position, &start.subscribed);
    let id = subscribed.id?;
    let (attempts, first_attempt_at, may_repeat) = {
        let mut pipeline = engine.lock();
        let repeats_through = pipeline.cursor.as_ref()?.repeats_through;
        let blocked = pipeline.mailboxes.blocked(start.mailbox, subscribed)?;
        (
            blocked.attempts,
            blocked.first_attempt_at,
            position <= repeats_through,
        )
    };
    let now = Instant::now();
    let made = make(
        engine,
        start,
        envelope,
        attempts,
        first_attempt_at,
        may_repeat,
        now,
    )
    .await;
    let (outcome, change) = match made.decision {
        Decision::Retry(delay, ref error) => {
            let waiting = WaitingDelivery {
                position,
                aggregate: start.aggregate.clone(),
                attempts: made.attempt,
                first_attempt_at: made.first_attempt_at,
                due_at: Timestamp::now().after(delay),
                last_error: error.clone(),
            };
            wait(
                engine,
                start,
                &made,
                delay,
                Some(DeliveryChange::Waiting(id, waiting)),
            );
            return None;
        }
        Decision::Done(outcome) => {
            count(subscribed, outcome, Timestamp::now().since(recorded.at));
            (
                outcome,
                (attempts > 0).then_some(DeliveryChange::Finished(id, position)),
            )
        }
        Decision::GiveUp(reason, error) => {
            let first_attempt_at = made.first_attempt_at;
            let letter = dead_letter(
                subscribed,
                envelope,
                reason,
                made.attempt,
                first_attempt_at,
                error,
            );
            engine.mourn(subscribed, &letter);
            (
                DeliveryOutcome::Dead,
                Some(DeliveryChange::Dead(id, letter)),
            )
        }
    };
    advance_in_log(engine, start, recorded, change);
    resolve_left(engine, position, subscribed, outcome);
    no_longer_waiting(subscribed, attempts);
    Some(())
}

fn resolve_left(
    engine: &Engine,
    position: Position,
    subscribed: &Arc<Subscribed>,
    outcome: DeliveryOutcome,
) {
    if let Some(cursor) = &mut engine.lock().cursor {
        cursor.resolve_left(position, subscribed, outcome);
    }
}

/// Moves on behind a delivery. What is to be committed of it moves the row in the same commit, so
/// that a delivery is never both over and blocked (R1).
fn advance_in_log(
    engine: &Engine,
    start: &BacklogStart,
    done: Recorded,
    change: Option<DeliveryChange>,
) {
    let mut pipeline = engine.lock();
    let Pipeline {
        mailboxes,
        cursor: Some(cursor),
        ..
    } = &mut *pipeline
    else {
        return;
    };
    let Some(blocked) = mailboxes.blocked(start.mailbox, &start.subscribed) else {
        return;
    };
    blocked.attempts = 0;
    if let Behind::Log { from, version, .. } = &mut blocked.behind {
        (*from, *version) = (done.position.next(), done.version.next());
    }
    if change.is_some() {
        let row = blocked.row(&start.aggregate);
        cursor.change(change.into_iter().chain(row), None);
    }
    drop(pipeline);
    engine.wake(Wake {
        saver: true,
        ..Wake::default()
    });
}

/// Ends the block where everything passed over is done, else gives others their turn. Where the
/// aggregate had no more events, `read_through` is how far it was passed over before the reading.
fn rest(engine: &Engine, start: &BacklogStart, read_through: Option<Position>) {
    let Some(id) = start.subscribed.id else {
        return;
    };
    let mut pipeline = engine.lock();
    let Pipeline {
        mailboxes,
        cursor: Some(cursor),
        ..
    } = &mut *pipeline
    else {
        return;
    };
    let Some(blocked) = mailboxes.blocked(start.mailbox, &start.subscribed) else {
        return;
    };
    let Behind::Log { from, through, .. } = blocked.behind else {
        return;
    };
    let is_done = from > through || read_through == Some(through);
    let row = blocked.row(&start.aggregate);
    if is_done {
        mailboxes.unblock(start.mailbox, &start.subscribed);
        cursor.change(
            [DeliveryChange::Unblocked(id, start.aggregate.clone())],
            None,
        );
    } else {
        cursor.change(row, None);
    }
    drop(pipeline);
    engine.wake(Wake {
        saver: true,
        quiet: is_done,
        ..Wake::default()
    });
    if !is_done {
        again(engine, start);
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
    let (ended, end): (Ended, _) =
        attempt(engine, &start.subscribed, envelope, number, may_repeat, now).await;
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

fn after_fault(engine: &Engine, start: &BacklogStart, error: &StoreError) {
    let name = start.subscribed.name();
    log::error!(
        "backlog not read, tried again in {AFTER_FAULT:?}: subscription={name} aggregate={}: {error}",
        start.aggregate
    );
    engine
        .lock()
        .mailboxes
        .wait(start.mailbox, &start.subscribed);
    engine
        .timers
        .set(Due::after(AFTER_FAULT, start.mailbox, &start.subscribed));
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
