//! Deliveries given up: what is kept of them, and what follows for those behind (F5, F6).

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use domain_events::{
    DeadLetter, DeadLetterGroup, DeadLetterQuery, DeliveryChange, DeliveryOutcome, EventEnvelope,
    EventId, FailurePolicy, LetterError, PauseReason, Recorded,
};
use tokio::time::Instant;

use crate::{
    after::After,
    blocked::{Behind, Blocked, Stand},
    mailboxes::MailboxId,
    pipeline::Pipeline,
    record::{Marks, Record},
    say::say,
    settling::Settled,
    state::State,
    subscribed::Subscribed,
    timers::Due,
    worker::say_paused,
};

/// The longest error text that is kept, in bytes (F6).
const MOST_ERROR_BYTES: usize = 4 * 1024;

/// The dead letters of a volatile bus, oldest first: bounded, the loss counted.
pub(crate) struct DeadLetters {
    limit: usize,
    kept: VecDeque<Kept>,
    evicted: u64,
    /// How many were ever kept.
    numbers: u64,
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
            numbers: 0,
        }
    }

    /// Keeps one more. Returns the oldest one where there was no room for both.
    fn keep(&mut self, mut kept: Kept) -> Option<Kept> {
        self.numbers += 1;
        kept.letter.number = self.numbers;
        self.kept.push_back(kept);
        let evicted = (self.kept.len() > self.limit).then(|| self.kept.pop_front());
        self.evicted += u64::from(evicted.is_some());
        evicted.flatten()
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

    /// Those that `query` means, in groups.
    pub(crate) fn groups(&self, query: &DeadLetterQuery) -> Vec<DeadLetterGroup> {
        let letters = self.kept.iter().map(|kept| &kept.letter);
        DeadLetterGroup::of(letters.filter(|letter| query.matches(letter)))
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

/// Tells that a delivery was given up, once that is so.
pub(crate) fn mourn(subscribed: &Subscribed, letter: &DeadLetter) {
    say!(warn, "dead letter", "subscription" = letter.subscription, "event.id" = letter.event_id(),
        "event.type" = letter.event.event_type(), "attempts" = letter.attempts,
        "reason" = letter.reason.as_str(); letter.error);
    if subscribed.subscription.after_dead_letter() == FailurePolicy::PauseSubscription {
        say_paused(subscribed, PauseReason::DeadLetter);
    }
}

impl State {
    /// Keeps a delivery that was given up, and does to those behind it what the failure policy says.
    /// Durable, it is kept with the next commit, which also is the first that may pass its position.
    /// Returns whether it is: nothing is any more once the bus is closed.
    pub(crate) fn give_up(
        &mut self,
        mailbox: MailboxId,
        letter: DeadLetter,
        record: &Arc<Record>,
        target: usize,
        after: &mut After,
    ) -> bool {
        if self.is_closed {
            return false;
        }
        let subscribed = &record.targets()[target];
        subscribed.note_dead();
        let (event, recorded) = (letter.event_id(), record.envelope.recorded());
        let evicted = match subscribed.id {
            Some(id) => {
                self.unsaved
                    .change([DeliveryChange::Dead(id, letter)], None);
                after.saver = true;
                None
            }
            None => self.letters.keep(Kept {
                letter,
                by: Arc::downgrade(subscribed),
            }),
        };
        self.follow_policy(mailbox, subscribed, event, recorded, after);
        if let Some(evicted) = evicted {
            after.evicted.push(evicted.letter.clone());
            self.let_go(evicted, after);
        }
        if record.resolve(target, DeliveryOutcome::Dead) {
            self.finish(subscribed.pipeline, record, after);
            self.admit(after);
        }
        after.tell(Arc::clone(record));
        true
    }

    /// Does to those behind a dead letter what the failure policy says (F5); `recorded` is where its
    /// event is in the log.
    pub(crate) fn follow_policy(
        &mut self,
        mailbox: MailboxId,
        subscribed: &Arc<Subscribed>,
        event: EventId,
        recorded: Option<Recorded>,
        after: &mut After,
    ) {
        match subscribed.subscription.after_dead_letter() {
            // Who is removed has nobody behind, unless there is a log.
            _ if subscribed.is_removed() && subscribed.id.is_none() => {}
            FailurePolicy::Skip => {}
            FailurePolicy::ParkAggregate => {
                self.park(mailbox, subscribed, event, recorded, after);
                self.drop_if_removed(mailbox, subscribed, after);
            }
            FailurePolicy::PauseSubscription => {
                self.pause(subscribed, PauseReason::DeadLetter, after);
            }
        }
    }

    /// Has a subscription's later events of an aggregate wait behind a dead letter.
    pub(crate) fn park(
        &mut self,
        mailbox: MailboxId,
        subscribed: &Arc<Subscribed>,
        event: EventId,
        recorded: Option<Recorded>,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        if mailboxes.blocked(mailbox, subscribed).is_none() {
            let nothing = match recorded {
                Some(recorded) => Behind::after(recorded),
                None => Behind::Memory([].into()),
            };
            let stand = Stand::Parked(event);
            mailboxes.block(mailbox, Blocked::new(subscribed, nothing, stand));
        }
        mailboxes.set_stand(mailbox, subscribed, Stand::Parked(event));
        self.note_block(mailbox, subscribed, None, after);
        after.quiet = true;
    }

    /// Notes that a backlog waits for something else: for those who ask, and in the log. `due` is what
    /// it waits for once that is committed.
    pub(crate) fn note_block(
        &mut self,
        mailbox: MailboxId,
        subscribed: &Arc<Subscribed>,
        due: Option<Due>,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let Some(blocked) = pipeline.mailboxes.blocked(mailbox, subscribed) else {
            return;
        };
        after.told.extend(blocked.note_rest());
        let why = blocked.rests();
        if let Some(cursor) = &pipeline.cursor {
            let aggregate = pipeline.mailboxes.aggregate(mailbox);
            after
                .told
                .extend(cursor.note_rest(subscribed, aggregate, why));
            let row = pipeline.mailboxes.row(mailbox, subscribed);
            self.unsaved.change(row, due);
            after.saver = true;
        }
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

    /// Has all dead letters delivered again that `query` means, oldest first, or none. Returns which.
    pub(crate) fn replay_all(
        &mut self,
        query: &DeadLetterQuery,
        after: &mut After,
    ) -> Result<Vec<Settled>, LetterError> {
        let letters = self.letters.kept.iter().map(|kept| &kept.letter);
        for letter in letters.filter(|letter| query.matches(letter)) {
            self.who_replays(&letter.subscription)?;
        }
        let letters = self.letters.take_all(query);
        let settled = letters.iter().map(|kept| Settled::of(&kept.letter));
        let settled = settled.collect();
        for kept in letters {
            let replays = self.who_replays(&kept.letter.subscription)?;
            self.deliver_again(kept, replays, after);
        }
        Ok(settled)
    }

    /// Gives all dead letters up for good that `query` means. Returns which.
    pub(crate) fn discard_all(
        &mut self,
        query: &DeadLetterQuery,
        after: &mut After,
    ) -> Vec<Settled> {
        let letters = self.letters.take_all(query);
        let settled = letters.iter().map(|kept| Settled::of(&kept.letter));
        let settled = settled.collect();
        for kept in letters {
            if let Some(subscribed) = kept.by.upgrade() {
                subscribed.count_discard(true);
                after.dropped.push(Box::new(subscribed));
            }
            self.let_go(kept, after);
        }
        settled
    }

    /// The subscription that a dead letter of this name would be delivered to.
    pub(crate) fn who_replays(&self, name: &str) -> Result<Arc<Subscribed>, LetterError> {
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
        let Kept { letter, by } = kept;
        // A letter of one that has gone is not among this one's.
        subscribed.count_replay(by.as_ptr() == Arc::as_ptr(&subscribed));
        self.replay_in_memory(letter.event, subscribed, 0, after);
    }

    /// Has an event delivered again from a backlog in memory.
    pub(crate) fn replay_in_memory(
        &mut self,
        envelope: Arc<EventEnvelope>,
        subscribed: Arc<Subscribed>,
        save: u64,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        self.figures.taken_up(false, true);
        let mailboxes = &mut pipeline.mailboxes;
        let mailbox = mailboxes.mailbox(envelope.aggregate());
        let targets = [Arc::clone(&subscribed)].into();
        let marks = Marks {
            is_replay: true,
            has_room: true,
            ..Marks::default()
        };
        // Beyond the capacity too: it is the operator who asks, and publishers wait for it.
        pipeline.room.take(1);
        pipeline.note_crossing(subscribed.pipeline, after);
        let mailboxes = &mut pipeline.mailboxes;
        let record = Record::new(self.bus, envelope, targets, Instant::now(), marks);
        let record = Arc::new(record);
        if mailboxes.blocked(mailbox, &subscribed).is_none() {
            let nothing = Behind::Memory([].into());
            let stand = Stand::Waiting;
            mailboxes.block(mailbox, Blocked::new(&subscribed, nothing, stand));
        }
        let mut ready = false;
        let goes = |blocked: &mut Blocked| {
            blocked.replays_from = save;
            blocked.replay(record)
        };
        if mailboxes.blocked(mailbox, &subscribed).is_some_and(goes) {
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
