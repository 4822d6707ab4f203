//! How far a durable bus has come in the log, and what of that is open.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
};

use domain_events::{DeliveryChange, DeliveryChanges, DeliveryOutcome, Position, Progress};

use crate::{
    mailboxes::Mailboxes,
    record::{Followed, Record},
    subscriptions::{Member, Subscribed},
    timers::Due,
};

/// A place in the log with everything before it that is not finished.
pub(crate) struct Cursor {
    /// The last position that was handed to the mailboxes.
    pub(crate) through: Position,
    /// The last position known to be in the log.
    pub(crate) head: Position,
    /// Whether new events go straight to the mailboxes; else they are read from the log.
    pub(crate) live: bool,
    /// Up to here an unclean end may have left effects of unfinished deliveries.
    pub(crate) repeats_through: Position,
    open: BTreeMap<(Position, u64), Arc<Record>>,
    opened: u64,
    /// Receipts of events that are still to be read from the log.
    pub(crate) awaited: HashMap<Position, Weak<Followed>>,
    /// Records with receipts whose deliveries a row of the store covers.
    left: HashMap<Position, Weak<Record>>,
    unsaved: Unsaved,
    /// How many times what is unsaved was taken to be committed, and was committed.
    taken: u64,
    saves: u64,
}

/// What is to be committed next.
#[derive(Default)]
pub(crate) struct Unsaved {
    pub(crate) changes: DeliveryChanges,
    /// Retries that may start once the changes are committed (F4).
    pub(crate) retries: Vec<Due>,
    progressed: bool,
    pub(crate) in_commit: bool,
}

impl Cursor {
    pub(crate) fn new(through: Position, head: Position, repeats_through: Position) -> Self {
        Self {
            through,
            head,
            live: through == head,
            repeats_through,
            open: BTreeMap::new(),
            opened: 0,
            awaited: HashMap::new(),
            left: HashMap::new(),
            unsaved: Unsaved::default(),
            taken: 0,
            saves: 0,
        }
    }

    /// Notes that an event was handed over. Returns whether that made progress unsaved.
    pub(crate) fn opened(&mut self, position: Position, record: &Arc<Record>) -> bool {
        self.through = position;
        if !record.is_finished() {
            self.opened += 1;
            self.open
                .insert((position, self.opened), Arc::clone(record));
        }
        if let Some(followed) = self
            .awaited
            .remove(&position)
            .and_then(|weak| weak.upgrade())
        {
            followed.found(record);
        }
        !std::mem::replace(&mut self.unsaved.progressed, true)
    }

    /// Notes that an event is finished. Returns whether that made progress unsaved.
    pub(crate) fn closed(&mut self, record: &Arc<Record>) -> bool {
        if let Some(position) = record.envelope.position() {
            let same = self.open.range((position, 0)..=(position, u64::MAX));
            let key = same
                .filter(|(_, open)| Arc::ptr_eq(open, record))
                .map(|(key, _)| *key)
                .next();
            key.and_then(|key| self.open.remove(&key));
        }
        !std::mem::replace(&mut self.unsaved.progressed, true)
    }

    /// Keeps track of a record that was left to the log, for its receipt.
    pub(crate) fn keep_left(&mut self, record: &Arc<Record>) {
        if let Some(position) = record.envelope.position().filter(|_| record.is_followed()) {
            self.left.insert(position, Arc::downgrade(record));
        }
    }

    /// Tells a receipt the outcome of a delivery that was left to the log. Returns the record, to be
    /// dropped without the lock: its payload is the user's.
    pub(crate) fn resolve_left(
        &mut self,
        position: Position,
        subscribed: &Arc<Subscribed>,
        outcome: DeliveryOutcome,
    ) -> Option<Arc<Record>> {
        let record = self.left.get(&position).and_then(Weak::upgrade);
        if let Some((record, target)) = record
            .as_ref()
            .and_then(|it| Some((it, it.target(subscribed)?)))
        {
            record.resolve(target, outcome);
        }
        if record.as_ref().is_none_or(|record| record.is_resolved()) {
            self.left.remove(&position);
        }
        record
    }

    /// Ends what receipts wait for of a subscription's deliveries that were left to the log.
    pub(crate) fn stop_left(&mut self, subscribed: &Arc<Subscribed>) -> Vec<Arc<Record>> {
        let records: Vec<_> = self.left.values().filter_map(Weak::upgrade).collect();
        for record in &records {
            if let Some(target) = record
                .target(subscribed)
                .filter(|&target| record.is_left(target))
            {
                record.resolve(target, DeliveryOutcome::Stopped);
            }
        }
        records
    }

    /// Every record that a receipt may still wait for.
    pub(crate) fn drain(&mut self) -> Vec<Arc<Record>> {
        let left = std::mem::take(&mut self.left);
        let open = std::mem::take(&mut self.open);
        open.into_values()
            .chain(left.into_values().filter_map(|weak| weak.upgrade()))
            .collect()
    }

    /// Adds changes to be committed, and a retry that waits for that.
    pub(crate) fn change(
        &mut self,
        changes: impl IntoIterator<Item = DeliveryChange>,
        retry: Option<Due>,
    ) {
        self.unsaved.changes.extend(changes);
        self.unsaved.retries.extend(retry);
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.unsaved.changes.is_empty()
    }

    pub(crate) fn is_saved(&self) -> bool {
        !self.has_changes() && !self.unsaved.progressed && !self.unsaved.in_commit
    }

    pub(crate) fn saved(&mut self) {
        self.unsaved.in_commit = false;
        self.saves = self.taken;
    }

    /// How many saves were committed.
    pub(crate) fn saves(&self) -> u64 {
        self.saves
    }

    /// The number of the save that commits what is unsaved now.
    pub(crate) fn next_save(&self) -> u64 {
        self.taken + 1
    }

    /// Takes what is to be committed: the changes, and how far everyone has come with them.
    ///
    /// Both are taken in one step, so that no progress passes a position that only a later commit
    /// covers (R1).
    pub(crate) fn take_unsaved(
        &mut self,
        members: &[Member],
        mailboxes: &Mailboxes,
    ) -> (DeliveryChanges, Vec<Due>) {
        let unsaved = &mut self.unsaved;
        let mut changes = std::mem::take(&mut unsaved.changes);
        let retries = std::mem::take(&mut unsaved.retries);
        unsaved.progressed = false;
        unsaved.in_commit = true;
        self.taken += 1;
        changes.extend(self.progress(members, mailboxes));
        (changes, retries)
    }

    /// How far each member has come (R3). A queued event whose aggregate is blocked is covered by
    /// the block's row, and so is not unfinished as well (R1).
    pub(crate) fn progress(
        &self,
        members: &[Member],
        mailboxes: &Mailboxes,
    ) -> Vec<DeliveryChange> {
        self.progress_through(self.through, members, mailboxes)
    }

    /// The same of members that were given nothing after `given`.
    pub(crate) fn progress_through(
        &self,
        given: Position,
        members: &[Member],
        mailboxes: &Mailboxes,
    ) -> Vec<DeliveryChange> {
        let place = |wanted: &Arc<Subscribed>| {
            members
                .iter()
                .position(|member| Arc::ptr_eq(&member.subscribed, wanted))
        };
        let mut open = vec![Vec::new(); members.len()];
        for (&(position, _), record) in &self.open {
            for (target, subscribed) in record.targets.iter().enumerate() {
                if let Some(member) = record.is_open(target).then(|| place(subscribed)).flatten() {
                    open[member].push(position);
                }
            }
        }
        for (subscribed, mut covered) in mailboxes.covered() {
            if let Some(member) = place(subscribed) {
                covered.sort_unstable();
                open[member].retain(|position| covered.binary_search(position).is_err());
            }
        }
        let progressed = members
            .iter()
            .zip(open)
            .filter_map(|(member, mut unfinished)| {
                let Member { subscribed, joined } = member;
                unfinished.extend(joined.unfinished.range(given.next()..));
                unfinished.sort_unstable();
                unfinished.dedup();
                let through = given.max(joined.through);
                Some(DeliveryChange::Progressed(
                    subscribed.id?,
                    Progress {
                        through,
                        unfinished,
                    },
                ))
            });
        progressed.collect()
    }

    /// How many events of the log are still to be handed over.
    pub(crate) fn lag(&self) -> u64 {
        self.head.get().saturating_sub(self.through.get())
    }

    /// How many deliveries are open.
    pub(crate) fn open_deliveries(&self) -> usize {
        let open = |record: &Arc<Record>| {
            (0..record.targets.len())
                .filter(|&target| record.is_open(target))
                .count()
        };
        self.open.values().map(open).sum()
    }
}
