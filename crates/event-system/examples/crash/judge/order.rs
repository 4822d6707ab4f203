//! One life, fact by fact: what may begin next, with which attempt, and what must not begin again.

use std::collections::{HashMap, HashSet};

use domain_events::AggregateRef;

use super::{Judge, shown};
use crate::{
    events::{ATTEMPTS, BATCH, Lane, NAMES, PARK, PAUSE, lane},
    journal::{Delivery, Fact, How},
    snapshot::Snapshot,
};

/// What a life has done.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) handled: HashSet<Delivery>,
    pub(super) died: HashSet<Delivery>,
    pub(super) attempts: u64,
    pub(super) repeats: u64,
    pub(super) faults: Vec<String>,
}

/// The deliveries of a lane that were open before the life, and those that came with it.
#[derive(Default)]
struct Queue {
    positions: Vec<u64>,
    /// The one that is being delivered.
    at: usize,
    is_over: bool,
}

/// Watches a life.
pub(super) struct Watch<'a> {
    after: &'a Snapshot,
    /// Deliveries that were handled in earlier lives.
    handled: &'a HashSet<Delivery>,
    queues: HashMap<Lane, Queue>,
    running: HashMap<Lane, Delivery>,
    /// Attempts that are counted in the file, of deliveries and of replays.
    counted: HashMap<(Delivery, bool), u32>,
    crashed: HashSet<Delivery>,
    /// Dead letters behind which a lane is parked.
    parked: HashMap<AggregateRef, HashSet<u64>>,
    /// What died of whoever pauses, by aggregate; nothing may follow until it is resumed.
    died_of_pause: HashMap<AggregateRef, u64>,
    paused: HashSet<usize>,
    /// Who may be resumed, or not yet.
    resuming: HashSet<usize>,
    /// Deliveries of which a later one of their lane has begun, so that they are over for the bus.
    over: Vec<Delivery>,
    /// How many of them the bus knew when it began the save before the last one.
    known: usize,
    saved: usize,
    seen: Seen,
}

impl<'a> Watch<'a> {
    pub(super) fn new(judge: &'a Judge, after: &'a Snapshot) -> Self {
        let before = &judge.before;
        let mut queues: HashMap<Lane, Queue> = HashMap::new();
        let (mut counted, mut parked, mut paused) =
            (HashMap::new(), HashMap::new(), HashSet::new());
        for who in 0..NAMES.len() {
            for (position, event) in after.deliveries(who) {
                if before.is_open((who, position), &event.aggregate) {
                    let lane = lane((who, position), &event.aggregate);
                    let queue = queues.entry(lane).or_default();
                    queue.positions.push(position);
                }
            }
            let known = &before.known[who];
            for (position, (attempts, is_replay)) in &known.waiting {
                counted.insert(((who, *position), *is_replay), *attempts);
            }
            if known.is_paused {
                paused.insert(who);
            }
        }
        for (aggregate, (_, behind)) in &before.known[PARK].blocked {
            parked.insert(aggregate.clone(), behind.iter().copied().collect());
        }
        let letters = after.letters.iter();
        let letters = letters.filter(|letter| letter.reason == "crashed");
        let crashed = letters.map(|letter| letter.delivery);
        // These are given up when they are come to, be it that nothing of that was saved.
        let found = judge.found_running.iter().filter(|(_, ends)| **ends >= 3);
        Self {
            after,
            handled: &judge.handled,
            queues,
            running: HashMap::new(),
            counted,
            crashed: crashed
                .chain(found.map(|(delivery, _)| *delivery))
                .collect(),
            parked,
            died_of_pause: HashMap::new(),
            paused,
            resuming: HashSet::new(),
            over: Vec::new(),
            known: 0,
            saved: 0,
            seen: Seen::default(),
        }
    }

    pub(super) fn see(&mut self, fact: &Fact) {
        match *fact {
            Fact::Began(delivery, attempt, repeat, replay) => {
                self.began(delivery, attempt, repeat, replay);
            }
            Fact::Ended(delivery, attempt, how, replay) => {
                self.ended(delivery, attempt, how, replay);
            }
            Fact::Counted(delivery, attempts, replay) => {
                self.counted.insert((delivery, replay), attempts);
            }
            // The next save is begun after this one, and so knows of all until now.
            Fact::Saved => (self.saved, self.known) = (self.known, self.over.len()),
            Fact::Discarding((PARK, position)) => self.go_on((PARK, position)),
            Fact::Paused(who) => drop(self.paused.insert(who)),
            Fact::Resuming(who) => {
                self.resuming.insert(who);
                self.resumed(who);
            }
            Fact::Resumed(who) => {
                self.resuming.remove(&who);
                self.resumed(who);
            }
            Fact::Stopped(true) => self.stopped(),
            Fact::Accepted(..)
            | Fact::Starting(_)
            | Fact::Discarding(_)
            | Fact::Stopped(false)
            | Fact::Met => {}
        }
    }

    /// Ends with the life.
    pub(super) fn end(mut self) -> Seen {
        // What a save has covered is done (R3).
        for index in 0..self.saved {
            self.check_done(self.over[index]);
        }
        self.check_kept();
        self.seen
    }

    /// What a commit has promised is in the file, unless it was over since (F4, F5).
    fn check_kept(&mut self) {
        let counted = std::mem::take(&mut self.counted);
        for ((delivery, replay), attempts) in counted {
            let waiting = self.after.known[delivery.0].waiting.get(&delivery.1);
            let is_kept = waiting.is_some_and(|it| it.0 >= attempts && it.1 == replay);
            if !(is_kept || self.crashed.contains(&delivery)) {
                let what = format!(
                    "has {attempts} attempts (replay: {replay}), and the file says {waiting:?}"
                );
                self.fault(delivery, &what);
            }
        }
        let letters = self.after.letters.iter();
        let open: Vec<Delivery> = letters
            .filter(|letter| letter.settled_as.is_none())
            .map(|letter| letter.delivery)
            .collect();
        let mut paused = std::mem::take(&mut self.paused);
        let died = self.died_of_pause.values();
        if died.into_iter().any(|it| open.contains(&(PAUSE, *it))) {
            paused.insert(PAUSE);
        }
        for who in paused.difference(&self.resuming) {
            if !self.after.known[*who].is_paused {
                let text = format!("{:?} was paused, and is not", NAMES[*who]);
                self.seen.faults.push(text);
            }
        }
        for delivery in open.into_iter().filter(|it| it.0 == PARK) {
            let blocked = self.lane(delivery);
            let blocked = blocked.and_then(|(_, it)| self.after.known[PARK].blocked.get(&it));
            if blocked.is_none_or(|(_, behind)| behind.is_none()) {
                self.fault(
                    delivery,
                    "is a dead letter, and its aggregate is not parked",
                );
            }
        }
    }

    fn resumed(&mut self, who: usize) {
        self.paused.remove(&who);
        if who == PAUSE {
            self.died_of_pause.clear();
        }
    }

    fn lane(&self, delivery: Delivery) -> Option<Lane> {
        Some(lane(delivery, self.aggregate(delivery)?))
    }

    fn aggregate(&self, (_, position): Delivery) -> Option<&AggregateRef> {
        let place = usize::try_from(position).ok()?.checked_sub(1)?;
        Some(&self.after.log.get(place)?.aggregate)
    }

    fn fault(&mut self, delivery: Delivery, what: &str) {
        self.seen.faults.push(format!("{} {what}", shown(delivery)));
    }

    fn began(&mut self, delivery: Delivery, attempt: u32, repeat: bool, replay: bool) {
        self.seen.attempts += 1;
        let Some(lane) = self.lane(delivery) else {
            return self.fault(delivery, "is of no event");
        };
        if let Some(other) = self.running.insert(lane.clone(), delivery) {
            self.fault(delivery, &format!("began beside the one of {}", other.1));
        }
        let counted = self.counted.get(&(delivery, replay)).copied();
        let counted = counted.unwrap_or_default();
        if attempt != counted + 1 || attempt > ATTEMPTS {
            let what = format!(
                "began with attempt {attempt} (replay: {replay}), and {counted} are counted"
            );
            self.fault(delivery, &what);
        }
        if self.paused.contains(&delivery.0) {
            self.fault(delivery, "began while its subscription was paused");
        }
        if replay {
            return;
        }
        self.check_order(&lane, delivery);
        self.check_policy(&lane, delivery);
        if self.handled.contains(&delivery) {
            self.seen.repeats += u64::from(attempt == 1);
            if !repeat {
                self.fault(delivery, "was repeated, and its handler was not told");
            }
        }
    }

    /// Each delivery that is open comes in its turn, and none that is not (D2, R3).
    fn check_order(&mut self, lane: &Lane, delivery: Delivery) {
        let position = delivery.1;
        let Some(queue) = self.queues.get_mut(lane) else {
            return self.fault(delivery, "was done, and began again");
        };
        let mut over = Vec::new();
        while queue.positions.get(queue.at) != Some(&position) {
            let Some(current) = queue.positions.get(queue.at).copied() else {
                return self.fault(delivery, "was done, or came out of order");
            };
            let is_crashed = self.crashed.contains(&(lane.0, current));
            if !(queue.is_over || is_crashed) {
                let what = format!("began before the one of {current} was over");
                return self.fault(delivery, &what);
            }
            over.push((lane.0, current));
            (queue.at, queue.is_over) = (queue.at + 1, false);
        }
        let is_over = queue.is_over;
        // Those of a batch are over for the bus when all are.
        if lane.0 != BATCH {
            over.retain(|it| self.seen.handled.contains(it));
            self.over.extend(over);
        }
        if is_over {
            self.fault(delivery, "was over, and began again");
        }
    }

    /// Nothing follows a dead letter that parks or pauses (F5).
    fn check_policy(&mut self, (who, aggregate): &Lane, delivery: Delivery) {
        let letters = self.parked.get(aggregate).filter(|_| *who == PARK);
        let parked = letters.is_some_and(|it| it.iter().any(|letter| *letter != delivery.1));
        if parked {
            self.fault(delivery, "began, though its aggregate is parked");
        }
        let is_paused = *who == PAUSE && !self.resuming.contains(who);
        if is_paused && self.died_of_pause.contains_key(aggregate) {
            self.fault(delivery, "began behind a dead letter that pauses");
        }
    }

    fn ended(&mut self, delivery: Delivery, attempt: u32, how: How, replay: bool) {
        let Some(lane) = self.lane(delivery) else {
            return;
        };
        if self.running.remove(&lane) != Some(delivery) {
            self.fault(delivery, "ended, and had not begun");
        }
        let is_dead = how == How::Permanent || how == How::Failed && attempt >= ATTEMPTS;
        if how == How::Failed && !is_dead {
            return;
        }
        self.counted.remove(&(delivery, replay));
        if !replay && let Some(queue) = self.queues.get_mut(&lane) {
            queue.is_over = true;
        }
        if how == How::Ok {
            self.seen.handled.insert(delivery);
            return self.go_on(delivery);
        }
        self.seen.died.insert(delivery);
        match lane {
            (PARK, aggregate) => drop(self.parked.entry(aggregate).or_default().insert(delivery.1)),
            (PAUSE, aggregate) if !replay => {
                self.died_of_pause.insert(aggregate, delivery.1);
            }
            _ => {}
        }
    }

    /// What is parked behind a dead letter goes on.
    fn go_on(&mut self, delivery: Delivery) {
        let lane = self.lane(delivery).filter(|(who, _)| *who == PARK);
        if let Some((_, aggregate)) = lane
            && let Some(letters) = self.parked.get_mut(&aggregate)
        {
            letters.remove(&delivery.1);
        }
    }

    /// After a clean stop nothing is repeated (R3).
    fn stopped(&mut self) {
        let handled: Vec<_> = self.seen.handled.iter().copied().collect();
        handled.into_iter().for_each(|it| self.check_done(it));
    }

    /// Checks that nobody is to make a delivery again.
    fn check_done(&mut self, delivery: Delivery) {
        let Some(aggregate) = self.aggregate(delivery) else {
            return;
        };
        if self.after.is_open(delivery, aggregate) {
            self.fault(delivery, "was handled and saved, and is open again");
        }
    }
}
