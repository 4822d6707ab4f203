//! Who is blocked where, and what each backlog waits for.

use std::sync::Arc;

use domain_events::{AggregateRef, DeliveryChange, EventEnvelope, EventId, Position, Recorded};

use super::{Mailbox, MailboxId, Mailboxes, Ready, Turn};
use crate::{
    blocked::{Behind, Blocked, Stand},
    subscribed::Subscribed,
};

impl Mailboxes {
    /// Blocks a subscription on a mailbox's aggregate. Where it is blocked already, behind a replay
    /// that waits for the run, the delivery that failed goes first.
    pub(crate) fn block(&mut self, id: MailboxId, mut blocked: Blocked) {
        let Some(mailbox) = self.boxes.get_mut(id) else {
            return;
        };
        let mut others = mailbox.blocked.iter();
        if let Some(place) =
            others.position(|other| Arc::ptr_eq(&other.subscribed, &blocked.subscribed))
        {
            let old = mailbox.blocked.swap_remove(place);
            self.blocked -= 1;
            self.active -= usize::from(old.is_active());
            self.due -= usize::from(old.stand == Stand::Ready);
            blocked.take_over(old);
        }
        self.blocked += 1;
        self.active += usize::from(blocked.is_active());
        self.due += usize::from(blocked.stand == Stand::Ready);
        mailbox.blocked.push(blocked);
    }

    /// Makes the next attempt of a subscription that waits for its time ready, or has it held where
    /// the subscription is paused or tripped; nothing, where it `is_first` and one was made. Returns
    /// whether one more worker has something to do.
    pub(crate) fn due(
        &mut self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
        is_first: bool,
    ) -> bool {
        match self.blocked(id, subscribed) {
            Some(blocked) if is_first && blocked.attempts > 0 => false,
            Some(blocked) if blocked.stand == Stand::Waiting && blocked.beside_run => {
                self.set_stand(id, subscribed, Stand::AfterRun);
                false
            }
            Some(blocked) if blocked.stand == Stand::Waiting => self.go(id, subscribed),
            _ => false,
        }
    }

    /// Makes a backlog ready, whatever it waited for, or has it held where the subscription is
    /// paused. Returns whether one more worker has something to do.
    pub(crate) fn go(&mut self, id: MailboxId, subscribed: &Arc<Subscribed>) -> bool {
        let Some(blocked) = self.blocked(id, subscribed) else {
            return false;
        };
        let (was, urgency) = (blocked.stand, blocked.urgency());
        if matches!(was, Stand::Ready | Stand::Running) {
            return false;
        }
        if !subscribed.lets(id) {
            self.set_stand(id, subscribed, Stand::Held);
            return false;
        }
        self.set_stand(id, subscribed, Stand::Ready);
        let entry = Ready::Backlog {
            mailbox: id,
            subscribed: Arc::downgrade(subscribed),
        };
        self.lanes.push(urgency, entry);
        true
    }

    /// As [`go`](Self::go) once the run that the aggregate is in, if it is in one, is over: a
    /// delivery never runs beside another one of its aggregate.
    pub(crate) fn go_after_run(&mut self, id: MailboxId, subscribed: &Arc<Subscribed>) -> bool {
        let is_at_it = |blocked: &mut Blocked| blocked.stand == Stand::Running;
        if self.blocked(id, subscribed).is_some_and(is_at_it) {
            return false;
        }
        let runs = |mailbox: &Mailbox| mailbox.turn == Turn::Running;
        if self.boxes.get(id).is_some_and(runs) {
            self.set_stand(id, subscribed, Stand::AfterRun);
            return false;
        }
        self.go(id, subscribed)
    }

    /// Blocks a subscription on the aggregate of an event of the log, unless it is, with nothing behind
    /// it but what is given out from now on.
    pub(crate) fn block_from_now(
        &mut self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
        event: Recorded,
        through: Position,
    ) {
        let Some(mailbox) = self.boxes.get(id) else {
            return;
        };
        let same = |blocked: &Blocked| Arc::ptr_eq(&blocked.subscribed, subscribed);
        if mailbox.blocked.iter().any(same) {
            return;
        }
        // Also what is in a run, so that the row covers it; where that delivers it, the block begins
        // behind it once the run is over.
        let through = through.max(event.position);
        let behind = match mailbox.queue.first_open(subscribed) {
            Some(next) => Behind::before(next),
            None => Behind::after(Recorded {
                position: through,
                ..event
            }),
        };
        let beside_run = mailbox.turn == Turn::Running;
        let blocked = Blocked::new(subscribed, behind, Stand::Waiting);
        let blocked = Blocked {
            beside_run,
            ..blocked
        };
        self.block(id, blocked);
    }

    /// Adds the replay of a dead letter of the log. Returns whether the backlog is to go on for it.
    pub(crate) fn replay_from_log(
        &mut self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
        event: &EventEnvelope,
    ) -> bool {
        let Some(blocked) = self.blocked(id, subscribed) else {
            return false;
        };
        let position = event.position().unwrap_or_default();
        let goes = blocked.replay_from_log(event.id(), position);
        if matches!(blocked.stand, Stand::Parked(_)) {
            self.set_stand(id, subscribed, Stand::Waiting);
        }
        goes
    }

    /// Forgets the dead letter of an event of the log. Returns whether what was parked behind it is to
    /// go on.
    pub(crate) fn discard_from_log(
        &mut self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
        event: EventId,
    ) -> bool {
        let goes = self
            .blocked(id, subscribed)
            .is_some_and(|blocked| blocked.discard(event));
        if goes {
            self.set_stand(id, subscribed, Stand::Waiting);
        }
        goes
    }

    /// Says what a backlog waits for from now on.
    pub(crate) fn set_stand(&mut self, id: MailboxId, subscribed: &Arc<Subscribed>, stand: Stand) {
        let Some(blocked) = self.blocked(id, subscribed) else {
            return;
        };
        let count = |it: &Blocked| {
            (
                usize::from(it.is_active()),
                usize::from(it.stand == Stand::Ready),
            )
        };
        let before = count(blocked);
        blocked.stand = stand;
        let after = count(blocked);
        self.active = self.active + after.0 - before.0;
        self.due = self.due + after.1 - before.1;
    }

    /// Changes something of a subscription that decides on what its backlogs wait for.
    pub(crate) fn change(&mut self, subscribed: &Arc<Subscribed>, change: impl FnOnce()) {
        self.active -= self.active_of(subscribed);
        change();
        self.active += self.active_of(subscribed);
    }

    fn active_of(&self, subscribed: &Arc<Subscribed>) -> usize {
        let of = |blocked: &&Blocked| Arc::ptr_eq(&blocked.subscribed, subscribed);
        let all = self.all_blocked().map(|(_, _, blocked)| blocked);
        all.filter(of).filter(|blocked| blocked.is_active()).count()
    }

    /// Where a subscription is blocked.
    pub(crate) fn places(&self, subscribed: &Arc<Subscribed>) -> Vec<MailboxId> {
        let of = |blocked: &Blocked| Arc::ptr_eq(&blocked.subscribed, subscribed);
        self.all_blocked()
            .filter(|(_, _, blocked)| of(blocked))
            .map(|(id, _, _)| id)
            .collect()
    }

    /// The aggregate of a mailbox.
    pub(crate) fn aggregate(&self, id: MailboxId) -> Option<&AggregateRef> {
        self.boxes.get(id).map(|mailbox| &mailbox.aggregate)
    }

    /// The row of a backlog as it is now.
    pub(crate) fn row(
        &self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
    ) -> Option<DeliveryChange> {
        let mailbox = self.boxes.get(id)?;
        let mut all = mailbox.blocked.iter();
        let blocked = all.find(|blocked| Arc::ptr_eq(&blocked.subscribed, subscribed))?;
        blocked.row(&mailbox.aggregate)
    }

    pub(crate) fn blocked(
        &mut self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
    ) -> Option<&mut Blocked> {
        let mailbox = self.boxes.get_mut(id)?;
        mailbox
            .blocked
            .iter_mut()
            .find(|blocked| Arc::ptr_eq(&blocked.subscribed, subscribed))
    }

    /// Ends a block: from the next round on, the subscription takes part again.
    pub(crate) fn unblock(
        &mut self,
        id: MailboxId,
        subscribed: &Arc<Subscribed>,
    ) -> Option<(AggregateRef, Blocked)> {
        let Mailbox {
            blocked, aggregate, ..
        } = self.boxes.get_mut(id)?;
        let place = blocked
            .iter()
            .position(|blocked| Arc::ptr_eq(&blocked.subscribed, subscribed))?;
        let ended = (aggregate.clone(), blocked.swap_remove(place));
        self.blocked -= 1;
        self.active -= usize::from(ended.1.is_active());
        self.due -= usize::from(ended.1.stand == Stand::Ready);
        self.close_if_done(id);
        Some(ended)
    }

    /// How many subscriptions are blocked on aggregates, each pair counted.
    pub(crate) fn blocked_count(&self) -> usize {
        self.blocked
    }

    /// The rows of everything that a subscription is blocked on.
    pub(crate) fn rows(&self, subscribed: &Arc<Subscribed>) -> Vec<DeliveryChange> {
        self.all_blocked()
            .filter(|(_, _, blocked)| Arc::ptr_eq(&blocked.subscribed, subscribed))
            .filter_map(|(_, aggregate, blocked)| blocked.row(aggregate))
            .collect()
    }

    /// The rows of backlogs that have come further since they were last asked for.
    pub(crate) fn moved_rows(&mut self) -> Vec<DeliveryChange> {
        let mut rows = Vec::new();
        for (
            _,
            Mailbox {
                aggregate, blocked, ..
            },
        ) in self.boxes.iter_mut()
        {
            for it in blocked {
                let has_moved = std::mem::take(&mut it.has_moved);
                rows.extend(has_moved.then(|| it.row(aggregate)).flatten());
            }
        }
        rows
    }

    /// Every blocked subscription with the aggregate it is blocked on.
    pub(crate) fn all_blocked(&self) -> impl Iterator<Item = (MailboxId, &AggregateRef, &Blocked)> {
        self.boxes.iter().flat_map(|(id, mailbox)| {
            mailbox
                .blocked
                .iter()
                .map(move |blocked| (id, &mailbox.aggregate, blocked))
        })
    }

    /// Events in memory for which a row of a subscription stands.
    pub(crate) fn covered_of(&self, subscribed: &Arc<Subscribed>) -> Vec<Position> {
        let all = self.covered().into_iter();
        let mut of = all.filter(|(other, _)| Arc::ptr_eq(other, subscribed));
        of.next().map(|(_, covered)| covered).unwrap_or_default()
    }

    /// Events in memory for which a row of a blocked subscription stands.
    pub(crate) fn covered(&self) -> Vec<(&Arc<Subscribed>, Vec<Position>)> {
        let mut covered: Vec<(&Arc<Subscribed>, Vec<Position>)> = Vec::new();
        for (_, mailbox) in self
            .boxes
            .iter()
            .filter(|(_, mailbox)| !mailbox.blocked.is_empty())
        {
            let queued = mailbox.queue.records.iter();
            for blocked in &mailbox.blocked {
                let subscribed = &blocked.subscribed;
                let rows = blocked.covered(queued.clone());
                match covered
                    .iter_mut()
                    .find(|(other, _)| Arc::ptr_eq(other, subscribed))
                {
                    Some((_, more)) => more.extend(rows),
                    None => covered.push((subscribed, rows)),
                }
            }
        }
        covered
    }
}
