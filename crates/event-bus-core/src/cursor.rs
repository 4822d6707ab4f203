//! How far a durable bus has come in the log, and what of that is open.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
};

use domain_events::{AggregateRef, DeliveryChange, DeliveryOutcome, Position};

use tokio::time::Instant;

use crate::{
    after::After,
    followed::Followed,
    inside::BusId,
    mailboxes::Mailboxes,
    pipeline::PipelineId,
    record::{Marks, Record, Rest},
    subscribed::Subscribed,
    subscriptions::{Member, Subscriptions},
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
    /// Receipts of events that are still to be read from the log, and which part of theirs is.
    pub(crate) awaited: HashMap<Position, (Weak<Followed>, usize)>,
    /// Records with receipts whose deliveries a row of the store covers.
    left: HashMap<Position, Weak<Record>>,
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
        }
    }

    /// Notes that an event was handed over. Returns a receipt that was waiting for it, to be dropped
    /// without the lock: it may be the last, and the payload is the user's.
    pub(crate) fn opened(
        &mut self,
        position: Position,
        record: &Arc<Record>,
    ) -> Option<(Arc<Followed>, usize)> {
        self.through = position;
        if !record.is_finished() {
            self.opened += 1;
            self.open
                .insert((position, self.opened), Arc::clone(record));
        }
        let (followed, part) = self.awaited.remove(&position)?;
        record.set_followed(true);
        Some((followed.upgrade()?, part))
    }

    /// Notes that an event is finished.
    pub(crate) fn closed(&mut self, record: &Arc<Record>) {
        if let Some(position) = record.envelope.position() {
            let same = self.open.range((position, 0)..=(position, u64::MAX));
            let key = same
                .filter(|(_, open)| Arc::ptr_eq(open, record))
                .map(|(key, _)| *key)
                .next();
            key.and_then(|key| self.open.remove(&key));
        }
    }

    /// Keeps track of a record that was left to the log, for its receipt.
    pub(crate) fn keep_left(&mut self, record: &Arc<Record>) {
        if let Some(position) = record.envelope.position().filter(|_| record.is_followed()) {
            self.left.insert(position, Arc::downgrade(record));
        }
    }

    /// Forgets the receipt of an event: nobody asks what becomes of it.
    pub(crate) fn forget(&mut self, position: Position) {
        self.awaited.remove(&position);
        self.left.remove(&position);
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
        if !record.as_ref().is_some_and(|record| record.is_any_left()) {
            self.left.remove(&position);
        }
        record
    }

    /// Notes that a subscription's deliveries that were left to the log, of one aggregate or of all,
    /// rest, or rest no more. Returns the records, to be told and dropped without the lock.
    pub(crate) fn note_rest(
        &self,
        subscribed: &Arc<Subscribed>,
        aggregate: Option<&AggregateRef>,
        why: Option<Rest>,
    ) -> Vec<Arc<Record>> {
        let of = |record: &Arc<Record>| {
            aggregate.is_none_or(|aggregate| record.envelope.aggregate() == aggregate)
        };
        let records = self.left.values().filter_map(Weak::upgrade);
        let records: Vec<_> = records.filter(of).collect();
        for record in &records {
            if let Some(target) = record
                .target(subscribed)
                .filter(|&target| record.is_left(target))
            {
                match why {
                    Some(why) => record.rest(target, why),
                    None => record.go_on(target),
                }
            }
        }
        records
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
        let is_left = |record: &Weak<Record>| record.upgrade().is_some_and(|it| it.is_any_left());
        self.left.retain(|_, record| is_left(record));
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

    /// Gives every receipt that waits for an event of the log, up to a position, a record of it, as it
    /// will not be read any more. Returns the records.
    pub(crate) fn find_awaited(
        &mut self,
        through: Position,
        bus: BusId,
        pipeline: PipelineId,
        subscriptions: &Subscriptions,
        after: &mut After,
    ) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        let awaited = self.awaited.extract_if(|position, _| *position <= through);
        for (position, (followed, part)) in awaited {
            let Some(followed) = followed.upgrade() else {
                continue;
            };
            if let Some(event) = followed.event().cloned() {
                let targets = subscriptions.targets(pipeline, event.event_type(), position);
                let now = Instant::now();
                let record = Arc::new(Record::new(bus, event, targets, now, Marks::default()));
                records.push(Arc::clone(&record));
                after.found.push((followed, part, record));
            }
        }
        records
    }

    /// How far each member has come (R3). A queued event whose aggregate is blocked is covered by
    /// the block's row, and so is not unfinished as well (R1).
    pub(crate) fn progress(
        &self,
        members: &[&Member],
        mailboxes: &Mailboxes,
    ) -> Vec<DeliveryChange> {
        let place = |wanted: &Arc<Subscribed>| {
            members
                .iter()
                .position(|member| Arc::ptr_eq(&member.subscribed, wanted))
        };
        let mut open = vec![Vec::new(); members.len()];
        for (&(position, _), record) in &self.open {
            for (target, subscribed) in record.targets().iter().enumerate() {
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
        let progressed = members.iter().zip(open).filter_map(|(member, open)| {
            let progress = member.joined.progress(self.through, open);
            Some(DeliveryChange::Progressed(member.subscribed.id?, progress))
        });
        progressed.collect()
    }

    /// The events that a subscription has not finished, but for those that a row covers.
    pub(crate) fn open_of(
        &self,
        subscribed: &Arc<Subscribed>,
        covered: &[Position],
    ) -> Vec<Arc<Record>> {
        let is_open = |record: &Arc<Record>| {
            let target = record.target(subscribed);
            target.is_some_and(|target| record.is_open(target))
        };
        self.open
            .iter()
            .filter(|((position, _), record)| is_open(record) && !covered.contains(position))
            .map(|(_, record)| Arc::clone(record))
            .collect()
    }

    /// How many events of the log are still to be handed over.
    pub(crate) fn lag(&self) -> u64 {
        self.head.get().saturating_sub(self.through.get())
    }

    /// The events that are not finished.
    pub(crate) fn open_records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.open.values()
    }

    /// How many deliveries are open.
    pub(crate) fn open_deliveries(&self) -> usize {
        let open = |record: &Arc<Record>| {
            (0..record.targets().len())
                .filter(|&target| record.is_open(target))
                .count()
        };
        self.open.values().map(open).sum()
    }
}
