//! Events waiting for a worker: a queue for each aggregate, and which aggregates are ready.
//!
//! Order comes from the queue: one worker at a time takes an aggregate's next event and leads it
//! through its subscriptions, a *round* (D2, D3). A subscription whose delivery failed is *blocked*
//! on that aggregate: rounds pass it over, and its *backlog* is worked off alone and in order.

use std::{collections::VecDeque, sync::Arc};

use domain_events::{
    AggregateRef, BlockedAggregate, DeliveryChange, Position, Timestamp, Urgency, Version,
};
use hashbrown::HashMap;
use slab::Slab;

use crate::{lanes::Lanes, record::Record, subscriptions::Subscribed};

/// How many events of an aggregate a worker takes before others get their turn (D5).
const MOST_KEPT: u32 = 16;

pub(crate) type MailboxId = usize;

/// What a worker does next.
pub(crate) enum Start {
    /// Lead an event through its subscriptions.
    Round(Round),
    /// Work off what a blocked subscription has not handled of an aggregate.
    Backlog(BacklogStart),
}

/// An event on its way through its subscriptions.
pub(crate) struct Round {
    pub(crate) mailbox: MailboxId,
    pub(crate) record: Arc<Record>,
    /// The targets that are blocked on the aggregate and passed over.
    pub(crate) passed_over: Vec<usize>,
}

/// A blocked subscription whose next attempt is due.
pub(crate) struct BacklogStart {
    pub(crate) mailbox: MailboxId,
    pub(crate) subscribed: Arc<Subscribed>,
    pub(crate) aggregate: AggregateRef,
}

/// What a blocked subscription has not handled of an aggregate, the failed delivery first.
pub(crate) struct Blocked {
    pub(crate) subscribed: Arc<Subscribed>,
    pub(crate) behind: Behind,
    /// Attempts made of the first delivery.
    pub(crate) attempts: u32,
    pub(crate) first_attempt_at: Timestamp,
    is_ready: bool,
}

/// Where a backlog is.
pub(crate) enum Behind {
    /// In memory (volatile).
    Memory(VecDeque<Arc<Record>>),
    /// In the log: the aggregate's events from one position through another (durable).
    Log {
        from: Position,
        version: Version,
        through: Position,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Idle,
    Ready { urgency: Urgency, ticket: u64 },
    Running { kept: u32 },
}

struct Mailbox {
    aggregate: AggregateRef,
    queue: VecDeque<Arc<Record>>,
    /// How many queued events are of each urgency.
    urgencies: [u32; 3],
    turn: Turn,
    blocked: Vec<Blocked>,
}

enum Ready {
    Round {
        mailbox: MailboxId,
        ticket: u64,
    },
    Backlog {
        mailbox: MailboxId,
        subscribed: Arc<Subscribed>,
    },
}

/// The mailboxes of all aggregates that have something to do.
#[derive(Default)]
pub(crate) struct Mailboxes {
    by_aggregate: HashMap<AggregateRef, MailboxId>,
    boxes: Slab<Mailbox>,
    lanes: Lanes<Ready>,
    tickets: u64,
    blocked: usize,
}

impl Mailboxes {
    /// Queues an event. Returns whether one more worker has something to do.
    pub(crate) fn push(&mut self, record: Arc<Record>) -> bool {
        let urgency = record.envelope.urgency();
        let id = self.mailbox(record.envelope.aggregate());
        let mailbox = &mut self.boxes[id];
        mailbox.urgencies[urgency as usize] += 1;
        mailbox.queue.push_back(record);
        match mailbox.turn {
            Turn::Idle => {
                self.ready(id, urgency);
                true
            }
            Turn::Ready { urgency: less, .. } if less < urgency => {
                // The entry in the less urgent lane is dead from here on: its ticket is old.
                self.ready(id, urgency);
                false
            }
            Turn::Ready { .. } | Turn::Running { .. } => false,
        }
    }

    /// What is to be done next, if anything is ready.
    pub(crate) fn take(&mut self) -> Option<Start> {
        let boxes = &self.boxes;
        let live = |ready: &Ready| {
            match *ready {
            Ready::Backlog { .. } => true,
            Ready::Round { mailbox, ticket } => boxes.get(mailbox).is_some_and(|mailbox| {
                matches!(mailbox.turn, Turn::Ready { ticket: present, .. } if present == ticket)
            }),
        }
        };
        match self.lanes.pop(live)? {
            Ready::Round { mailbox, .. } => self.start_round(mailbox, 1).map(Start::Round),
            Ready::Backlog {
                mailbox,
                subscribed,
            } => {
                let aggregate = self.boxes[mailbox].aggregate.clone();
                Some(Start::Backlog(BacklogStart {
                    mailbox,
                    subscribed,
                    aggregate,
                }))
            }
        }
    }

    /// Ends a round. Returns the aggregate's next round where the worker may keep it, and whether
    /// one more worker has something to do.
    pub(crate) fn finish_round(&mut self, id: MailboxId) -> (Option<Round>, bool) {
        let Some(mailbox) = self.boxes.get_mut(id) else {
            return (None, false);
        };
        if let Some(record) = mailbox.queue.pop_front() {
            mailbox.urgencies[record.envelope.urgency() as usize] -= 1;
        }
        let kept = match mailbox.turn {
            Turn::Running { kept } => kept,
            Turn::Idle | Turn::Ready { .. } => MOST_KEPT,
        };
        let Some(urgency) = mailbox.urgency() else {
            mailbox.turn = Turn::Idle;
            self.close_if_done(id);
            return (None, false);
        };
        if kept < MOST_KEPT && self.lanes.may_keep(urgency) {
            return (self.start_round(id, kept + 1), false);
        }
        self.ready(id, urgency);
        (None, true)
    }

    /// Blocks a subscription on a mailbox's aggregate; it waits until it is [due](Self::due).
    pub(crate) fn block(&mut self, id: MailboxId, blocked: Blocked) {
        if let Some(mailbox) = self.boxes.get_mut(id) {
            self.blocked += 1;
            mailbox.blocked.push(blocked);
        }
    }

    /// Makes a blocked subscription's next attempt ready. Returns whether it was not before.
    pub(crate) fn due(&mut self, id: MailboxId, subscribed: &Arc<Subscribed>) -> bool {
        let Some(blocked) = self.blocked(id, subscribed) else {
            return false;
        };
        if std::mem::replace(&mut blocked.is_ready, true) {
            return false;
        }
        let entry = Ready::Backlog {
            mailbox: id,
            subscribed: Arc::clone(subscribed),
        };
        self.lanes.push(Urgency::Normal, entry);
        true
    }

    /// Makes every backlog of a subscription ready. Returns how many were not before.
    pub(crate) fn all_due(&mut self, subscribed: &Arc<Subscribed>) -> usize {
        let ids: Vec<_> = self.boxes.iter().map(|(id, _)| id).collect();
        ids.into_iter()
            .filter(|&id| self.due(id, subscribed))
            .count()
    }

    /// Lets a blocked subscription wait until it is due again.
    pub(crate) fn wait(&mut self, id: MailboxId, subscribed: &Arc<Subscribed>) {
        if let Some(blocked) = self.blocked(id, subscribed) {
            blocked.is_ready = false;
        }
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
    ) -> Option<Blocked> {
        let blocked = &mut self.boxes.get_mut(id)?.blocked;
        let place = blocked
            .iter()
            .position(|blocked| Arc::ptr_eq(&blocked.subscribed, subscribed))?;
        let ended = blocked.swap_remove(place);
        self.blocked -= 1;
        self.close_if_done(id);
        Some(ended)
    }

    /// The mailbox of an aggregate, made where there is none.
    pub(crate) fn mailbox(&mut self, aggregate: &AggregateRef) -> MailboxId {
        if let Some(&id) = self.by_aggregate.get(aggregate) {
            return id;
        }
        let id = self.boxes.insert(Mailbox::new(aggregate.clone()));
        self.by_aggregate.insert(aggregate.clone(), id);
        id
    }

    /// How many subscriptions are blocked on aggregates, each pair counted.
    pub(crate) fn blocked_count(&self) -> usize {
        self.blocked
    }

    /// The rows of everything that a subscription is blocked on.
    pub(crate) fn rows(&self, subscribed: &Arc<Subscribed>) -> Vec<DeliveryChange> {
        let own = self
            .all_blocked()
            .filter(|(_, blocked)| Arc::ptr_eq(&blocked.subscribed, subscribed));
        own.filter_map(|(aggregate, blocked)| blocked.row(aggregate))
            .collect()
    }

    /// Every blocked subscription with the aggregate it is blocked on.
    pub(crate) fn all_blocked(&self) -> impl Iterator<Item = (&AggregateRef, &Blocked)> {
        self.boxes.iter().flat_map(|(_, mailbox)| {
            mailbox
                .blocked
                .iter()
                .map(move |blocked| (&mailbox.aggregate, blocked))
        })
    }

    /// Queued events that each blocked subscription will be passed over on.
    pub(crate) fn covered(&self) -> Vec<(&Arc<Subscribed>, Vec<Position>)> {
        let mut covered: Vec<(&Arc<Subscribed>, Vec<Position>)> = Vec::new();
        for (_, mailbox) in self
            .boxes
            .iter()
            .filter(|(_, mailbox)| !mailbox.blocked.is_empty())
        {
            let positions = mailbox
                .queue
                .iter()
                .filter_map(|record| record.envelope.position());
            for Blocked { subscribed, .. } in &mailbox.blocked {
                match covered
                    .iter_mut()
                    .find(|(other, _)| Arc::ptr_eq(other, subscribed))
                {
                    Some((_, more)) => more.extend(positions.clone()),
                    None => covered.push((subscribed, positions.clone().collect())),
                }
            }
        }
        covered
    }

    /// Empties all mailboxes of the events in them.
    pub(crate) fn drain(&mut self) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        for (_, mailbox) in &mut self.boxes {
            records.extend(mailbox.queue.drain(..));
            for blocked in &mut mailbox.blocked {
                if let Behind::Memory(behind) = &mut blocked.behind {
                    records.extend(behind.drain(..));
                }
            }
        }
        *self = Self::default();
        records
    }

    fn start_round(&mut self, id: MailboxId, kept: u32) -> Option<Round> {
        let mailbox = &mut self.boxes[id];
        mailbox.turn = Turn::Running { kept };
        // It leaves the queue when its round is over, so that a stop finds every event here.
        let record = Arc::clone(mailbox.queue.front()?);
        let mut passed_over = Vec::new();
        for blocked in &mut mailbox.blocked {
            if let Some(target) = record.target(&blocked.subscribed) {
                blocked.behind.pass_over(&record);
                passed_over.push(target);
            }
        }
        Some(Round {
            mailbox: id,
            record,
            passed_over,
        })
    }

    fn ready(&mut self, id: MailboxId, urgency: Urgency) {
        self.tickets += 1;
        self.boxes[id].turn = Turn::Ready {
            urgency,
            ticket: self.tickets,
        };
        self.lanes.push(
            urgency,
            Ready::Round {
                mailbox: id,
                ticket: self.tickets,
            },
        );
    }

    fn close_if_done(&mut self, id: MailboxId) {
        let mailbox = &self.boxes[id];
        let done =
            mailbox.turn == Turn::Idle && mailbox.queue.is_empty() && mailbox.blocked.is_empty();
        if done {
            let mailbox = self.boxes.remove(id);
            self.by_aggregate.remove(&mailbox.aggregate);
        }
    }
}

impl Mailbox {
    fn new(aggregate: AggregateRef) -> Self {
        Self {
            aggregate,
            queue: VecDeque::new(),
            urgencies: [0; 3],
            turn: Turn::Idle,
            blocked: Vec::new(),
        }
    }

    /// The urgency of the most urgent event queued.
    fn urgency(&self) -> Option<Urgency> {
        [Urgency::High, Urgency::Normal, Urgency::Low]
            .into_iter()
            .find(|&urgency| self.urgencies[urgency as usize] > 0)
    }
}

impl Blocked {
    pub(crate) fn new(
        subscribed: Arc<Subscribed>,
        behind: Behind,
        attempts: u32,
        first_attempt_at: Timestamp,
    ) -> Self {
        Self {
            subscribed,
            behind,
            attempts,
            first_attempt_at,
            is_ready: false,
        }
    }

    /// The row that stands for it; `None` on a volatile bus.
    pub(crate) fn row(&self, aggregate: &AggregateRef) -> Option<DeliveryChange> {
        let Behind::Log { from, version, .. } = self.behind else {
            return None;
        };
        let row = BlockedAggregate {
            aggregate: aggregate.clone(),
            from,
            version,
        };
        Some(DeliveryChange::Blocked(self.subscribed.id?, row))
    }

    /// Whether its next attempt is due, or running.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready
    }
}

impl Behind {
    fn pass_over(&mut self, record: &Arc<Record>) {
        match self {
            Self::Memory(records) => records.push_back(Arc::clone(record)),
            Self::Log { through, .. } => {
                *through = record
                    .envelope
                    .position()
                    .map_or(*through, |at| at.max(*through));
            }
        }
    }
}
