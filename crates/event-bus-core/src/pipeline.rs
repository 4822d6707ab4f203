//! Subscriptions that share a queue, its limit and its workers (D4).

use std::{sync::Arc, task::Waker};

use domain_events::{BatchPolicy, Ordering};
use tokio::{sync::Notify, time::Instant};

use crate::{
    admission::{Needs, Room},
    cursor::Cursor,
    mailboxes::Mailboxes,
    seat::{Seat, Seats},
};

/// A pipeline of a bus; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PipelineId(usize);

impl PipelineId {
    /// The default pipeline, which subscriptions share.
    pub(crate) const SHARED: Self = Self(0);

    #[cfg(test)]
    pub(crate) const fn new(number: usize) -> Self {
        Self(number)
    }
}

/// One queue with its limit, and the workers that serve it.
pub(crate) struct Pipeline {
    /// The name of the subscription whose own it is, or "default".
    pub(crate) name: Arc<str>,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) room: Room,
    /// One for each worker.
    pub(crate) seats: Seats,
    pub(crate) idle: Idle,
    /// How its batches are made up, where it makes up any, and the workers that wait for company.
    pub(crate) batch: Option<BatchPolicy>,
    pub(crate) lingering: Idle,
    /// When those that wait have waited long enough for company.
    pub(crate) lingers_until: Option<Instant>,
    /// Whether nobody is to wait for company any more.
    pub(crate) is_done_lingering: bool,
    /// The place in the log; `None` on a volatile bus.
    pub(crate) cursor: Option<Cursor>,
    /// Told when the pipeline has something to read from the log.
    pub(crate) behind: Arc<Notify>,
}

impl Pipeline {
    pub(crate) fn new(name: Arc<str>, ordering: Ordering, capacity: usize, workers: usize) -> Self {
        Self {
            name,
            mailboxes: Mailboxes::new(ordering),
            room: Room::new(capacity),
            seats: (0..workers).map(|_| Seat::default()).collect(),
            idle: Idle::default(),
            batch: None,
            lingering: Idle::default(),
            lingers_until: None,
            is_done_lingering: false,
            cursor: None,
            behind: Arc::default(),
        }
    }

    /// Whether what waits is left to the log: where the order is another than per aggregate it stays in
    /// memory, as no part of the log could be read back alone.
    pub(crate) fn leaves_to_log(&self) -> bool {
        self.cursor.is_some() && self.mailboxes.is_per_aggregate()
    }

    /// Whether nothing is behind in the log.
    pub(crate) fn is_caught_up(&self) -> bool {
        let caught_up = |cursor: &Cursor| cursor.live && cursor.through >= cursor.head;
        self.cursor.as_ref().is_none_or(caught_up)
    }
}

/// The pipelines of a bus, in the order of their ids; the default one is always there.
#[derive(Default)]
pub(crate) struct Pipelines {
    all: Vec<(PipelineId, Pipeline)>,
    made: usize,
}

impl Pipelines {
    pub(crate) fn add(&mut self, pipeline: Pipeline) -> PipelineId {
        let id = PipelineId(self.made);
        self.made += 1;
        self.all.push((id, pipeline));
        id
    }

    pub(crate) fn remove(&mut self, id: PipelineId) -> Option<Pipeline> {
        let place = self.place(id)?;
        Some(self.all.remove(place).1)
    }

    pub(crate) fn get(&self, id: PipelineId) -> Option<&Pipeline> {
        self.place(id).map(|place| &self.all[place].1)
    }

    pub(crate) fn get_mut(&mut self, id: PipelineId) -> Option<&mut Pipeline> {
        self.place(id).map(|place| &mut self.all[place].1)
    }

    fn place(&self, id: PipelineId) -> Option<usize> {
        self.all.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    /// Whether a pipeline has as much room; one that has gone has room for everything.
    pub(crate) fn fits(&self, id: PipelineId, count: usize) -> bool {
        self.get(id).is_none_or(|it| it.room.fits(count))
    }

    /// The capacity of a pipeline that can never hold what is needed of it.
    pub(crate) fn too_small_for(&self, needs: &Needs) -> Option<usize> {
        let mut too_small = needs.iter().filter_map(|(id, count)| {
            let capacity = self.get(id)?.room.capacity();
            (count > capacity).then_some(capacity)
        });
        too_small.next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PipelineId, &Pipeline)> {
        self.all.iter().map(|(id, pipeline)| (*id, pipeline))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PipelineId, &mut Pipeline)> {
        self.all.iter_mut().map(|(id, pipeline)| (*id, pipeline))
    }
}

/// Workers that have nothing to do, and how to wake them: the one that went to rest last first, as
/// it is the likeliest to have its memory in the cache.
#[derive(Default)]
pub(crate) struct Idle {
    wakers: Vec<Option<Waker>>,
    resting: Vec<usize>,
}

impl Idle {
    /// Notes that a worker rests until woken.
    pub(crate) fn rest(&mut self, worker: usize, waker: &Waker) {
        if self.wakers.len() <= worker {
            self.wakers.resize(worker + 1, None);
        }
        if self.wakers[worker].replace(waker.clone()).is_none() {
            self.resting.push(worker);
        }
    }

    /// Notes that a worker has something to do, however it came to look. Returns its waker, if it
    /// rested.
    pub(crate) fn leave(&mut self, worker: usize) -> Option<Waker> {
        let waker = self.wakers.get_mut(worker).and_then(Option::take);
        if waker.is_some() {
            self.resting.retain(|&resting| resting != worker);
        }
        waker
    }

    /// Takes out a worker to be woken, if one rests.
    pub(crate) fn wake_one(&mut self) -> Option<Waker> {
        let worker = self.resting.pop()?;
        self.wakers[worker].take()
    }

    /// Takes out all workers that rest.
    pub(crate) fn wake_all(&mut self) -> impl Iterator<Item = Waker> {
        std::iter::from_fn(|| self.wake_one())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_has_found_work_is_not_woken_in_place_of_one_that_rests() {
        struct Told;
        impl std::task::Wake for Told {
            fn wake(self: Arc<Self>) {}
        }
        let (first, second) = (Arc::new(Told), Arc::new(Told));
        let (first, second) = (Waker::from(first), Waker::from(second));
        let mut idle = Idle::default();
        idle.rest(0, &first);
        idle.rest(1, &second);
        // Polled again for another reason, it finds something to do, and later rests once more.
        idle.leave(1);
        assert!(idle.wake_one().is_some_and(|woken| woken.will_wake(&first)));
        assert!(idle.wake_one().is_none());
        idle.rest(1, &second);
        idle.rest(1, &second);
        assert_eq!(idle.wake_all().count(), 1);
    }
}
