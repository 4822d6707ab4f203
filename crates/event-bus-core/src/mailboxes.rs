//! Events waiting for a worker: a queue for each aggregate, and which aggregates are ready.
//!
//! Order comes from the queue: one worker at a time takes an aggregate, leads its next events through
//! their subscriptions, one *round* each (D2, D3), and brings it back. A subscription whose delivery
//! failed is [`Blocked`] on that aggregate: rounds pass it over, and its backlog is worked off alone.

mod blocks;
mod queue;

use std::{
    hash::BuildHasher,
    sync::{Arc, Weak},
};

use domain_events::{AggregateRef, Ordering, Recorded, Urgency};
use hashbrown::{DefaultHashBuilder, HashSet, HashTable};
use slab::Slab;

use self::queue::Queue;
use crate::{
    blocked::{Behind, Blocked, Stand},
    lanes::Lanes,
    record::Record,
    run::Run,
    subscribed::Subscribed,
};

/// How many events of an aggregate a worker takes before others get their turn (D5).
pub(crate) const MOST_TAKEN: usize = 16;

/// How many queues that have come to their end are kept for the next ones.
const MOST_SPARE: usize = 64;

pub(crate) type MailboxId = usize;

/// What a worker does next.
pub(crate) enum Start {
    /// Lead the events of the run through their subscriptions.
    Run,
    /// Work off what a blocked subscription has not handled of an aggregate.
    Backlog(BacklogStart),
}

/// A blocked subscription whose next attempt is due.
pub(crate) struct BacklogStart {
    pub(crate) mailbox: MailboxId,
    pub(crate) subscribed: Arc<Subscribed>,
    pub(crate) aggregate: AggregateRef,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Idle,
    Ready { urgency: Urgency, ticket: u64 },
    Running,
}

struct Mailbox {
    aggregate: AggregateRef,
    queue: Queue,
    turn: Turn,
    /// How many of the first queued events are in a run.
    taken: usize,
    blocked: Vec<Blocked>,
}

impl Mailbox {
    /// Has the blocks that came to be beside the run that has ended begin behind what that has delivered;
    /// `last` is the last event of it that had its round. Returns whether there is one.
    fn take_up_what_is_left(&mut self, last: Option<Recorded>) -> bool {
        let queue = &self.queue;
        let beside = self.blocked.iter_mut().filter(|blocked| blocked.beside_run);
        let mut has_moved = false;
        for blocked in beside {
            blocked.beside_run = false;
            let next = queue.first_open(&blocked.subscribed);
            match (next, last) {
                (Some(next), _) => blocked.behind = Behind::before(next),
                (None, Some(last)) => blocked.behind = Behind::after(last),
                (None, None) => {}
            }
            (blocked.has_moved, has_moved) = (true, true);
        }
        has_moved
    }
}

enum Ready {
    Round {
        mailbox: MailboxId,
        ticket: u64,
    },
    /// Not what keeps the subscription: an entry may be thrown away under the lock.
    Backlog {
        mailbox: MailboxId,
        subscribed: Weak<Subscribed>,
    },
}

impl Ready {
    /// Whether what it stands for is still to be done.
    fn is_live(&self, boxes: &Slab<Mailbox>) -> bool {
        match self {
            Self::Backlog {
                mailbox,
                subscribed,
            } => boxes.get(*mailbox).is_some_and(|mailbox| {
                let ready = |other: &Blocked| {
                    let same = Arc::as_ptr(&other.subscribed) == subscribed.as_ptr();
                    other.stand == Stand::Ready && same
                };
                mailbox.blocked.iter().any(ready)
            }),
            Self::Round { mailbox, ticket } => boxes.get(*mailbox).is_some_and(|mailbox| {
                matches!(mailbox.turn, Turn::Ready { ticket: present, .. } if present == *ticket)
            }),
        }
    }
}

/// The mailboxes of all aggregates that have something to do.
pub(crate) struct Mailboxes {
    ordering: Ordering,
    /// By the aggregates that the mailboxes name.
    by_aggregate: HashTable<MailboxId>,
    hasher: DefaultHashBuilder,
    /// The one mailbox of all events, where their order is total.
    whole: Option<MailboxId>,
    boxes: Slab<Mailbox>,
    /// Queues that have come to their end, whose memory the next ones use.
    spare: Vec<Queue>,
    lanes: Lanes<Ready>,
    tickets: u64,
    queued: usize,
    blocked: usize,
    /// How many blocked ones go on without anybody acting.
    active: usize,
    /// How many blocked ones wait for a worker.
    due: usize,
    /// How many of the queued events are in runs.
    in_runs: usize,
}

impl Mailboxes {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Self {
            ordering,
            by_aggregate: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            whole: None,
            boxes: Slab::new(),
            spare: Vec::new(),
            lanes: Lanes::default(),
            tickets: 0,
            queued: 0,
            blocked: 0,
            active: 0,
            due: 0,
            in_runs: 0,
        }
    }

    pub(crate) fn is_per_aggregate(&self) -> bool {
        self.ordering == Ordering::PerAggregate
    }

    /// Queues an event. Returns whether one more worker has something to do.
    pub(crate) fn push(&mut self, record: Arc<Record>) -> bool {
        let urgency = record.urgency;
        let id = self.mailbox(record.envelope.aggregate());
        let mailbox = &mut self.boxes[id];
        mailbox.queue.push(record);
        self.queued += 1;
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
            Turn::Ready { .. } | Turn::Running => false,
        }
    }

    /// What is to be done next, if anything is ready; up to `most` events are put into `run`, which is
    /// empty.
    pub(crate) fn take(&mut self, run: &mut Run, most: usize) -> Option<Start> {
        let boxes = &self.boxes;
        match self.lanes.pop(|ready| ready.is_live(boxes))? {
            Ready::Round { mailbox, .. } => {
                self.start_run(mailbox, run, most);
                Some(Start::Run)
            }
            Ready::Backlog {
                mailbox,
                subscribed,
            } => self.start_backlog(mailbox, &subscribed).map(Start::Backlog),
        }
    }

    /// The backlog that is to be worked off next, if one is ready, whatever else is.
    pub(crate) fn take_backlog(&mut self) -> Option<BacklogStart> {
        if self.due == 0 {
            return None;
        }
        let boxes = &self.boxes;
        let is_due = |ready: &Ready| matches!(ready, Ready::Backlog { .. }) && ready.is_live(boxes);
        match self.lanes.take(is_due)? {
            Ready::Backlog {
                mailbox,
                subscribed,
            } => self.start_backlog(mailbox, &subscribed),
            Ready::Round { .. } => None,
        }
    }

    fn start_backlog(
        &mut self,
        mailbox: MailboxId,
        subscribed: &Weak<Subscribed>,
    ) -> Option<BacklogStart> {
        let subscribed = subscribed.upgrade()?;
        let aggregate = self.boxes.get(mailbox)?.aggregate.clone();
        self.set_stand(mailbox, &subscribed, Stand::Running);
        Some(BacklogStart {
            mailbox,
            subscribed,
            aggregate,
        })
    }

    /// Gives back what was taken and is not begun; it is the next of its lane.
    pub(crate) fn put_back(&mut self, start: &BacklogStart) {
        let BacklogStart {
            mailbox,
            subscribed,
            ..
        } = start;
        let Some(blocked) = self.blocked(*mailbox, subscribed) else {
            return;
        };
        let urgency = blocked.urgency();
        self.set_stand(*mailbox, subscribed, Stand::Ready);
        let entry = Ready::Backlog {
            mailbox: *mailbox,
            subscribed: Arc::downgrade(subscribed),
        };
        self.lanes.put_back(urgency, entry);
    }

    /// Whether there is something to be done.
    pub(crate) fn is_ready(&mut self) -> bool {
        let boxes = &self.boxes;
        self.lanes.has(|ready| ready.is_live(boxes))
    }

    /// How many events are queued that no worker has taken.
    pub(crate) fn untaken(&self) -> usize {
        self.queued - self.in_runs
    }

    /// Whether a blocked subscription waits for a worker.
    pub(crate) fn is_backlog_ready(&self) -> bool {
        self.due > 0
    }

    /// Takes the events of a run that had their round out of the mailbox.
    pub(crate) fn settle(&mut self, run: &mut Run) {
        let Some(mailbox) = self.boxes.get_mut(run.mailbox) else {
            return;
        };
        for _ in run.settled..run.done() {
            self.queued -= usize::from(mailbox.queue.pop().is_some());
            let was_taken = usize::from(mailbox.taken > 0);
            mailbox.taken -= was_taken;
            self.in_runs -= was_taken;
        }
        run.settled = run.done();
    }

    /// Ends a run that is settled: makes the mailbox ready for the next. Returns how many workers
    /// have something to do by that, and whether the rows of blocks have changed.
    pub(crate) fn finish_run(&mut self, run: &mut Run) -> (usize, bool) {
        let Some(mailbox) = self.boxes.get_mut(run.mailbox) else {
            return (0, false);
        };
        let last = run.done().checked_sub(1).map(|place| &run.records[place]);
        let last = last.and_then(|record| record.envelope.recorded());
        let has_moved = mailbox.take_up_what_is_left(last);
        let unstarted = run
            .paid
            .drain(..)
            .skip(run.finished.len().saturating_sub(1));
        unstarted.for_each(|urgency| self.lanes.give_back(urgency));
        mailbox.turn = Turn::Idle;
        self.in_runs -= std::mem::take(&mut mailbox.taken);
        let urgency = mailbox.queue.urgencies.most();
        let due: Vec<_> = mailbox
            .blocked
            .iter()
            .filter(|blocked| blocked.stand == Stand::AfterRun)
            .map(|blocked| Arc::clone(&blocked.subscribed))
            .collect();
        let backlogs = due
            .iter()
            .filter(|subscribed| self.go(run.mailbox, subscribed))
            .count();
        match urgency {
            Some(urgency) => {
                self.ready(run.mailbox, urgency);
                (backlogs + 1, has_moved)
            }
            None => {
                self.close_if_done(run.mailbox);
                (backlogs, has_moved)
            }
        }
    }

    /// The mailbox that an event of the aggregate goes to, made where there is none.
    pub(crate) fn mailbox(&mut self, aggregate: &AggregateRef) -> MailboxId {
        let known = match self.ordering {
            Ordering::PerAggregate => self.known(aggregate),
            Ordering::Total => self.whole,
            Ordering::None => None,
        };
        if let Some(id) = known {
            return id;
        }
        let id = self.boxes.insert(Mailbox {
            aggregate: aggregate.clone(),
            queue: self.spare.pop().unwrap_or_default(),
            turn: Turn::Idle,
            taken: 0,
            blocked: Vec::new(),
        });
        match self.ordering {
            Ordering::PerAggregate => {
                let (boxes, hasher) = (&self.boxes, &self.hasher);
                let rehash = |&id: &MailboxId| hasher.hash_one(&boxes[id].aggregate);
                let hash = hasher.hash_one(aggregate);
                self.by_aggregate.insert_unique(hash, id, rehash);
            }
            Ordering::Total => self.whole = Some(id),
            Ordering::None => {}
        }
        id
    }

    /// The mailbox of an aggregate, if it has something to do.
    pub(crate) fn known(&self, aggregate: &AggregateRef) -> Option<MailboxId> {
        let hash = self.hasher.hash_one(aggregate);
        let same = |&id: &MailboxId| self.boxes[id].aggregate == *aggregate;
        self.by_aggregate.find(hash, same).copied()
    }

    /// Whether nothing is queued, running, or goes on by itself.
    pub(crate) fn is_idle(&self) -> bool {
        self.queued == 0 && self.active == 0
    }

    /// Whether nothing is queued, running, or could run at once.
    pub(crate) fn is_drained(&self) -> bool {
        let could_run = |blocked: &Blocked| {
            matches!(
                blocked.stand,
                Stand::Ready | Stand::Running | Stand::AfterRun
            )
        };
        self.queued == 0
            && (self.active == 0 || !self.all_blocked().any(|(_, _, it)| could_run(it)))
    }

    /// Every event that is queued, of each aggregate in order.
    pub(crate) fn queued_records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.boxes
            .iter()
            .flat_map(|(_, mailbox)| &mailbox.queue.records)
    }

    /// How many deliveries in memory are not made.
    pub(crate) fn open_deliveries(&self) -> u64 {
        let mut seen = HashSet::new();
        let mut open = 0;
        for (_, mailbox) in &self.boxes {
            let behind = mailbox.blocked.iter().map(|blocked| &blocked.behind);
            let behind = behind.filter_map(|behind| match behind {
                Behind::Memory(records) => Some(records),
                Behind::Log { .. } => None,
            });
            // What is passed over in a round is in the backlog as well.
            for record in mailbox.queue.records.iter().chain(behind.flatten()) {
                if seen.insert(Arc::as_ptr(record)) {
                    open += record.open();
                }
            }
        }
        open
    }

    /// Empties all mailboxes of the events in them.
    pub(crate) fn drain(&mut self) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        for (_, mailbox) in &mut self.boxes {
            records.extend(mailbox.queue.records.drain(..));
            for blocked in &mut mailbox.blocked {
                if let Behind::Memory(behind) = &mut blocked.behind {
                    records.extend(behind.drain(..));
                }
            }
        }
        *self = Self::new(self.ordering);
        records
    }

    /// Takes the next events of a mailbox: only one where somebody is blocked, as what is passed
    /// over is in the backlog from then on.
    fn start_run(&mut self, id: MailboxId, run: &mut Run, most: usize) {
        let Mailbox {
            queue,
            turn,
            taken,
            blocked,
            ..
        } = &mut self.boxes[id];
        *turn = Turn::Running;
        run.mailbox = id;
        let most = if blocked.is_empty() { most } else { 1 };
        let mut rest = queue.urgencies;
        // They leave the queue when the run is over, so that a stop finds every event here.
        for record in queue.records.iter().take(most) {
            if !run.records.is_empty() {
                let Some(urgency) = rest.most().filter(|&lane| self.lanes.may_keep(lane)) else {
                    break;
                };
                run.paid.push(urgency);
            }
            rest.less(record);
            run.records.push(Arc::clone(record));
        }
        *taken = run.records.len();
        self.in_runs += *taken;
        if let Some(record) = run.records.first() {
            for blocked in blocked {
                if let Some(target) = record.target(&blocked.subscribed) {
                    blocked.has_moved |= blocked.behind.push(record);
                    if let Some(why) = blocked.rests() {
                        record.rest(target, why);
                    }
                    run.passed_over.push(target);
                }
            }
        }
    }

    fn ready(&mut self, id: MailboxId, urgency: Urgency) {
        self.tickets += 1;
        let ticket = self.tickets;
        self.boxes[id].turn = Turn::Ready { urgency, ticket };
        let entry = Ready::Round {
            mailbox: id,
            ticket,
        };
        self.lanes.push(urgency, entry);
    }

    fn close_if_done(&mut self, id: MailboxId) {
        let mailbox = &self.boxes[id];
        let done = mailbox.turn == Turn::Idle
            && mailbox.queue.records.is_empty()
            && mailbox.blocked.is_empty();
        if !done {
            return;
        }
        let mailbox = self.boxes.remove(id);
        match self.ordering {
            Ordering::PerAggregate => {
                let hash = self.hasher.hash_one(&mailbox.aggregate);
                if let Ok(entry) = self.by_aggregate.find_entry(hash, |other| *other == id) {
                    entry.remove();
                }
            }
            Ordering::Total => self.whole = None,
            Ordering::None => {}
        }
        if self.spare.len() < MOST_SPARE && mailbox.queue.is_small() {
            self.spare.push(mailbox.queue);
        }
    }
}
