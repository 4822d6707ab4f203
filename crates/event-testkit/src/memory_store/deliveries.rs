//! The delivery state of a store in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use domain_events::{
    BlockedAggregate, DeadLetter, DeadLetterGroup, DeadLetterQuery, DeliveryChange,
    DeliveryChanges, PauseReason, Position, ProcessingOutcome, Progress, Registration, RunState,
    StartedDelivery, StoreError, StoreErrorKind, StoredSubscription, SubscriptionId,
    SubscriptionState, Timestamp, WaitingDelivery,
};

use super::log::{Log, Row};

/// Subscriptions in the order in which they became known, dead letters, and the last run.
#[derive(Clone, Default)]
pub(super) struct Deliveries {
    subscriptions: Vec<Subscription>,
    dead_letters: Vec<DeadLetter>,
    /// How many letters were ever kept.
    letters: u64,
    processed: VecDeque<ProcessingOutcome>,
    /// Whether a run has begun and not ended.
    is_running: bool,
    repeats_through: Position,
}

#[derive(Clone)]
pub(super) struct Subscription {
    pub(super) name: Arc<str>,
    pub(super) progress: Progress,
    pub(super) waiting: BTreeMap<Position, WaitingDelivery>,
    pub(super) blocked: Vec<BlockedAggregate>,
    /// How many unclean ends have found each delivery running, and whether this run has started it.
    started: BTreeMap<Position, (u32, bool)>,
    paused: Option<PauseReason>,
}

impl Subscription {
    fn new(name: &Arc<str>, through: Position) -> Self {
        Self {
            name: Arc::clone(name),
            progress: Progress {
                through,
                unfinished: Vec::new(),
            },
            waiting: BTreeMap::new(),
            blocked: Vec::new(),
            started: BTreeMap::new(),
            paused: None,
        }
    }

    /// Whether it was not forgotten: it has lost its name then, which none is without.
    fn is_there(&self) -> bool {
        !self.name.is_empty()
    }

    fn state(&self, index: usize) -> SubscriptionState {
        let started = self.started.iter();
        let started = started.map(|(&position, &(unclean_ends, _))| StartedDelivery {
            position,
            unclean_ends,
        });
        SubscriptionState {
            id: SubscriptionId::new(index as i64 + 1),
            progress: self.progress.clone(),
            waiting: self.waiting.values().cloned().collect(),
            blocked: self.blocked.clone(),
            started: started.collect(),
            paused: self.paused,
        }
    }

    /// The first position that is not finished; replays, whose events are kept, do not count.
    fn first_open(&self) -> Position {
        let waiting = self.waiting.values().filter(|it| !it.is_replay);
        let progress = &self.progress;
        let open = progress.unfinished.iter().copied();
        open.chain(waiting.map(|it| it.position))
            .chain(self.blocked.iter().map(|it| it.from))
            .chain([progress.through.next()])
            .min()
            .unwrap_or_default()
    }

    fn has_unfinished(&self, row: &Row) -> bool {
        let position = row.recorded.position;
        position > self.progress.through
            || self.progress.unfinished.contains(&position)
            || self.waiting.contains_key(&position)
            || self
                .blocked
                .iter()
                .any(|blocked| blocked.aggregate == row.aggregate && blocked.from <= position)
    }

    /// Notes an end of the run before this one.
    fn run_ended(&mut self, cleanly: bool) {
        if cleanly {
            self.started.clear();
        }
        for (ends, is_running) in self.started.values_mut() {
            *ends += u32::from(std::mem::take(is_running));
        }
    }
}

impl Deliveries {
    /// Whether some subscription has not finished an event.
    pub(super) fn has_unfinished(&self, row: &Row) -> bool {
        self.known().any(|it| it.has_unfinished(row))
    }

    pub(super) fn begin_run(
        &mut self,
        registrations: &[Registration],
        log: &Log,
    ) -> Result<RunState, StoreError> {
        let mut started = self.clone();
        let run = started.begin(registrations, log)?;
        *self = started;
        Ok(run)
    }

    fn begin(&mut self, registrations: &[Registration], log: &Log) -> Result<RunState, StoreError> {
        let head = log.head();
        let after_clean_end = !std::mem::replace(&mut self.is_running, true);
        let all = self.subscriptions.iter_mut();
        all.for_each(|it| it.run_ended(after_clean_end));
        if !after_clean_end {
            self.repeats_through = head;
        }
        let repeats_through = self.repeats_through;
        let states = registrations.iter().map(|it| self.register(it, log));
        let subscriptions = states.collect::<Result<_, _>>()?;
        Ok(RunState {
            after_clean_end,
            repeats_through,
            head,
            subscriptions,
        })
    }

    /// What is known of a subscription, which is made known where it is new.
    pub(super) fn register(
        &mut self,
        registration: &Registration,
        log: &Log,
    ) -> Result<SubscriptionState, StoreError> {
        let (name, start) = (&registration.name, registration.start_from);
        let index = self.named(name).or_else(|| self.rename(registration));
        let index = match index {
            Some(index) => index,
            None => {
                let through = start.place(name, log.head(), log.pruned_through)?;
                self.subscriptions.push(Subscription::new(name, through));
                self.subscriptions.len() - 1
            }
        };
        Ok(self.subscriptions[index].state(index))
    }

    /// Up to here every subscription has finished everything (R8).
    pub(super) fn finished_by_all(&self) -> Position {
        let first_open = self.known().map(Subscription::first_open);
        first_open
            .min()
            .map_or(Position::new(u64::MAX), Position::previous)
    }

    /// Whether an event is kept though the log is pruned.
    pub(super) fn keeps(&self, position: Position) -> bool {
        let mut letters = self.dead_letters.iter();
        letters.any(|letter| letter.position() == Some(position))
            || self
                .known()
                .any(|it| it.waiting.contains_key(&position) || it.started.contains_key(&position))
    }

    /// Gives the name to the first that is known by a former one.
    fn rename(&mut self, registration: &Registration) -> Option<usize> {
        let mut former = registration.former_names.iter();
        let index = former.find_map(|name| self.named(name))?;
        let known = &mut self.subscriptions[index];
        let former = std::mem::replace(&mut known.name, Arc::clone(&registration.name));
        let own = self.dead_letters.iter_mut();
        for letter in own.filter(|letter| letter.subscription == former) {
            letter.subscription = Arc::clone(&registration.name);
        }
        Some(index)
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.subscriptions.iter().position(|it| &*it.name == name)
    }

    pub(super) fn subscriptions(&self, log: &Log) -> Vec<StoredSubscription> {
        let stored = |it: &Subscription| {
            let rows = log.after(Position::ZERO);
            let unfinished = rows.filter(|row| it.has_unfinished(row));
            let letters = self.dead_letters.iter();
            StoredSubscription {
                name: Arc::clone(&it.name),
                through: it.progress.through,
                lag: unfinished.count() as u64,
                dead: letters
                    .filter(|letter| letter.subscription == it.name)
                    .count() as u64,
                paused: it.paused,
                version: None,
            }
        };
        self.known().map(stored).collect()
    }

    pub(super) fn dead_letters(&self, query: &DeadLetterQuery, limit: usize) -> Vec<DeadLetter> {
        let letters = self.dead_letters.iter();
        let wanted = letters.filter(|letter| query.matches(letter));
        wanted.take(limit).cloned().collect()
    }

    pub(super) fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Vec<ProcessingOutcome> {
        let of =
            |it: &&ProcessingOutcome| subscription.is_none_or(|name| name == &*it.subscription);
        let latest = self.processed.iter().rev().filter(of);
        latest.take(limit).cloned().collect()
    }

    pub(super) fn dead_letter_groups(&self, query: &DeadLetterQuery) -> Vec<DeadLetterGroup> {
        let letters = self.dead_letters.iter();
        DeadLetterGroup::of(letters.filter(|letter| query.matches(letter)))
    }

    /// Makes all changes, or none where one makes no sense.
    pub(super) fn change(
        &mut self,
        changes: &DeliveryChanges,
        log: &Log,
    ) -> Result<(), StoreError> {
        for change in changes {
            self.check(change, log)
                .map_err(|what| StoreError::new(StoreErrorKind::Other, what))?;
            if let DeliveryChange::Reset(name, start) = change {
                start.place(name, log.head(), log.pruned_through)?;
            }
        }
        for change in changes {
            self.make(change.clone(), log);
        }
        Ok(())
    }

    /// Every subscription that was not forgotten.
    pub(super) fn known(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().filter(|it| it.is_there())
    }

    /// The dead letters of one subscription.
    pub(super) fn letters_of(&self, name: &str) -> impl Iterator<Item = &DeadLetter> {
        let letters = self.dead_letters.iter();
        letters.filter(move |letter| &*letter.subscription == name)
    }

    /// Has everything that waits be due so much earlier.
    pub(super) fn let_pass(&mut self, time: Duration) {
        let earlier = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let all = self.subscriptions.iter_mut();
        for delivery in all.flat_map(|it| it.waiting.values_mut()) {
            let due_at = delivery.due_at.as_micros().saturating_sub(earlier);
            delivery.due_at = Timestamp::from_micros(due_at);
        }
    }

    fn check(&self, change: &DeliveryChange, log: &Log) -> Result<(), &'static str> {
        let (id, fault) = match change {
            DeliveryChange::RunEnded
            | DeliveryChange::Processed { .. }
            | DeliveryChange::Discarded { .. }
            | DeliveryChange::Reset(..)
            | DeliveryChange::Forgotten(_) => return Ok(()),
            DeliveryChange::Progressed(id, progress) => (id, !makes_sense(progress)),
            DeliveryChange::Waiting(id, delivery) => (id, !log.knows(&delivery.aggregate)),
            DeliveryChange::Blocked(id, blocked) => (id, !log.knows(&blocked.aggregate)),
            DeliveryChange::Dead(id, letter) => (
                id,
                !letter.position().is_some_and(|position| log.has(position)),
            ),
            DeliveryChange::Replayed(id, delivery) => (id, !log.knows(&delivery.aggregate)),
            DeliveryChange::Finished(id, _)
            | DeliveryChange::Paused(id, _)
            | DeliveryChange::Started(id, _)
            | DeliveryChange::Ended(id, _) => (id, false),
            // An aggregate that is unknown is not blocked, whoever asks.
            DeliveryChange::Unblocked(_, aggregate) if !log.knows(aggregate) => return Ok(()),
            DeliveryChange::Unblocked(id, _) => (id, false),
            _ => return Err("a change that this store does not know"),
        };
        if fault {
            return Err("a change that makes no sense was not saved");
        }
        let known = self.subscriptions.get(index(*id));
        match known.filter(|it| it.is_there()) {
            Some(_) => Ok(()),
            None => Err("the change of an unknown subscription was not saved"),
        }
    }

    fn make(&mut self, change: DeliveryChange, log: &Log) {
        match change {
            DeliveryChange::Progressed(id, progress) => self.of(id).progress = progress,
            DeliveryChange::Waiting(id, delivery) => {
                self.of(id).waiting.insert(delivery.position, delivery);
            }
            DeliveryChange::Finished(id, position) => {
                self.of(id).waiting.remove(&position);
            }
            DeliveryChange::Dead(id, letter) => self.bury(id, letter),
            DeliveryChange::Blocked(id, blocked) => {
                let all = &mut self.of(id).blocked;
                all.retain(|it| it.aggregate != blocked.aggregate);
                all.push(blocked);
                all.sort_by_key(|it| it.from);
            }
            DeliveryChange::Unblocked(id, aggregate) => {
                if let Some(known) = self.subscriptions.get_mut(index(id)) {
                    known.blocked.retain(|it| it.aggregate != aggregate);
                }
            }
            DeliveryChange::Paused(id, why) => self.of(id).paused = why,
            DeliveryChange::Started(id, position) => {
                self.of(id).started.entry(position).or_default().1 = true;
            }
            DeliveryChange::Ended(id, position) => {
                self.of(id).started.remove(&position);
            }
            DeliveryChange::Replayed(id, delivery) => {
                let name = Arc::clone(&self.of(id).name);
                if self.dig_up(&name, delivery.position) {
                    self.of(id).waiting.insert(delivery.position, delivery);
                }
            }
            DeliveryChange::Discarded {
                subscription,
                position,
                ..
            } => {
                let event = self
                    .dead_letters
                    .iter()
                    .find(|it| it.subscription == subscription && it.position() == Some(position));
                let event = event.map(DeadLetter::event_id);
                if self.dig_up(&subscription, position)
                    && let Some(index) = self.named(&subscription)
                {
                    // Whoever is subscribed says so itself; nobody may be.
                    let blocked = self.subscriptions[index].blocked.iter_mut();
                    blocked
                        .filter(|it| it.parked_behind == event)
                        .for_each(|it| it.parked_behind = None);
                }
            }
            DeliveryChange::Reset(name, start) => {
                let through = start.place(&name, log.head(), log.pruned_through);
                if let (Some(index), Ok(through)) = (self.named(&name), through) {
                    let paused = self.subscriptions[index].paused;
                    let anew = Subscription::new(&name, through);
                    self.subscriptions[index] = Subscription { paused, ..anew };
                    self.dead_letters.retain(|letter| {
                        letter.subscription != name || letter.position() <= Some(through)
                    });
                }
            }
            DeliveryChange::Forgotten(name) => {
                if let Some(index) = self.named(&name) {
                    // Numbers stay those of their places.
                    self.subscriptions[index] = Subscription::new(&"".into(), log.head());
                    self.dead_letters
                        .retain(|letter| letter.subscription != name);
                }
            }
            DeliveryChange::Processed { attempts, keep } => {
                self.processed.extend(attempts);
                let more = self.processed.len().saturating_sub(keep);
                self.processed.drain(..more);
            }
            DeliveryChange::RunEnded => self.is_running = false,
            _ => {}
        }
    }

    fn bury(&mut self, id: SubscriptionId, letter: DeadLetter) {
        self.letters += 1;
        let number = self.letters;
        let subscription = self.of(id);
        let letter = DeadLetter {
            number,
            subscription: Arc::clone(&subscription.name),
            ..letter
        };
        if let Some(position) = letter.position() {
            subscription.waiting.remove(&position);
        }
        let of_delivery = |it: &&mut DeadLetter| {
            it.subscription == letter.subscription && it.position() == letter.position()
        };
        match self.dead_letters.iter_mut().find(of_delivery) {
            Some(earlier) => {
                let number = earlier.number;
                *earlier = DeadLetter { number, ..letter };
            }
            None => self.dead_letters.push(letter),
        }
    }

    /// Takes out a dead letter. Returns whether there was one.
    fn dig_up(&mut self, subscription: &str, position: Position) -> bool {
        let letters = self.dead_letters.len();
        self.dead_letters
            .retain(|it| &*it.subscription != subscription || it.position() != Some(position));
        self.dead_letters.len() < letters
    }

    /// A subscription whose number was checked.
    fn of(&mut self, id: SubscriptionId) -> &mut Subscription {
        &mut self.subscriptions[index(id)]
    }
}

/// Where a subscription is among them; beyond their end where there is none with this number.
fn index(id: SubscriptionId) -> usize {
    usize::try_from(id.get() - 1).unwrap_or(usize::MAX)
}

/// Whether positions ascend from 1 to the end.
fn makes_sense(progress: &Progress) -> bool {
    let positions = &progress.unfinished;
    positions.is_sorted_by(|a, b| a < b)
        && positions
            .first()
            .is_none_or(|first| *first > Position::ZERO)
        && positions
            .last()
            .is_none_or(|last| *last <= progress.through)
}
