//! Who waits for room.
//!
//! Room comes free in steps that hold the lock of the bus, and whoever frees it lets in those who
//! wait, first come, first served in each pipeline: a waiting batch is not starved by single events.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use domain_events::{Given, NewEvent, Receipt};
use hashbrown::HashMap;
use tokio::time::Instant;

use crate::{
    admission::Needs,
    inside::BusId,
    pipeline::{Pipeline, PipelineId, Pipelines},
    record::Record,
};

/// An event on its way in, sealed and not yet accepted; nobody else holds its record.
pub(crate) struct Arriving {
    pub(crate) record: Arc<Record>,
    given: Given,
}

impl Arriving {
    pub(crate) fn new(bus: BusId, event: NewEvent, now: Instant) -> Self {
        let given = event.given();
        let envelope = event.seal();
        Self {
            record: Arc::new(Record::arriving(bus, envelope, now)),
            given,
        }
    }

    /// The event as its publisher has given it.
    pub(crate) fn give_back(self) -> Option<NewEvent> {
        let record = Arc::into_inner(self.record)?;
        Some(NewEvent::unseal(record.envelope, self.given))
    }
}

/// What somebody waits to bring in.
pub(crate) enum Wanted {
    /// Events, which whoever frees the room puts into the mailboxes.
    Events(Vec<Arriving>),
    /// Places, for events that come from the log.
    Places,
    /// Places, for events that go to the log first, and can be left to it.
    PlacesOrLog,
}

/// What became of somebody who waited for room.
pub(crate) enum Entered {
    Events(Vec<Receipt>),
    /// The places were taken.
    Places,
    /// They can never come in: a pipeline that wants so many of them holds fewer.
    TooLarge(usize),
    /// The events can do without room: they are left to the log.
    WithoutRoom,
    Stopped,
}

/// Somebody who waits for room.
pub(crate) struct Waiter {
    ticket: u64,
    pub(crate) needs: Needs,
    pub(crate) wanted: Wanted,
    /// Places that it keeps already, as the first of all who wait for room in several pipelines.
    held: Needs,
    waker: Option<Waker>,
}

impl Waiter {
    pub(crate) fn into_wanted(self) -> Wanted {
        self.wanted
    }

    /// What it holds, which it holds no more.
    pub(crate) fn take_held(&mut self) -> Needs {
        std::mem::take(&mut self.held)
    }

    /// What it needs, does not hold, and does not fit.
    fn lacking(&self, fits: impl Fn(PipelineId, usize) -> bool) -> Needs {
        let mut lacking = Needs::default();
        for (id, count) in self.needs.iter() {
            if !self.held.has(id) && !fits(id, count) {
                lacking.add(id, count);
            }
        }
        lacking
    }
}

/// Those who wait for room, in the order in which they came.
#[derive(Default)]
pub(crate) struct Waiters {
    queue: VecDeque<Waiter>,
    /// How many want places of other pipelines than the default one.
    with_own: usize,
    tickets: u64,
    /// What those who have waited are still to be told.
    entered: HashMap<u64, Entered>,
}

impl Waiters {
    /// Whether somebody waits whom `needs` would overtake: for room of a pipeline that both want.
    pub(crate) fn are_ahead_of(
        &self,
        needs: &Needs,
        fits: impl Fn(PipelineId, usize) -> bool,
    ) -> bool {
        let mut waiters = self.queue.iter();
        waiters.any(|waiter| waiter.lacking(&fits).meets(needs))
    }

    /// Adds somebody at the end. Returns the ticket by which to ask.
    pub(crate) fn push(&mut self, needs: Needs, wanted: Wanted) -> u64 {
        self.tickets += 1;
        self.with_own += usize::from(!needs.own.is_empty());
        self.queue.push_back(Waiter {
            ticket: self.tickets,
            needs,
            wanted,
            held: Needs::default(),
            waker: None,
        });
        self.tickets
    }

    /// Has the first one keep what comes free for it, where it needs room in several pipelines: it
    /// may be that they never have room at the same time. It is the only one that keeps anything, so
    /// that nobody waits in a circle; and never most of a pipeline, which others may want.
    pub(crate) fn hold_for_first(&mut self, pipelines: &mut Pipelines) {
        let Some(first) = self.queue.front_mut() else {
            return;
        };
        if first.needs.iter().count() < 2 {
            return;
        }
        for (id, count) in first.needs.iter() {
            if let Some(Pipeline { room, .. }) = pipelines.get_mut(id)
                && !first.held.has(id)
                && count <= room.capacity() / 2
                && room.fits(count)
            {
                room.take(count);
                first.held.add(id, count);
            }
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.queue.iter_mut()
    }

    /// Takes the next one whose needs are met, whom nobody waits ahead of. Somebody is ahead of
    /// others only in a pipeline that lacks the room for them: one that is full holds up nobody who
    /// does not want it.
    pub(crate) fn next(&mut self, fits: impl Fn(PipelineId, usize) -> bool) -> Option<Waiter> {
        let mut ahead = Needs::default();
        let mut found = None;
        for (place, waiter) in self.queue.iter().enumerate() {
            let lacking = waiter.lacking(&fits);
            if lacking.is_none() && !waiter.needs.meets(&ahead) {
                found = Some(place);
                break;
            }
            lacking.iter().for_each(|(id, count)| ahead.add(id, count));
            if self.with_own == 0 {
                break;
            }
        }
        let waiter = self.queue.remove(found?)?;
        self.with_own -= usize::from(!waiter.needs.own.is_empty());
        Some(waiter)
    }

    /// Notes what became of somebody who waited. Returns whom to wake.
    pub(crate) fn enter(&mut self, waiter: Waiter, entered: Entered) -> Option<Waker> {
        self.entered.insert(waiter.ticket, entered);
        waiter.waker
    }

    /// What became of whom has the ticket, or else `waker` is kept for when something does. Also
    /// returns a waker that is of no more use.
    pub(crate) fn poll(&mut self, ticket: u64, waker: Waker) -> (Option<Entered>, Option<Waker>) {
        if let Some(place) = self.place(ticket) {
            return (None, self.queue[place].waker.replace(waker));
        }
        (self.entered.remove(&ticket), Some(waker))
    }

    /// Takes out somebody who waits no more, or what became of them already.
    pub(crate) fn withdraw(&mut self, ticket: u64) -> Result<Waiter, Option<Entered>> {
        let waiter = self
            .place(ticket)
            .and_then(|place| self.queue.remove(place));
        match waiter {
            Some(waiter) => {
                self.with_own -= usize::from(!waiter.needs.own.is_empty());
                Ok(waiter)
            }
            None => Err(self.entered.remove(&ticket)),
        }
    }

    /// Works the needs out anew, as the subscriptions have changed. Returns those who can never come
    /// in any more, with the capacity that is too small for them.
    pub(crate) fn renew(
        &mut self,
        needs: impl Fn(&[Arriving]) -> Needs,
        too_small: impl Fn(&Needs) -> Option<usize>,
    ) -> Vec<(Waiter, usize)> {
        let mut out = Vec::new();
        let all = std::mem::take(&mut self.queue);
        for mut waiter in all {
            if let Wanted::Events(events) = &waiter.wanted {
                waiter.needs = needs(events);
            }
            match too_small(&waiter.needs) {
                Some(capacity) => out.push((waiter, capacity)),
                None => self.queue.push_back(waiter),
            }
        }
        let with_own = |waiter: &&Waiter| !waiter.needs.own.is_empty();
        self.with_own = self.queue.iter().filter(with_own).count();
        out
    }

    /// Takes out those who can do without room.
    pub(crate) fn drain_without(&mut self) -> VecDeque<Waiter> {
        let all = std::mem::take(&mut self.queue).into_iter();
        let can = |waiter: &Waiter| matches!(waiter.wanted, Wanted::PlacesOrLog);
        let (without, others): (VecDeque<_>, VecDeque<_>) = all.partition(can);
        self.queue = others;
        without
    }

    /// Takes out everybody who waits.
    pub(crate) fn drain(&mut self) -> VecDeque<Waiter> {
        self.with_own = 0;
        std::mem::take(&mut self.queue)
    }

    fn place(&self, ticket: u64) -> Option<usize> {
        self.queue
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: PipelineId = PipelineId::new(1);

    #[test]
    fn p4_nobody_is_overtaken_by_who_wants_the_same_and_others_pass() {
        let mut waiters = Waiters::default();
        let batch = waiters.push(Needs::of(PipelineId::SHARED, 5), Wanted::Places);
        let single = waiters.push(Needs::of(PipelineId::SHARED, 1), Wanted::Places);
        let other = waiters.push(Needs::of(OTHER, 1), Wanted::Places);
        let next = |waiters: &mut Waiters, free: usize| {
            waiters
                .next(|_, count| count <= free)
                .map(|waiter| waiter.ticket)
        };
        assert_eq!(next(&mut waiters, 4), Some(other));
        assert_eq!(next(&mut waiters, 4), None);
        assert!(waiters.withdraw(batch).is_ok());
        assert_eq!(next(&mut waiters, 4), Some(single));
    }

    #[test]
    fn p4_who_wants_two_pipelines_is_ahead_only_in_the_one_that_is_full() {
        let mut waiters = Waiters::default();
        let mut both = Needs::of(PipelineId::SHARED, 1);
        both.add(OTHER, 1);
        waiters.push(both, Wanted::Places);
        let full = |id, _| id != OTHER;
        assert!(waiters.are_ahead_of(&Needs::of(OTHER, 1), full));
        assert!(!waiters.are_ahead_of(&Needs::of(PipelineId::SHARED, 1), full));
    }
}
