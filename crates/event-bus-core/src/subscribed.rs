//! One subscription of a bus, and who is at it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use domain_events::{Subscription, SubscriptionId};
use tokio::sync::Notify;

use crate::{
    meters::Meters,
    pipeline::PipelineId,
    seat::{Seat, Seats},
    sync::AtomicBool,
};

/// A subscription of a bus, with its figures.
pub(crate) struct Subscribed {
    pub(crate) subscription: Subscription,
    /// Its number in the store; `None` on a volatile bus.
    pub(crate) id: Option<SubscriptionId>,
    pub(crate) pipeline: PipelineId,
    pub(crate) meters: Meters,
    /// The name once more for each worker: the count of those who hold one is passed around else.
    names: Box<[Arc<str>]>,
    /// Unlike any other's of the process, and never 0.
    number: usize,
    /// Where the workers of the pipeline say what they run.
    seats: Seats,
    removed: AtomicBool,
    paused: AtomicBool,
    /// Whether somebody has ever waited for its attempts.
    awaited: AtomicBool,
    at_rest: Notify,
}

impl Subscribed {
    pub(crate) fn new(
        subscription: Subscription,
        id: Option<SubscriptionId>,
        pipeline: PipelineId,
        seats: &Seats,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let meters = Meters::new(seats.len());
        let names = (0..meters.sets()).map(|_| Arc::from(&**subscription.name()));
        Arc::new(Self {
            names: names.collect(),
            subscription,
            id,
            pipeline,
            meters,
            number: NEXT.fetch_add(1, Ordering::Relaxed) as usize,
            seats: Arc::clone(seats),
            removed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            at_rest: Notify::new(),
        })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        self.subscription.name()
    }

    /// The name, for a worker to hand out.
    pub(crate) fn name_for(&self, worker: usize) -> Arc<str> {
        Arc::clone(&self.names[worker % self.names.len()])
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Says whether it is paused; a step of the bus, as backlogs are counted by it.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    /// Notes that a worker is about to be at it.
    pub(crate) fn announce(&self, seat: &Seat) {
        seat.take_up(self.number);
    }

    /// Notes that a worker is at it, for as long as the guard lives, unless no attempt may begin.
    pub(crate) fn begin<'a>(&'a self, seat: &'a Seat) -> Begun<'a> {
        // Say so before looking, so that whoever removes or pauses and then looks sees it.
        self.announce(seat);
        let running = Running {
            subscribed: self,
            seat,
        };
        if self.is_removed() {
            Begun::Removed(running)
        } else if self.is_paused() {
            Begun::Paused(running)
        } else {
            Begun::Runs(running)
        }
    }

    /// Waits until no worker is at it.
    pub(crate) async fn at_rest(&self) {
        self.awaited.store(true, Ordering::SeqCst);
        loop {
            let mut rest = std::pin::pin!(self.at_rest.notified());
            // Register before looking, so that a rest in between is not missed.
            rest.as_mut().enable();
            if !self.seats.iter().any(|seat| seat.is_at(self.number)) {
                return;
            }
            rest.await;
        }
    }
}

/// Whether an attempt may begin.
pub(crate) enum Begun<'a> {
    Runs(Running<'a>),
    Removed(Running<'a>),
    Paused(Running<'a>),
}

/// A worker that is at a subscription.
pub(crate) struct Running<'a> {
    subscribed: &'a Subscribed,
    seat: &'a Seat,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.seat.put_down();
        if self.subscribed.awaited.load(Ordering::SeqCst) {
            self.subscribed.at_rest.notify_waiters();
        }
    }
}
