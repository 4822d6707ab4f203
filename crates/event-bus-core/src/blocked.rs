//! A subscription that is blocked on an aggregate, and its *backlog*: what it has not handled.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use domain_events::{
    AggregateRef, BlockedAggregate, DeliveryChange, EventId, Position, Recorded, Timestamp,
    Urgency, Version, WaitingDelivery,
};
use tokio::time::Instant;

use crate::{
    record::{Record, Rest},
    subscribed::Subscribed,
};

/// What a blocked subscription has not handled of an aggregate, the first delivery first. Rounds
/// pass the subscription over until the backlog is worked off, alone and in order.
pub(crate) struct Blocked {
    pub(crate) subscribed: Arc<Subscribed>,
    pub(crate) behind: Behind,
    /// Attempts made of the first delivery, and when the first of them began.
    pub(crate) attempts: u32,
    pub(crate) began: Instant,
    pub(crate) stand: Stand,
    /// Up to here, deliveries of an earlier run are counted when they are come to.
    pub(crate) uncounted: Position,
    /// The dead letter behind which it is parked again once the first delivery is over, which is a
    /// replay of an older one.
    pub(crate) parked_again: Option<EventId>,
    /// Dead letters to be delivered again: before the next delivery of the log, but after one that was
    /// attempted already (durable).
    pub(crate) replays: VecDeque<Position>,
    /// Whether the attempts are those of the first replay.
    pub(crate) is_at_replay: bool,
    /// The save that commits the last replay that was asked for (durable); none is made before that.
    pub(crate) replays_from: u64,
    /// Whether a run that began earlier may still make deliveries of the aggregate.
    pub(crate) beside_run: bool,
    /// Whether it has come further in the log since its row was last to be saved.
    pub(crate) has_moved: bool,
    /// Deliveries in memory behind the first that an earlier run has attempted.
    pub(crate) resumed: Vec<Resumed>,
}

/// What an earlier run has left of a delivery.
pub(crate) struct Resumed {
    position: Position,
    attempts: u32,
    began: Instant,
    due: Instant,
}

impl From<&WaitingDelivery> for Resumed {
    fn from(delivery: &WaitingDelivery) -> Self {
        let (now, clock) = (Timestamp::now(), Instant::now());
        let began = clock.checked_sub(now.since(delivery.first_attempt_at));
        Self {
            position: delivery.position,
            attempts: delivery.attempts,
            began: began.unwrap_or(clock),
            due: clock + delivery.due_at.since(now),
        }
    }
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
        /// How many of them were passed over in this run.
        passed_over: u64,
    },
}

/// What a backlog waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// The time of the next attempt.
    Waiting,
    /// The end of the run that the aggregate is in.
    AfterRun,
    /// A worker.
    Ready,
    /// Nothing: a worker is at it.
    Running,
    /// Its subscription to be resumed, or its circuit breaker; the next attempt is due.
    Held,
    /// The dead letter of this event, before it, to be replayed or discarded (F5).
    Parked(EventId),
}

impl Blocked {
    pub(crate) fn new(subscribed: &Arc<Subscribed>, behind: Behind, stand: Stand) -> Self {
        Self {
            subscribed: Arc::clone(subscribed),
            behind,
            attempts: 0,
            began: Instant::now(),
            stand,
            uncounted: Position::ZERO,
            parked_again: None,
            replays: VecDeque::new(),
            is_at_replay: false,
            replays_from: 0,
            beside_run: false,
            has_moved: false,
            resumed: Vec::new(),
        }
    }

    /// Adds a delivery that an earlier run has left waiting. Returns how long it is to wait, where it is
    /// the first.
    pub(crate) fn resume(&mut self, delivery: &WaitingDelivery) -> Duration {
        if delivery.is_replay {
            match delivery.attempts {
                0 => self.replays.push_back(delivery.position),
                _ => self.replays.push_front(delivery.position),
            }
        }
        if delivery.attempts == 0 {
            return Duration::ZERO;
        }
        self.is_at_replay = delivery.is_replay;
        self.resume_first(&delivery.into())
    }

    /// Goes on with the first delivery as an earlier run has left it. Returns how long it is to wait.
    fn resume_first(&mut self, left: &Resumed) -> Duration {
        (self.attempts, self.began) = (left.attempts, left.began);
        left.due.saturating_duration_since(Instant::now())
    }

    /// Adds a delivery in memory that an earlier run has left waiting, behind all that is there: a worker
    /// may be at the first. Returns how long it is to wait, where it is the first.
    pub(crate) fn resume_in_memory(
        &mut self,
        record: &Arc<Record>,
        delivery: &WaitingDelivery,
    ) -> Option<Duration> {
        let Behind::Memory(records) = &mut self.behind else {
            return None;
        };
        records.push_back(Arc::clone(record));
        let is_first = records.len() == 1;
        if delivery.attempts > 0 {
            self.resumed.push(delivery.into());
        }
        is_first.then(|| self.resume_next().unwrap_or_default())
    }

    /// Goes on with what is the first delivery in memory now, where an earlier run has attempted it.
    /// Returns how long it is to wait then.
    pub(crate) fn resume_next(&mut self) -> Option<Duration> {
        let Behind::Memory(records) = &self.behind else {
            return None;
        };
        let first = records.front()?.envelope.position()?;
        let place = self.resumed.iter().position(|it| it.position == first)?;
        let left = self.resumed.swap_remove(place);
        Some(self.resume_first(&left))
    }

    /// Whether nothing is to be delivered before what is parked.
    pub(crate) fn is_only_parked(&self) -> bool {
        self.replays.is_empty() && self.attempts == 0
    }

    /// The replay that is the first delivery, if it is one.
    pub(crate) fn first_replay(&self) -> Option<Position> {
        let first = self.replays.front().copied();
        first.filter(|_| self.is_at_replay || self.attempts == 0)
    }

    /// Adds what `old`, which it replaces, has to do behind its own first delivery.
    pub(crate) fn take_over(&mut self, old: Self) {
        match (&mut self.behind, old.behind) {
            (Behind::Memory(first), Behind::Memory(rest)) => first.extend(rest),
            (
                Behind::Log {
                    through,
                    passed_over,
                    ..
                },
                Behind::Log {
                    through: old_through,
                    passed_over: old_passed_over,
                    ..
                },
            ) => {
                *through = old_through.max(*through);
                *passed_over += old_passed_over;
            }
            _ => {}
        }
        (self.replays, self.parked_again) = (old.replays, old.parked_again);
        (self.resumed, self.replays_from) = (old.resumed, old.replays_from);
    }

    /// Positions of events in memory for whose deliveries a row of the store stands: their own, or, of
    /// those that are `queued`, that of the whole backlog.
    pub(crate) fn covered<'a>(
        &'a self,
        queued: impl Iterator<Item = &'a Arc<Record>>,
    ) -> Vec<Position> {
        let position = |record: &Arc<Record>| record.envelope.position();
        match &self.behind {
            Behind::Log { from, .. } => queued
                .filter_map(position)
                .filter(|position| position >= from)
                .collect(),
            Behind::Memory(records) => {
                let attempted = records.front().filter(|_| self.attempts > 0);
                let attempted = attempted.and_then(position);
                let left = self.resumed.iter().map(|left| left.position);
                let replays = records.iter().filter(|record| record.marks.is_replay);
                let replays = replays.filter_map(position);
                attempted.into_iter().chain(left).chain(replays).collect()
            }
        }
    }

    /// Ends the first delivery, whatever came of it; a replay may have been asked for meanwhile, so
    /// whether it was one is for whoever made it to say.
    pub(crate) fn end_first(&mut self, is_replay: bool) {
        if is_replay {
            self.replays.pop_front();
        }
        (self.attempts, self.is_at_replay) = (0, false);
    }

    /// After a first attempt that began then, and failed.
    pub(crate) fn attempted(self, attempts: u32, began: Instant) -> Self {
        Self {
            attempts,
            began,
            ..self
        }
    }

    pub(crate) fn stand(&self) -> Stand {
        self.stand
    }

    /// Whether nothing of it is in memory.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.behind {
            Behind::Memory(records) => records.is_empty(),
            Behind::Log { .. } => false,
        }
    }

    /// Adds the replay of a dead letter. Returns whether the backlog is to go on for it.
    pub(crate) fn replay(&mut self, record: Arc<Record>) -> bool {
        let event = record.envelope.id();
        let Behind::Memory(records) = &mut self.behind else {
            return false;
        };
        match (self.stand, self.parked_again) {
            // What is parked waits for it, or for a newer one: it goes before both.
            (Stand::Parked(by), _) => {
                records.push_front(record);
                self.attempts = 0;
                self.is_replayed(by, event);
                true
            }
            // The same, and an older one is being replayed.
            (_, Some(by)) if by == event => {
                self.parked_again = None;
                records.insert(records.len().min(1), record);
                false
            }
            _ => {
                records.push_back(record);
                records.len() == 1
            }
        }
    }

    /// Notes, where it is parked behind one dead letter, that another one or the same is replayed.
    fn is_replayed(&mut self, parked_behind: EventId, event: EventId) {
        if parked_behind != event {
            self.parked_again = Some(parked_behind);
        }
    }

    /// Adds the replay of a dead letter of the log. Returns whether the backlog is to go on for it.
    pub(crate) fn replay_from_log(&mut self, event: EventId, position: Position) -> bool {
        self.replays.push_back(position);
        match (self.stand, self.parked_again) {
            (Stand::Parked(by), _) => {
                self.is_replayed(by, event);
                true
            }
            (_, Some(by)) if by == event => {
                self.parked_again = None;
                false
            }
            // What was attempted waits for its own time.
            (Stand::Waiting, _) => self.attempts == 0,
            _ => false,
        }
    }

    /// Forgets the dead letter of an event. Returns whether the backlog is to go on.
    pub(crate) fn discard(&mut self, event: EventId) -> bool {
        if self.parked_again == Some(event) {
            self.parked_again = None;
        }
        if self.stand != Stand::Parked(event) {
            return false;
        }
        if let Some(by) = self.parked_again.take() {
            self.stand = Stand::Parked(by);
        }
        self.stand == Stand::Parked(event)
    }

    /// When the first attempt of the first delivery began.
    pub(crate) fn first_attempt_at(&self) -> Timestamp {
        before(self.began.elapsed())
    }

    /// The row that stands for it; `None` on a volatile bus.
    pub(crate) fn row(&self, aggregate: &AggregateRef) -> Option<DeliveryChange> {
        let Behind::Log { from, version, .. } = self.behind else {
            return None;
        };
        let parked_behind = match self.stand {
            Stand::Parked(by) => Some(by),
            _ => self.parked_again,
        };
        let row = BlockedAggregate {
            aggregate: aggregate.clone(),
            from,
            version,
            parked_behind,
        };
        Some(DeliveryChange::Blocked(self.subscribed.id?, row))
    }

    /// Whether an event of the log is one of those that are read back from it, which it becomes where it
    /// comes before the first of them.
    pub(crate) fn takes_in(&mut self, event: Recorded) -> bool {
        let Behind::Log {
            from,
            version,
            through,
            ..
        } = &mut self.behind
        else {
            return false;
        };
        if event.position > *through {
            return false;
        }
        if event.position < *from {
            (*from, *version) = (event.position, event.version);
            self.has_moved = true;
        }
        true
    }

    /// Whether it goes on without anybody acting; else it does not count as something to be done.
    pub(crate) fn is_active(&self) -> bool {
        match self.stand {
            Stand::Parked(_) => false,
            // What is held and not paused waits for its circuit breaker.
            Stand::Held | Stand::Waiting => !self.subscribed.is_paused(),
            Stand::AfterRun | Stand::Ready | Stand::Running => true,
        }
    }

    /// Why its deliveries rest, if they do.
    pub(crate) fn rests(&self) -> Option<Rest> {
        if matches!(self.stand, Stand::Parked(_)) {
            Some(Rest::Parked)
        } else if self.subscribed.is_paused() {
            Some(Rest::Paused)
        } else {
            None
        }
    }

    /// The urgency of the most urgent event in memory.
    pub(crate) fn urgency(&self) -> Urgency {
        match &self.behind {
            Behind::Memory(records) => {
                let urgencies = records.iter().map(|record| record.urgency);
                urgencies.max().unwrap_or(Urgency::Normal)
            }
            Behind::Log { .. } => Urgency::Normal,
        }
    }

    /// Notes in its records in memory that they rest, or rest no more. Returns those whose receipts
    /// are to be told.
    pub(crate) fn note_rest(&self) -> Vec<Arc<Record>> {
        let Behind::Memory(records) = &self.behind else {
            return Vec::new();
        };
        let mut told = Vec::new();
        for record in records {
            let Some(target) = record.target(&self.subscribed) else {
                continue;
            };
            match self.rests() {
                Some(why) => {
                    record.rest(target, why);
                    told.push(Arc::clone(record));
                }
                None => record.go_on(target),
            }
        }
        told
    }
}

impl Behind {
    /// Adds an event that is passed over. Returns whether its row is to say so, as it begins with it.
    pub(crate) fn push(&mut self, record: &Arc<Record>) -> bool {
        match self {
            Self::Memory(records) => {
                records.push_back(Arc::clone(record));
                false
            }
            Self::Log {
                from,
                version,
                through,
                passed_over,
            } => {
                let Some(recorded) = record.envelope.recorded() else {
                    return false;
                };
                let is_before = recorded.position < *from;
                // The first that waits; its version was not known where there was none.
                if is_before || *from > *through {
                    (*from, *version) = (recorded.position, recorded.version);
                }
                *through = recorded.position.max(*through);
                *passed_over += 1;
                is_before
            }
        }
    }

    /// What begins with an event of the log: nothing as yet, as that is not passed over.
    pub(crate) fn before(recorded: Recorded) -> Self {
        Self::Log {
            from: recorded.position,
            version: recorded.version,
            through: recorded.position.previous(),
            passed_over: 0,
        }
    }

    /// What follows an event of the log: nothing as yet.
    pub(crate) fn after(recorded: Recorded) -> Self {
        Self::Log {
            from: recorded.position.next(),
            version: recorded.version.next(),
            through: recorded.position,
            passed_over: 0,
        }
    }
}

/// The moment this long ago.
pub(crate) fn before(age: std::time::Duration) -> Timestamp {
    let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(Timestamp::now().as_micros().saturating_sub(age))
}
