//! A backlog in memory: the events themselves wait (volatile).

use std::{sync::Arc, time::Instant};

use domain_events::Timestamp;

use super::{MOST_KEPT, again, make, no_longer_waiting, wait};
use crate::{
    attempt::Decision,
    engine::{Engine, discard},
    mailboxes::{BacklogStart, Behind},
    record::Record,
    worker::{count, dead_letter},
};

/// Delivers the events that wait, from the first on.
pub(super) async fn deliver_all(engine: &Arc<Engine>, start: &BacklogStart) {
    for _ in 0..MOST_KEPT {
        if start.subscribed.is_removed() {
            break;
        }
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
                let since_publish = made.end.saturating_duration_since(record.accepted_at);
                count(&start.subscribed, outcome, since_publish);
                engine.resolve(&record, target, outcome);
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
