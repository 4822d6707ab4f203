//! What the parts of a running bus share under one lock: who is subscribed, what waits, how far
//! the log was read. No user code runs under the lock, and nobody awaits with it.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use domain_events::{EventEnvelope, Position};

use crate::{
    admission::Admission,
    cursor::Cursor,
    mailboxes::{Mailboxes, Round, Start},
    record::{Followed, Record},
    subscriptions::Subscriptions,
};

/// The state of a bus.
pub(crate) struct Pipeline {
    pub(crate) subscriptions: Subscriptions,
    pub(crate) mailboxes: Mailboxes,
    /// The place in the log; `None` on a volatile bus.
    pub(crate) cursor: Option<Cursor>,
    admission: Arc<Admission>,
    pub(crate) figures: Figures,
    /// The names of subscriptions whose last progress is still to be committed.
    pub(crate) leaving: Vec<Arc<str>>,
    /// Whether the bus has stopped: nothing is taken in, and nothing is left to be done.
    pub(crate) is_closed: bool,
}

/// Counts of events (N1): `accepted + recovered = finished + in_flight`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) accepted: u64,
    pub(crate) recovered: u64,
    pub(crate) finished: u64,
    pub(crate) in_flight: u64,
    /// Accepted events that are still to be read from the log.
    left_to_log: u64,
}

impl Figures {
    /// Counts an event that is left to the log.
    pub(crate) fn left_to_log(&mut self) {
        self.left_to_log += 1;
    }

    /// Counts an event read from the log: one that was left to it, or else one of another origin.
    pub(crate) fn taken_up(&mut self) {
        match self.left_to_log.checked_sub(1) {
            Some(left) => self.left_to_log = left,
            None => self.recovered += 1,
        }
    }
}

/// What a step has set going; told to those who sleep once the lock is released.
#[derive(Clone, Copy, Default)]
#[must_use]
pub(crate) struct Wake {
    /// How many workers have something new to do.
    pub(crate) workers: usize,
    /// Whether there is something new to save.
    pub(crate) saver: bool,
    /// Whether the bus may have become idle.
    pub(crate) quiet: bool,
}

impl std::ops::AddAssign for Wake {
    fn add_assign(&mut self, other: Self) {
        self.workers += other.workers;
        self.saver |= other.saver;
        self.quiet |= other.quiet;
    }
}

impl Pipeline {
    pub(crate) fn new(admission: Arc<Admission>) -> Self {
        Self {
            subscriptions: Subscriptions::default(),
            mailboxes: Mailboxes::default(),
            cursor: None,
            admission,
            figures: Figures::default(),
            leaving: Vec::new(),
            is_closed: false,
        }
    }

    /// Puts an accepted event into its mailbox. An event that nobody wants is done by that (D7).
    pub(crate) fn accept(
        &mut self,
        envelope: Arc<EventEnvelope>,
        has_room: bool,
        accepted_at: Instant,
        wake: &mut Wake,
    ) -> Arc<Record> {
        let position = envelope.position();
        let targets = self.subscriptions.targets(envelope.event_type(), position);
        let repeats = self.cursor.as_ref().zip(position);
        let may_be_repeat =
            repeats.is_some_and(|(cursor, position)| position <= cursor.repeats_through);
        let record = Record::new(envelope, targets, accepted_at, has_room, may_be_repeat);
        if let (Some(cursor), Some(position)) = (&mut self.cursor, position) {
            wake.saver |= cursor.opened(position, &record);
        }
        if record.is_finished() {
            self.figures.finished += 1;
            wake.quiet = true;
            self.release(&record);
        } else {
            self.figures.in_flight += 1;
            wake.workers += usize::from(self.mailboxes.push(Arc::clone(&record)));
        }
        record
    }

    /// What a worker does next, if anything is ready.
    pub(crate) fn take(&mut self, wake: &mut Wake) -> Option<Start> {
        let start = self.mailboxes.take()?;
        if let Start::Round(round) = &start {
            self.leave_passed_over(round, wake);
        }
        Some(start)
    }

    /// Ends a round, and the event where `finished` says that nothing holds it. Returns the
    /// aggregate's next round where the worker may keep the aggregate.
    pub(crate) fn finish_round(
        &mut self,
        round: &Round,
        finished: bool,
        wake: &mut Wake,
    ) -> Option<Round> {
        if self.is_closed {
            return None;
        }
        if finished {
            *wake += self.finish(&round.record);
        }
        let (next, one_more) = self.mailboxes.finish_round(round.mailbox);
        wake.workers += usize::from(one_more);
        if let Some(next) = &next {
            self.leave_passed_over(next, wake);
        }
        next
    }

    /// Durable: what a round passes over is left to the log, in the step that passes it over.
    /// Volatile: it is in the backlog now.
    fn leave_passed_over(&mut self, round: &Round, wake: &mut Wake) {
        if self.cursor.is_some() {
            for &target in &round.passed_over {
                *wake += self.leave(&round.record, target);
            }
        }
    }

    /// Notes that no delivery holds the event any more.
    pub(crate) fn finish(&mut self, record: &Arc<Record>) -> Wake {
        self.figures.finished += 1;
        self.figures.in_flight -= 1;
        self.release(record);
        let saver = self
            .cursor
            .as_mut()
            .is_some_and(|cursor| cursor.closed(record));
        Wake {
            saver,
            quiet: self.figures.in_flight == 0,
            ..Wake::default()
        }
    }

    /// Leaves a delivery to the log, where a row covers it.
    pub(crate) fn leave(&mut self, record: &Arc<Record>, target: usize) -> Wake {
        if let Some(cursor) = &mut self.cursor {
            cursor.keep_left(record);
        }
        if record.leave(target) {
            self.finish(record)
        } else {
            Wake::default()
        }
    }

    /// Sets the cursor back where a newcomer has not read what the others have. Returns whether
    /// the log is to be read.
    pub(crate) fn read_again_after(&mut self, unread: Position) -> bool {
        let Self {
            cursor: Some(cursor),
            subscriptions,
            ..
        } = self
        else {
            return false;
        };
        if unread < cursor.through {
            subscriptions.pass_over_through(cursor.through);
            cursor.through = unread;
            cursor.live = false;
        }
        !cursor.live
    }

    /// Whether a subscription of this name is on its way off.
    pub(crate) fn is_leaving(&self, name: &str) -> bool {
        self.leaving.iter().any(|leaving| &**leaving == name)
    }

    /// Whether nothing is queued, running, waiting or behind, and all is saved (L3).
    pub(crate) fn is_idle(&self) -> bool {
        let saved =
            |cursor: &Cursor| cursor.live && cursor.through >= cursor.head && cursor.is_saved();
        self.figures.in_flight == 0
            && self.mailboxes.blocked_count() == 0
            && self.cursor.as_ref().is_none_or(saved)
    }

    /// Whether nothing runs or could run at once.
    pub(crate) fn is_drained(&self) -> bool {
        self.figures.in_flight == 0
            && !self
                .mailboxes
                .all_blocked()
                .any(|(_, blocked)| blocked.is_ready())
    }

    /// Gives up every event whose receipt may be waiting: the bus has stopped. The caller
    /// [stops](Record::stop) them without the lock.
    pub(crate) fn abandon(&mut self) -> Vec<Arc<Record>> {
        self.is_closed = true;
        let mut records = self.mailboxes.drain();
        if let Some(cursor) = &mut self.cursor {
            records.extend(cursor.drain());
            let awaited = std::mem::take(&mut cursor.awaited);
            for followed in awaited
                .into_values()
                .filter_map(|weak: Weak<Followed>| weak.upgrade())
            {
                let Some(event) = followed.event().cloned() else {
                    continue;
                };
                let targets = self.subscriptions.targets(event.event_type(), None);
                let record = Record::new(event, targets, Instant::now(), false, false);
                followed.found(&record);
                records.push(record);
            }
        }
        records
    }

    fn release(&self, record: &Record) {
        if record.has_room {
            self.admission.release(1);
        }
    }
}
