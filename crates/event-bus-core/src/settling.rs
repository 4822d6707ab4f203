//! Replaying and discarding dead letters, wherever the bus keeps them (F6).

use std::sync::Arc;

use domain_events::{DeadLetter, DeadLetterQuery, EventId, LetterError};

use crate::{engine::Engine, lifecycle::Phase, say::say, stored_letters};

/// Delivers a dead letter again.
pub(crate) async fn replay(
    engine: &Engine,
    subscription: &str,
    event: EventId,
) -> Result<(), LetterError> {
    check_running(engine)?;
    // Before the letter is looked for: it stays where nobody can make the delivery.
    engine.look(|state| state.who_replays(subscription).map(drop))?;
    let query = DeadLetterQuery::of(subscription).event(event);
    some(replay_those(engine, &query).await?, subscription, event)
}

/// Delivers all dead letters again that `query` means, or none. Returns how many.
pub(crate) async fn replay_all(
    engine: &Engine,
    query: &DeadLetterQuery,
) -> Result<usize, LetterError> {
    check_running(engine)?;
    let count = replay_those(engine, query).await?;
    say!(info, "dead letters replayed", "letters" = count; query);
    Ok(count)
}

/// Gives a dead letter up for good.
pub(crate) async fn discard(
    engine: &Engine,
    subscription: &str,
    event: EventId,
    reason: &str,
) -> Result<(), LetterError> {
    let query = DeadLetterQuery::of(subscription).event(event);
    let count = discard_those(engine, &query, reason).await?;
    some(count, subscription, event)
}

/// Gives all dead letters up for good that `query` means. Returns how many.
pub(crate) async fn discard_all(
    engine: &Engine,
    query: &DeadLetterQuery,
    reason: &str,
) -> Result<usize, LetterError> {
    let count = discard_those(engine, query, reason).await?;
    say!(info, "dead letters discarded", "letters" = count; format_args!("{query}: {reason}"));
    Ok(count)
}

async fn replay_those(engine: &Engine, query: &DeadLetterQuery) -> Result<usize, LetterError> {
    match &engine.stores {
        None => {
            let settled = engine.step(|state, after| state.replay_all(query, after))?;
            settled.iter().for_each(Settled::say_replayed);
            Ok(settled.len())
        }
        Some(stores) => stored_letters::replay_all(engine, stores, query).await,
    }
}

async fn discard_those(
    engine: &Engine,
    query: &DeadLetterQuery,
    reason: &str,
) -> Result<usize, LetterError> {
    match &engine.stores {
        None => {
            let settled = engine.step(|state, after| state.discard_all(query, after));
            settled.iter().for_each(|one| one.say_discarded(reason));
            Ok(settled.len())
        }
        Some(stores) => stored_letters::discard_all(engine, stores, query, reason).await,
    }
}

fn check_running(engine: &Engine) -> Result<(), LetterError> {
    match engine.lifecycle.phase() {
        Phase::Running => Ok(()),
        _ => Err(LetterError::NotRunning),
    }
}

fn some(count: usize, subscription: &str, event: EventId) -> Result<(), LetterError> {
    match count {
        0 => Err(LetterError::NoSuchLetter {
            subscription: subscription.to_owned(),
            event,
        }),
        _ => Ok(()),
    }
}

/// A dead letter that was replayed or discarded; each is told of by itself, not under the lock.
pub(crate) struct Settled {
    subscription: Arc<str>,
    event: EventId,
}

impl Settled {
    pub(crate) fn of(letter: &DeadLetter) -> Self {
        Self {
            subscription: Arc::clone(&letter.subscription),
            event: letter.event_id(),
        }
    }

    pub(crate) fn say_replayed(&self) {
        say!(
            info,
            "dead letter replayed",
            "subscription" = self.subscription,
            "event.id" = self.event
        );
    }

    pub(crate) fn say_discarded(&self, reason: &str) {
        say!(info, "dead letter discarded", "subscription" = self.subscription,
            "event.id" = self.event; reason);
    }
}
