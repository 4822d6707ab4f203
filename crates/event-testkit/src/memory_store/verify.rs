//! Whether every delivery of a store in memory is accounted for, exactly once (R1).

use std::fmt;

use domain_events::{AggregateRef, BlockedAggregate, DeadLetter, EventId, Position};

use super::{
    MemoryStore,
    deliveries::{Deliveries, Subscription},
    lock,
    log::{Log, Row},
};

/// What a store says of a delivery (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is finished, or was never wanted.
    Done,
    /// It is still to be made.
    Pending,
    /// It waits for its next attempt.
    Waiting {
        /// How many attempts were made.
        attempts: u32,
    },
    /// It waits behind another one of its aggregate.
    Blocked,
    /// It is a dead letter.
    Dead,
}

impl MemoryStore {
    /// What is wrong with the delivery state, a line each; nothing where every delivery of every
    /// subscription up to the head of the log is in one [`Standing`], and in one only (R1).
    pub fn verify(&self) -> Vec<String> {
        let state = lock(&self.shared);
        let mut faults = Vec::new();
        for subscription in state.deliveries.known() {
            let books = Books::of(subscription, &state.log, &state.deliveries);
            books.check(|what| faults.push(format!("{}: {what}", subscription.name)));
        }
        faults
    }

    /// What the store says of a delivery; `None` where it knows no such subscription or event.
    pub fn standing(&self, subscription: &str, position: Position) -> Option<Standing> {
        let state = lock(&self.shared);
        let row = state.log.at(position)?;
        let mut known = state.deliveries.known();
        let subscription = known.find(|it| &*it.name == subscription)?;
        let books = Books::of(subscription, &state.log, &state.deliveries);
        Some(
            books
                .standings(row)
                .first()
                .copied()
                .unwrap_or(Standing::Done),
        )
    }
}

/// All that is kept of a subscription.
struct Books<'a> {
    kept: &'a Subscription,
    log: &'a Log,
    letters: Vec<&'a DeadLetter>,
}

impl<'a> Books<'a> {
    fn of(kept: &'a Subscription, log: &'a Log, deliveries: &'a Deliveries) -> Self {
        let letters = deliveries.letters_of(&kept.name).collect();
        Self { kept, log, letters }
    }

    fn check(&self, mut fault: impl FnMut(String)) {
        let progress = &self.kept.progress;
        if !progress.unfinished.is_sorted_by(|a, b| a < b) {
            fault(format!("unfinished does not ascend: {progress:?}"));
        }
        if progress.unfinished.last() > Some(&progress.through) {
            fault(format!("unfinished beyond the mark: {progress:?}"));
        }
        for row in self.log.after(Position::ZERO) {
            let standings = self.standings(row);
            if standings.len() > 1 {
                fault(format!("{} is {}", row.recorded.position, And(&standings)));
            }
        }
        self.check_waiting(&mut fault);
        self.check_parked(&mut fault);
    }

    /// All that is said of a delivery. Two things are one that is said twice: what waits for its next
    /// attempt is the first of the blocked ones; and what is blocked and listed as unfinished, as its
    /// event was not read again, is passed over when it is.
    fn standings(&self, row: &Row) -> Vec<Standing> {
        let position = row.recorded.position;
        let progress = &self.kept.progress;
        let mut standings = Vec::new();
        if let Some(delivery) = self.kept.waiting.get(&position) {
            let attempts = delivery.attempts;
            standings.push(Standing::Waiting { attempts });
        }
        if self.letter_at(position) {
            standings.push(Standing::Dead);
        }
        let is_covered = self.is_covered(row);
        let is_listed = progress.unfinished.contains(&position) && !is_covered;
        if position > progress.through || is_listed {
            standings.push(Standing::Pending);
        }
        if is_covered && !self.is_first(row) {
            standings.push(Standing::Blocked);
        }
        standings
    }

    fn letter_at(&self, position: Position) -> bool {
        let mut letters = self.letters.iter();
        letters.any(|letter| letter.position() == Some(position))
    }

    /// Whether a blocked aggregate covers an event.
    fn is_covered(&self, row: &Row) -> bool {
        let position = row.recorded.position;
        let blocked = self.blocked(&row.aggregate);
        position <= self.kept.progress.through
            && blocked.is_some_and(|blocked| blocked.from <= position)
    }

    /// Whether it is the one whose next attempt a blocked aggregate waits for.
    fn is_first(&self, row: &Row) -> bool {
        let position = row.recorded.position;
        let waiting = self.kept.waiting.get(&position);
        let blocked = self.blocked(&row.aggregate);
        waiting.is_some_and(|it| !it.is_replay)
            && blocked.and_then(|blocked| self.first_of(blocked)) == Some(position)
    }

    fn blocked(&self, aggregate: &AggregateRef) -> Option<&BlockedAggregate> {
        let mut blocked = self.kept.blocked.iter();
        blocked.find(|blocked| blocked.aggregate == *aggregate)
    }

    /// The first event that a block covers.
    fn first_of(&self, blocked: &BlockedAggregate) -> Option<Position> {
        let rows = self.log.after(blocked.from.previous());
        let mut of = rows.filter(|row| row.aggregate == blocked.aggregate);
        of.next().map(|row| row.recorded.position)
    }

    /// Nothing waits but with its aggregate blocked, for else later ones would overtake it; where the
    /// subscription has blocks: in another order than per aggregate, it has none.
    fn check_waiting(&self, fault: &mut impl FnMut(String)) {
        for (position, delivery) in &self.kept.waiting {
            match self.log.at(*position) {
                Some(row) if row.aggregate == delivery.aggregate => {}
                _ => fault(format!("{position} waits, and is not in the log")),
            }
            let has_blocks = !self.kept.blocked.is_empty();
            if has_blocks && self.blocked(&delivery.aggregate).is_none() {
                let aggregate = &delivery.aggregate;
                fault(format!("{position} waits, and {aggregate} is not blocked"));
            }
        }
    }

    /// Nothing is parked but behind a dead letter of its aggregate, for else it stayed there for ever.
    fn check_parked(&self, fault: &mut impl FnMut(String)) {
        for blocked in &self.kept.blocked {
            let behind = |event: &EventId| {
                let mut letters = self.letters.iter();
                let of = |it: &&DeadLetter| it.event.aggregate() == &blocked.aggregate;
                letters.any(|it| it.event_id() == *event && of(it))
            };
            if blocked.parked_behind.is_some_and(|event| !behind(&event)) {
                let aggregate = &blocked.aggregate;
                fault(format!("{aggregate} is parked behind no dead letter"));
            }
        }
    }
}

/// Standings as they are told.
struct And<'a>(&'a [Standing]);

impl fmt::Display for And<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, standing) in self.0.iter().enumerate() {
            let and = if place > 0 { " and " } else { "" };
            write!(f, "{and}{standing:?}")?;
        }
        Ok(())
    }
}
