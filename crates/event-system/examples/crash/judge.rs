//! Who knows what was promised, and holds a file and a journal against it.

mod order;

use std::collections::{HashMap, HashSet};

use domain_events::DomainEvent;

use self::order::Watch;
use crate::{
    events::{Counted, Echoed, NAMES, NONE, SKIP, TOTAL, is_echoed},
    journal::{Delivery, Fact},
    own,
    snapshot::{Letter, Snapshot},
};

/// What was found in a run besides faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) events: u64,
    pub(crate) attempts: u64,
    pub(crate) repeats: u64,
    pub(crate) lost: u64,
    pub(crate) crashed: u64,
    pub(crate) pruned: u64,
}

/// Judges the lives of a run, one after the other.
#[derive(Default)]
pub(crate) struct Judge {
    /// What the last life has left.
    pub(crate) before: Snapshot,
    /// Deliveries that were handled, whether or not that was saved.
    handled: HashSet<Delivery>,
    /// Deliveries that failed for good.
    died: HashSet<Delivery>,
    discarding: HashSet<Delivery>,
    accepted: HashMap<u64, u64>,
    /// How many unclean ends may have found a delivery running, as far as that is recorded.
    found_running: HashMap<Delivery, u32>,
    aborts: u32,
    pub(crate) figures: Figures,
    /// Promises that were not kept.
    pub(crate) faults: Vec<String>,
}

impl Judge {
    /// Judges a life by its facts, and by what it has left.
    pub(crate) fn life(&mut self, facts: &[Fact], after: Snapshot) {
        self.faults
            .extend(after.found.findings.iter().map(ToString::to_string));
        if !after.log.starts_with(&self.before.log) {
            self.faults.push("the log is not what it was".into());
        }
        let mut watch = Watch::new(self, &after);
        facts.iter().for_each(|fact| watch.see(fact));
        let seen = watch.end();
        self.figures.repeats += seen.repeats;
        self.figures.attempts += seen.attempts;
        self.faults.extend(seen.faults);
        self.handled.extend(seen.handled);
        self.died.extend(seen.died);
        let started = facts.iter().filter_map(|fact| match fact {
            Fact::Starting(delivery) => Some(*delivery),
            _ => None,
        });
        if !facts.contains(&Fact::Stopped(true)) {
            for delivery in started.collect::<HashSet<_>>() {
                *self.found_running.entry(delivery).or_default() += 1;
            }
        }
        for fact in facts {
            match *fact {
                Fact::Accepted(number, position) => drop(self.accepted.insert(number, position)),
                Fact::Discarding(delivery) => drop(self.discarding.insert(delivery)),
                _ => {}
            }
        }
        self.check_log(&after);
        self.check_deliveries(&after);
        self.check_letters(&after);
        self.faults.extend(after.faults_of_tables());
        self.figures.events = after.log.len() as u64;
        self.figures.pruned = after.pruned_through;
        self.before = after;
    }

    /// Every accepted event is there, and every echo, once.
    fn check_log(&mut self, after: &Snapshot) {
        let mut places: HashMap<(&str, u64), u64> = HashMap::new();
        for (position, event) in (1..).zip(&after.log) {
            let before = places.insert((&event.event_type, event.number), position);
            // The log knows again what it keeps.
            if before.is_some_and(|before| before > after.pruned_through) {
                let (kind, number) = (&event.event_type, event.number);
                self.faults
                    .push(format!("{kind} {number} is in the log twice"));
            }
        }
        for (number, position) in &self.accepted {
            let found = places.get(&(Counted::EVENT_TYPE, *number));
            if found != Some(position) {
                self.figures.lost += 1;
                let fault =
                    format!("event {number} was accepted at {position}, and is at {found:?}");
                self.faults.push(fault);
            }
        }
        for (position, event) in after.deliveries(SKIP) {
            let is_echo_due = is_echoed(event.number) && self.handled.contains(&(SKIP, position));
            if is_echo_due && !places.contains_key(&(Echoed::EVENT_TYPE, event.number)) {
                self.figures.lost += 1;
                let number = event.number;
                self.faults
                    .push(format!("event {number} was handled, and has no echo"));
            }
        }
    }

    /// What the file says is done, a handler has done.
    fn check_deliveries(&mut self, after: &Snapshot) {
        let is_kept = |letter: &&Letter| letter.settled_as.as_deref() != Some("replayed");
        let kept = after.letters.iter().filter(is_kept);
        let kept: HashSet<_> = kept.map(|letter| letter.delivery).collect();
        for who in 0..NAMES.len() {
            for (position, event) in after.deliveries(who) {
                let delivery = (who, position);
                let known = &after.known[who];
                let is_replayed = known.waiting.contains_key(&position);
                // In another order than per aggregate, nothing is blocked.
                let has_blocks = !matches!(who, TOTAL | NONE);
                let is_blocked = known.blocked.contains_key(&event.aggregate);
                if is_replayed && has_blocks && !is_blocked {
                    self.faults
                        .push(format!("{} waits, and is not blocked", shown(delivery)));
                }
                let is_pruned = position <= after.pruned_through;
                let is_open = after.is_open(delivery, &event.aggregate);
                if is_pruned && is_open {
                    self.faults
                        .push(format!("{} was pruned, and is open", shown(delivery)));
                }
                // A letter that was discarded goes with its event.
                let is_known = self.handled.contains(&delivery)
                    || is_pruned && self.discarding.contains(&delivery)
                    || is_replayed
                    || kept.contains(&delivery)
                    || is_open;
                if !is_known {
                    self.figures.lost += 1;
                    self.faults.push(format!("{} was lost", shown(delivery)));
                }
            }
        }
    }

    /// What is a dead letter, failed; and what was discarded, somebody discarded.
    fn check_letters(&mut self, after: &Snapshot) {
        let mut crashed = 0;
        for letter in &after.letters {
            let delivery = letter.delivery;
            let found = self.found_running.get(&delivery).copied();
            let found = found.unwrap_or_default();
            let may_be = match &*letter.reason {
                "crashed" => {
                    crashed += 1;
                    found >= 3
                }
                _ => self.died.contains(&delivery),
            };
            if !may_be {
                let fault = format!(
                    "{} is a dead letter ({}), and was started before {found} unclean ends",
                    shown(delivery),
                    letter.reason
                );
                self.faults.push(fault);
            }
            let is_discarded = letter.settled_as.as_deref() == Some("discarded");
            if is_discarded && !self.discarding.contains(&delivery) {
                self.faults
                    .push(format!("nobody discarded {}", shown(delivery)));
            }
        }
        self.figures.crashed = crashed;
    }

    /// A handler ends the process once before its starts are recorded, and three times after that (F4).
    pub(crate) fn aborted(&mut self) {
        self.aborts += 1;
        if self.aborts > 4 {
            let aborts = self.aborts;
            self.faults
                .push(format!("a handler has ended the process {aborts} times"));
        }
    }

    /// Once everything is settled, nothing is left.
    pub(crate) fn check_settled(&mut self) {
        let head = self.before.log.len() as u64;
        let projection = (&own::NAME, &self.before.folds);
        let all = NAMES.iter().zip(&self.before.known).chain([projection]);
        for (name, known) in all {
            if !known.is_at_rest(head) {
                self.faults.push(format!("{name} is not at rest"));
            }
        }
        if self.before.letters.iter().any(|it| it.settled_as.is_none()) {
            self.faults.push("a dead letter is left".into());
        }
    }
}

/// A delivery, as it is told to a person.
fn shown((who, position): Delivery) -> String {
    format!("the delivery of {position} to {:?}", NAMES[who])
}
