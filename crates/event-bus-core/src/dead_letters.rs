//! Deliveries given up: what is kept of them, and what follows for those behind (F5, F6).

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use domain_events::{
    DeadLetter, DeadLetterQuery, DeliveryChange, DeliveryOutcome, EventId, FailurePolicy,
    LetterError,
};
use tokio::time::Instant;

use crate::{
    after::After,
    blocked::{Behind, Blocked, Stand},
    engine::Engine,
    lifecycle::Phase,
    mailboxes::MailboxId,
    pipeline::Pipeline,
    record::{Marks, Record},
    say::say,
    state::State,
    subscribed::Subscribed,
};

/// The longest error text that is kept, in bytes (F6).
const MOST_ERROR_BYTES: usize = 4 * 1024;

/// The dead letters of a volatile bus, oldest first: bounded, the loss counted.
pub(crate) struct DeadLetters {
    limit: usize,
    kept: VecDeque<Kept>,
    evicted: u64,
}

/// A dead letter in memory.
struct Kept {
    letter: DeadLetter,
    /// Who gave it up. Not what keeps the subscription, which may go.
    by: Weak<Subscribed>,
}

impl DeadLetters {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: VecDeque::new(),
            evicted: 0,
        }
    }

    /// Keeps one more. Returns the oldest one where there was no room for both.
    fn keep(&mut self, kept: Kept) -> Option<Kept> {
        self.kept.push_back(kept);
        let evicted = (self.kept.len() > self.limit).then(|| self.kept.pop_front());
        self.evicted += u64::from(evicted.is_some());
        evicted.flatten()
    }

    fn take(&mut self, subscription: &str, event: EventId) -> Result<Kept, LetterError> {
        let wanted = |kept: &Kept| {
            kept.letter.event_id() == event && &*kept.letter.subscription == subscription
        };
        let place = self.kept.iter().position(wanted);
        place
            .and_then(|place| self.kept.remove(place))
            .ok_or_else(|| LetterError::NoSuchLetter {
                subscription: subscription.to_owned(),
                event,
            })
    }

    /// Takes out all that `query` means, oldest first.
    fn take_all(&mut self, query: &DeadLetterQuery) -> Vec<Kept> {
        let (taken, left) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(|kept| query.matches(&kept.letter));
        self.kept = left;
        taken.into()
    }

    /// Up to `limit` of those that `query` means.
    pub(crate) fn list(&self, query: &DeadLetterQuery, limit: usize) -> Vec<DeadLetter> {
        let letters = self.kept.iter().map(|kept| &kept.letter);
        let wanted = letters.filter(|letter| query.matches(letter));
        wanted.take(limit).cloned().collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.kept.len() as u64
    }

    /// How many were lost to the bound.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// Counts and tells that a delivery was given up; not under the lock, as a logger is the user's.
pub(crate) fn mourn(subscribed: &Subscribed, letter: &DeadLetter) {
    subscribed.meters.shared().dead.up();
    subscribed.note_dead();
    say!(warn, "dead letter", "subscription" = letter.subscription, "event.id" = letter.event_id(),
        "event.type" = letter.event.event_type(), "attempts" = letter.attempts,
        "reason" = letter.reason.as_str(); letter.error);
    if subscribed.subscription.after_dead_letter() == FailurePolicy::PauseSubscription {
        say!(
            warn,
            "subscription paused by its failure policy",
            "subscription" = letter.subscription
        );
    }
}

impl State {
    /// Keeps a delivery that was given up, and does to those behind it what the failure policy says.
    /// Durable, it is kept with the next commit, which also is the first that may pass its position.
    pub(crate) fn give_up(
        &mut self,
        mailbox: MailboxId,
        letter: DeadLetter,
        record: &Arc<Record>,
        target: usize,
        after: &mut After,
    ) {
        if self.is_closed {
            return;
        }
        let subscribed = &record.targets()[target];
        if let Some(id) = subscribed.id {
            self.unsaved
                .change([DeliveryChange::Dead(id, letter)], None);
            after.saver = true;
        } else {
            self.keep(mailbox, letter, subscribed, after);
        }
        if record.resolve(target, DeliveryOutcome::Dead) {
            self.finish(subscribed.pipeline, record, after);
            self.admit(after);
        }
        after.tell(Arc::clone(record));
    }

    fn keep(
        &mut self,
        mailbox: MailboxId,
        letter: DeadLetter,
        subscribed: &Arc<Subscribed>,
        after: &mut After,
    ) {
        let policy = subscribed.subscription.after_dead_letter();
        let event = letter.event_id();
        let evicted = self.letters.keep(Kept {
            letter,
            by: Arc::downgrade(subscribed),
        });
        match policy {
            // Who is removed has nobody behind.
            _ if subscribed.is_removed() => {}
            FailurePolicy::Skip => {}
            FailurePolicy::ParkAggregate => self.park(mailbox, subscribed, event, after),
            FailurePolicy::PauseSubscription => self.pause(subscribed, after),
        }
        if let Some(evicted) = evicted {
            self.let_go(evicted, after);
        }
    }

    /// Has a subscription's later events of an aggregate wait behind a dead letter.
    pub(crate) fn park(
        &mut self,
        mailbox: MailboxId,
        subscribed: &Arc<Subscribed>,
        event: EventId,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        if mailboxes.blocked(mailbox, subscribed).is_none() {
            let nothing = Behind::Memory([].into());
            mailboxes.block(
                mailbox,
                Blocked::new(subscribed, nothing, Stand::Parked(event)),
            );
        }
        mailboxes.set_stand(mailbox, subscribed, Stand::Parked(event));
        if let Some(blocked) = mailboxes.blocked(mailbox, subscribed) {
            after.told.extend(blocked.note_rest());
        }
        after.quiet = true;
    }

    /// Forgets a dead letter: what is parked behind it goes on.
    fn let_go(&mut self, kept: Kept, after: &mut After) {
        let Kept { letter, by } = kept;
        if let Some(subscribed) = by.upgrade() {
            if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
                pipeline.go_on_without(&letter, &subscribed, after);
            }
            after.dropped.push(Box::new(subscribed));
        }
        after.dropped.push(Box::new(letter));
    }

    /// Has a dead letter delivered again.
    fn replay(
        &mut self,
        subscription: &str,
        event: EventId,
        after: &mut After,
    ) -> Result<(), LetterError> {
        let replays = self.who_replays(subscription)?;
        let kept = self.letters.take(subscription, event)?;
        self.deliver_again(kept, replays, after);
        Ok(())
    }

    /// Has all dead letters delivered again that `query` means, oldest first, or none. Returns how
    /// many.
    fn replay_all(
        &mut self,
        query: &DeadLetterQuery,
        after: &mut After,
    ) -> Result<usize, LetterError> {
        let letters = self.letters.kept.iter().map(|kept| &kept.letter);
        for letter in letters.filter(|letter| query.matches(letter)) {
            self.who_replays(&letter.subscription)?;
        }
        let letters = self.letters.take_all(query);
        let count = letters.len();
        for kept in letters {
            let replays = self.who_replays(&kept.letter.subscription)?;
            self.deliver_again(kept, replays, after);
        }
        Ok(count)
    }

    /// Gives all dead letters up for good that `query` means. Returns how many.
    fn discard_all(&mut self, query: &DeadLetterQuery, after: &mut After) -> usize {
        let letters = self.letters.take_all(query);
        let count = letters.len();
        for kept in letters {
            self.let_go(kept, after);
        }
        count
    }

    /// The subscription that a dead letter of this name would be delivered to.
    fn who_replays(&self, name: &str) -> Result<Arc<Subscribed>, LetterError> {
        if self.is_stopping || self.is_closed {
            return Err(LetterError::NotRunning);
        }
        let named = self.subscriptions.named(name);
        named
            .cloned()
            .ok_or_else(|| LetterError::NoSuchSubscription {
                subscription: name.to_owned(),
            })
    }

    /// Has a dead letter delivered again, alone on its aggregate.
    fn deliver_again(&mut self, kept: Kept, subscribed: Arc<Subscribed>, after: &mut After) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let Kept { letter, by } = kept;
        // A letter of one that has gone is not among this one's.
        if by.as_ptr() == Arc::as_ptr(&subscribed) {
            subscribed.meters.shared().replayed.up();
        } else {
            subscribed.steps.matching.up();
        }
        let envelope = letter.event;
        self.figures.taken_up(false, true);
        let mailboxes = &mut pipeline.mailboxes;
        let mailbox = mailboxes.mailbox(envelope.aggregate());
        let targets = [Arc::clone(&subscribed)].into();
        let marks = Marks {
            is_replay: true,
            ..Marks::default()
        };
        let record = Record::new(self.bus, envelope, targets, Instant::now(), marks);
        let record = Arc::new(record);
        if mailboxes.blocked(mailbox, &subscribed).is_none() {
            let nothing = Behind::Memory([].into());
            let stand = Stand::Waiting;
            mailboxes.block(mailbox, Blocked::new(&subscribed, nothing, stand));
        }
        let mut ready = false;
        let blocked = mailboxes.blocked(mailbox, &subscribed);
        if blocked.is_some_and(|blocked| blocked.replay(record)) {
            ready = mailboxes.go_after_run(mailbox, &subscribed);
        }
        if let Some(blocked) = mailboxes.blocked(mailbox, &subscribed) {
            after.told.extend(blocked.note_rest());
        }
        pipeline.wake_workers(usize::from(ready), after);
        after.dropped.push(Box::new(subscribed));
    }
}

impl Pipeline {
    /// Lets what is parked behind a dead letter go on.
    fn go_on_without(
        &mut self,
        letter: &DeadLetter,
        subscribed: &Arc<Subscribed>,
        after: &mut After,
    ) {
        let mailboxes = &mut self.mailboxes;
        let Some(mailbox) = mailboxes.known(letter.event.aggregate()) else {
            return;
        };
        let Some(blocked) = mailboxes.blocked(mailbox, subscribed) else {
            return;
        };
        let ready = blocked.discard(letter.event_id()) && mailboxes.go(mailbox, subscribed);
        if let Some(blocked) = mailboxes.blocked(mailbox, subscribed) {
            after.told.extend(blocked.note_rest());
        }
        self.wake_workers(usize::from(ready), after);
    }
}

/// Delivers a dead letter of a volatile bus again.
pub(crate) fn replay(
    engine: &Engine,
    subscription: &str,
    event: EventId,
) -> Result<(), LetterError> {
    may_replay(engine)?;
    engine.step(|state, after| state.replay(subscription, event, after))?;
    say!(
        info,
        "dead letter replayed",
        "subscription" = subscription,
        "event.id" = event
    );
    Ok(())
}

/// Gives a dead letter of a volatile bus up for good.
pub(crate) fn discard(
    engine: &Engine,
    subscription: &str,
    event: EventId,
    reason: &str,
) -> Result<(), LetterError> {
    keeps_letters(engine)?;
    engine.step(|state, after| {
        let kept = state.letters.take(subscription, event)?;
        state.let_go(kept, after);
        Ok(())
    })?;
    say!(info, "dead letter discarded", "subscription" = subscription, "event.id" = event; reason);
    Ok(())
}

/// Delivers all dead letters of a volatile bus again that `query` means. Returns how many.
pub(crate) fn replay_all(engine: &Engine, query: &DeadLetterQuery) -> Result<usize, LetterError> {
    may_replay(engine)?;
    let count = engine.step(|state, after| state.replay_all(query, after))?;
    say!(info, "dead letters replayed", "letters" = count; format_args!("{query:?}"));
    Ok(count)
}

/// Gives all dead letters of a volatile bus up for good that `query` means. Returns how many.
pub(crate) fn discard_all(
    engine: &Engine,
    query: &DeadLetterQuery,
    reason: &str,
) -> Result<usize, LetterError> {
    keeps_letters(engine)?;
    let count = engine.step(|state, after| state.discard_all(query, after));
    say!(info, "dead letters discarded", "letters" = count; format_args!("{query:?}: {reason}"));
    Ok(count)
}

fn may_replay(engine: &Engine) -> Result<(), LetterError> {
    keeps_letters(engine)?;
    match engine.lifecycle.phase() {
        Phase::Running => Ok(()),
        _ => Err(LetterError::NotRunning),
    }
}

/// Whether the dead letters are the bus's, and not its store's.
fn keeps_letters(engine: &Engine) -> Result<(), LetterError> {
    match engine.stores {
        None => Ok(()),
        Some(_) => Err(LetterError::Unsupported(
            "a bus with a store keeps its dead letters as they are",
        )),
    }
}

/// Cuts an error text to [`MOST_ERROR_BYTES`], between characters.
pub(crate) fn cut(mut error: String) -> String {
    let end = (0..=MOST_ERROR_BYTES.min(error.len()))
        .rev()
        .find(|&end| error.is_char_boundary(end));
    error.truncate(end.unwrap_or(0));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = format!("{}ü", "x".repeat(MOST_ERROR_BYTES - 1));
        assert_eq!(cut(long).len(), MOST_ERROR_BYTES - 1);
    }
}
