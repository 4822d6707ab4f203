//! Working off what a blocked subscription has not handled of an aggregate: alone, in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain_events::{
    AggregateRef, BlockedAggregate, DeliveryChange, DeliveryOutcome, EventEnvelope, Position,
    StoreError, Timestamp, Version, WaitingDelivery,
};

use crate::{
    attempt::{Decision, Ended, attempt, decide},
    engine::{Engine, Stores, discard},
    mailboxes::{BacklogStart, Behind, Blocked},
    pipeline::Wake,
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
            Decision::Retry(delay, _) => return wait(engine, start, &made, delay, []),
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
                engine.give_up(subscribed, letter, Some((&record, target)));
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
        from,
        version,
        through: known_through,
    }) = here(engine, start)
    else {
        return;
    };
    let page = match page(stores, &start.aggregate, from, version).await {
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
        let wanted = recorded.position >= from && start.subscribed.subscription.matches(&envelope);
        if wanted && deliver(engine, start, &envelope).await.is_none() {
            return;
        }
        advance_in_log(engine, start, recorded.position, recorded.version);
    }
    rest(engine, start, is_last.then_some(known_through));
}

/// Where a backlog in the log stands.
struct Here {
    from: Position,
    version: Option<Version>,
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
            from,
            version,
            through,
        } => Some(Here {
            from,
            version,
            through,
        }),
        Behind::Memory(_) => None,
    }
}

async fn page(
    stores: &Stores,
    aggregate: &AggregateRef,
    from: Position,
    version: Option<Version>,
) -> Result<Vec<EventEnvelope>, StoreError> {
    let first = match version {
        Some(version) => version,
        // After a restart only the position is known.
        None => {
            let at = stores.events.read_log(from.previous(), 1).await?;
            let version = at.first().filter(|event| event.aggregate() == aggregate);
            version
                .and_then(EventEnvelope::version)
                .unwrap_or(Version::FIRST)
        }
    };
    stores
        .events
        .read_aggregate(aggregate, first..=Version::new(i64::MAX as u64), MOST_KEPT)
        .await
}

/// Makes one delivery. `None` where it failed and waits for its next attempt.
async fn deliver(
    engine: &Arc<Engine>,
    start: &BacklogStart,
    envelope: &Arc<EventEnvelope>,
) -> Option<()> {
    let (position, subscribed) = (envelope.position()?, &start.subscribed);
    let (attempts, first_attempt_at) = {
        let mut pipeline = engine.lock();
        let blocked = pipeline.mailboxes.blocked(start.mailbox, subscribed)?;
        (blocked.attempts, blocked.first_attempt_at)
    };
    let may_repeat = engine
        .lock()
        .cursor
        .as_ref()
        .is_some_and(|cursor| position <= cursor.repeats_through);
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
    let id = subscribed.id?;
    match made.decision {
        Decision::Retry(delay, ref error) => {
            let aggregate = &start.aggregate;
            let waiting = WaitingDelivery {
                position,
                aggregate: aggregate.clone(),
                attempts: made.attempt,
                first_attempt_at: made.first_attempt_at,
                due_at: Timestamp::now().after(delay),
                last_error: error.clone(),
            };
            let blocked = BlockedAggregate {
                aggregate: aggregate.clone(),
                from: position,
            };
            let changes = [
                DeliveryChange::Waiting(id, waiting),
                DeliveryChange::Blocked(id, blocked),
            ];
            wait(engine, start, &made, delay, changes);
            return None;
        }
        Decision::Done(outcome) => {
            let recorded_at = envelope
                .recorded()
                .map_or(Timestamp::now(), |recorded| recorded.at);
            count(subscribed, outcome, Timestamp::now().since(recorded_at));
            if attempts > 0 {
                let mut pipeline = engine.lock();
                if let Some(cursor) = &mut pipeline.cursor {
                    cursor.change([DeliveryChange::Finished(id, position)], None);
                }
            }
            resolve_left(engine, position, subscribed, outcome);
        }
        Decision::GiveUp(reason, error) => {
            let letter = dead_letter(
                subscribed,
                envelope,
                reason,
                made.attempt,
                made.first_attempt_at,
                error,
            );
            engine.give_up(subscribed, letter, None);
            resolve_left(engine, position, subscribed, DeliveryOutcome::Dead);
        }
    }
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

fn advance_in_log(engine: &Engine, start: &BacklogStart, done: Position, at: Version) {
    let mut pipeline = engine.lock();
    if let Some(blocked) = pipeline.mailboxes.blocked(start.mailbox, &start.subscribed) {
        blocked.attempts = 0;
        if let Behind::Log { from, version, .. } = &mut blocked.behind {
            (*from, *version) = (done.next(), Some(at.next()));
        }
    }
}

/// Ends the block where everything passed over is done, else gives others their turn. Where the
/// aggregate had no more events, `read_through` is how far it was passed over before the reading.
fn rest(engine: &Engine, start: &BacklogStart, read_through: Option<Position>) {
    let Some(Here { from, through, .. }) = here(engine, start) else {
        return;
    };
    let is_done = from > through || read_through == Some(through);
    let Some(id) = start.subscribed.id else {
        return;
    };
    let mut pipeline = engine.lock();
    // Whether it is done is asked again under the lock that ends it: a round may have come between.
    let still = pipeline
        .mailboxes
        .blocked(start.mailbox, &start.subscribed)
        .is_some_and(
            |blocked| matches!(blocked.behind, Behind::Log { through: now, .. } if now == through),
        );
    let change = if is_done && still {
        pipeline.mailboxes.unblock(start.mailbox, &start.subscribed);
        DeliveryChange::Unblocked(id, start.aggregate.clone())
    } else {
        DeliveryChange::Blocked(
            id,
            BlockedAggregate {
                aggregate: start.aggregate.clone(),
                from,
            },
        )
    };
    let is_blocked = matches!(change, DeliveryChange::Blocked(..));
    if let Some(cursor) = &mut pipeline.cursor {
        cursor.change([change], None);
    }
    drop(pipeline);
    engine.wake(Wake {
        saver: true,
        ..Wake::default()
    });
    if is_blocked {
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
fn wait<const N: usize>(
    engine: &Engine,
    start: &BacklogStart,
    made: &Made,
    delay: Duration,
    changes: [DeliveryChange; N],
) {
    let subscribed = &start.subscribed;
    let due = Due::after(delay, start.mailbox, subscribed);
    if made.attempt == 1 {
        subscribed.meters.waiting.up();
    }
    let mut pipeline = engine.lock();
    if let Some(blocked) = pipeline.mailboxes.blocked(start.mailbox, subscribed) {
        blocked.attempts = made.attempt;
        blocked.first_attempt_at = made.first_attempt_at;
    }
    pipeline.mailboxes.wait(start.mailbox, subscribed);
    match &mut pipeline.cursor {
        Some(cursor) => cursor.change(changes, Some(due)),
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
