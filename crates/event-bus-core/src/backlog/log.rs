//! A backlog in the log: however many events wait, one row stands for them (durable, R1).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain_events::{
    DeliveryChange, DeliveryOutcome, EventEnvelope, Position, Recorded, StoreError, Timestamp,
    Version, WaitingDelivery,
};

use super::{MOST_KEPT, again, make, no_longer_waiting, wait};
use crate::{
    attempt::Decision,
    engine::{Engine, Stores, discard},
    mailboxes::{BacklogStart, Behind},
    pipeline::{Pipeline, Wake},
    subscriptions::Subscribed,
    timers::Due,
    worker::{count, dead_letter},
};

/// How long after a fault of the store its next use is tried.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// Reads the aggregate's events from the first unfinished one on, and delivers them.
pub(super) async fn deliver_all(engine: &Arc<Engine>, stores: &Stores, start: &BacklogStart) {
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
    let mut end = (page.len() < MOST_KEPT).then_some(known_through);
    for envelope in page {
        let envelope = Arc::new(envelope);
        let (Some(here), Some(recorded)) = (here(engine, start), envelope.recorded()) else {
            return;
        };
        if recorded.position > here.through {
            end = Some(here.through);
            break;
        }
        if start.subscribed.is_removed() {
            break;
        }
        let mut goes_on = true;
        if start.subscribed.subscription.matches(&envelope) {
            goes_on = deliver(engine, start, &envelope, recorded).await.is_some();
        } else {
            advance_in_log(engine, start, recorded, None);
        }
        discard(envelope);
        if !goes_on {
            return;
        }
    }
    rest(engine, start, end);
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
    let tell = |pipeline: &mut Pipeline| {
        pipeline
            .cursor
            .as_mut()
            .and_then(|cursor| cursor.resolve_left(position, subscribed, outcome))
    };
    let record = tell(&mut engine.lock());
    if let Some(record) = record {
        record.tell();
        discard(record);
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
    let saver = change.is_some();
    if saver {
        let row = blocked.row(&start.aggregate);
        cursor.change(change.into_iter().chain(row), None);
    }
    drop(pipeline);
    engine.wake(Wake {
        saver,
        ..Wake::default()
    });
}

/// Ends the block where everything passed over is done, else gives others their turn. `end` is how
/// far the aggregate was passed over when no more of its events were found up to there.
fn rest(engine: &Engine, start: &BacklogStart, end: Option<Position>) {
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
    let is_done = from > through || end == Some(through);
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

fn after_fault(engine: &Engine, start: &BacklogStart, error: &StoreError) {
    let name = start.subscribed.name();
    ::log::error!(
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
    engine.wake(Wake {
        quiet: true,
        ..Wake::default()
    });
}
