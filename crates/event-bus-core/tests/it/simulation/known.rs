//! What is known of a program's course from outside: from its handlers, its clients, and the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use domain_events::{EventId, FailurePolicy, Position, StartFrom, SubscriptionId};

use super::{
    events::Raised,
    program::{Program, Subscriber},
};

/// Everything known, over all runs.
#[derive(Default)]
pub(super) struct Known {
    /// The log.
    pub(super) log: BTreeMap<Position, Logged>,
    /// What was pruned of it, but for what dead letters and replays keep.
    pub(super) pruned_through: Position,
    /// The numbers of the events in it.
    pub(super) numbers: BTreeSet<u64>,
    pub(super) subscriptions: Vec<Subscription>,
    /// The run, from 1.
    pub(super) run: u32,
    /// What is not as promised.
    pub(super) faults: Vec<String>,
    /// What happened, where it is to be told.
    pub(super) trace: Option<Vec<String>>,
}

/// An event of the log.
#[derive(Clone, Copy)]
pub(super) struct Logged {
    pub(super) id: EventId,
    pub(super) raised: Raised,
}

/// What is known of a subscription.
#[derive(Default)]
pub(super) struct Subscription {
    /// Its number in the store.
    pub(super) id: Option<SubscriptionId>,
    /// The last position that it is not to have, once the store knows it.
    pub(super) place: Option<Position>,
    /// What it is done with.
    pub(super) settled: BTreeMap<Position, Settled>,
    /// Its dead letters in the store.
    pub(super) dead: BTreeSet<Position>,
    /// The last failed attempt of each delivery, and whether it was to be the last of all.
    pub(super) failed: BTreeMap<Position, (u32, bool)>,
    /// Dead letters that are replayed.
    pub(super) replayed: BTreeSet<Position>,
    /// Deliveries that are taken down as begun; a pause lets those that were by then go on.
    pub(super) started: BTreeSet<Position>,
    pub(super) under_way: BTreeSet<Position>,
    /// What runs, by lane.
    pub(super) running: BTreeMap<u64, Position>,
    /// Where each lane was last, in this run.
    pub(super) last: BTreeMap<u64, Position>,
    /// Whether the store says that it is paused.
    pub(super) is_paused: bool,
    /// How many calls to resume it have not returned.
    pub(super) resuming: u32,
    /// Whether it has left.
    pub(super) is_away: bool,
}

/// How a delivery was settled.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settled {
    /// By its handler: in this run, so long after its start.
    Handled(Duration),
    /// By its handler in an earlier run, which was not saved: it may be repeated.
    Unsaved,
    /// For good.
    Saved,
}

/// An attempt as its handler sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) position: Position,
    pub(super) raised: Raised,
    pub(super) attempt: u32,
    pub(super) is_replay: bool,
}

impl Known {
    pub(super) fn of(program: &Program) -> Self {
        let subscriptions = program.subscribers.iter();
        Self {
            subscriptions: subscriptions.map(|_| Subscription::default()).collect(),
            ..Self::default()
        }
    }

    pub(super) fn note(&mut self, at: Duration, what: impl FnOnce() -> String) {
        let run = self.run;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{run} {at:>9.1?} {}", what()));
        }
    }

    pub(super) fn fault(&mut self, what: String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("FAULT {what}"));
        }
        self.faults.push(what);
    }

    /// Forgets what ends with a run.
    pub(super) fn next_run(&mut self) {
        self.run += 1;
        for subscription in &mut self.subscriptions {
            subscription.running.clear();
            subscription.started.clear();
            subscription.under_way.clear();
            subscription.last.clear();
            subscription.resuming = 0;
            subscription.is_away = false;
        }
    }

    /// Where a subscription may start that is to start there: not with what was pruned (R8).
    pub(super) fn start(&self, start: StartFrom) -> StartFrom {
        let pruned = self.pruned_through;
        match start {
            StartFrom::Beginning if pruned > Position::ZERO => StartFrom::After(pruned),
            StartFrom::After(position) => StartFrom::After(position.max(pruned)),
            other => other,
        }
    }

    /// The events that a subscription is to have.
    pub(super) fn wanted<'a>(
        &'a self,
        number: usize,
        by: &'a Subscriber,
    ) -> impl Iterator<Item = (Position, Raised)> {
        let place = self.subscriptions[number].place;
        let log = self.log.iter().filter(move |(at, _)| Some(**at) > place);
        log.map(|(position, logged)| (*position, logged.raised))
            .filter(move |(_, raised)| place.is_some() && by.wants(*raised))
    }

    /// Holds the beginning of an attempt against D2, D8 and F5.
    pub(super) fn check_begin(&self, number: usize, by: &Subscriber, begun: &Begun) -> Vec<String> {
        let Begun {
            position,
            raised,
            is_replay,
            ..
        } = *begun;
        let known = &self.subscriptions[number];
        let lane = by.lane(raised.aggregate, position);
        let mut faults = Vec::new();
        if known.place.is_none_or(|place| position <= place) && !is_replay || !by.wants(raised) {
            faults.push(format!("D8: not to be delivered from {:?}", known.place));
        }
        if let Some(other) = known.running.get(&lane) {
            faults.push(format!("D2: beside {other}"));
        }
        if known.is_paused && known.resuming == 0 && !known.under_way.contains(&position) {
            faults.push("F5: it is paused".to_owned());
        }
        if known.is_away {
            faults.push("L4: it has left".to_owned());
        }
        if is_replay {
            return faults;
        }
        if known.last.get(&lane) > Some(&position) {
            faults.push(format!("D2: after {:?}", known.last[&lane]));
        }
        if let Some(Settled::Handled(_)) = known.settled.get(&position) {
            faults.push("R3: handled in this run before".to_owned());
        }
        let earlier = self.wanted(number, by).take_while(|(at, _)| *at < position);
        for (at, _) in earlier.filter(|(at, other)| by.lane(other.aggregate, *at) == lane) {
            if !known.lets_pass(at, by.policy) {
                faults.push(format!("D2: before {at}"));
            }
        }
        faults
    }
}

impl Subscription {
    /// Begins anew after a place: dead letters of events up to it stay.
    pub(super) fn reset(&mut self, place: Position) {
        self.place = Some(place);
        self.settled.clear();
        self.failed.clear();
        self.replayed.clear();
        self.last.clear();
        self.dead.retain(|at| *at <= place);
    }

    /// Whether later events of the aggregate may follow a delivery.
    fn lets_pass(&self, position: Position, policy: FailurePolicy) -> bool {
        let is_given_up = || {
            let by_store = self.dead.contains(&position) || self.replayed.contains(&position);
            by_store || self.failed.get(&position).is_some_and(|(_, last)| *last)
        };
        self.settled.contains_key(&position)
            || policy != FailurePolicy::ParkAggregate && is_given_up()
    }
}
