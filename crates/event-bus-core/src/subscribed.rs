//! One subscription of a bus, and who is at it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use domain_events::{
    AggregateRef, DeliveryChange, PauseReason, Position, Subscription, SubscriptionId,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    breaker::Breaker,
    mailboxes::MailboxId,
    meters::{Counter, Meters},
    pipeline::PipelineId,
    seat::{Seat, Seats},
    starts::Started,
    sync::{AtomicBool, AtomicU8, AtomicUsize},
};

/// What steps of the bus count; as far from what the workers look at as processors fetch memory at
/// a time.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Steps {
    /// Events that were taken in and are of the type subscribed to.
    pub(crate) matching: Counter,
    /// Deliveries that are left to the log.
    pub(crate) left: Counter,
}

/// Why a subscription can be paused.
const REASONS: [PauseReason; 3] = [
    PauseReason::Asked,
    PauseReason::DeadLetter,
    PauseReason::NewerSchema,
];

/// A subscription of a bus, with its figures.
pub(crate) struct Subscribed {
    pub(crate) subscription: Subscription,
    /// Its number in the store; `None` on a volatile bus.
    pub(crate) id: Option<SubscriptionId>,
    pub(crate) pipeline: PipelineId,
    pub(crate) meters: Meters,
    pub(crate) steps: Steps,
    pub(crate) breaker: Option<Breaker>,
    /// What was running when an earlier run ended uncleanly.
    pub(crate) started: Started,
    /// The name once more for each worker: the count of those who hold one is passed around else.
    names: Box<[Arc<str>]>,
    /// Unlike any other's of the process, and never 0.
    number: usize,
    /// Where the workers of the pipeline say what they run.
    seats: Seats,
    removed: AtomicBool,
    /// Why it is paused: a place in [`REASONS`], from 1; 0 where it is not.
    paused: AtomicU8,
    /// How many blocking handlers run past their time-out.
    stuck: AtomicUsize,
    /// The deliveries of a transaction that was cut off: only the store knows what became of them.
    in_doubt: std::sync::Mutex<Vec<(AggregateRef, Position)>>,
    /// Whether somebody has ever waited for its attempts.
    awaited: AtomicBool,
    at_rest: Notify,
    /// When a delivery was given up the last time.
    last_dead: std::sync::Mutex<Option<Instant>>,
}

impl Subscribed {
    pub(crate) fn new(
        subscription: Subscription,
        id: Option<SubscriptionId>,
        pipeline: PipelineId,
        seats: &Seats,
        started: Started,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let meters = Meters::new(seats.len());
        let names = (0..meters.sets()).map(|_| Arc::from(&**subscription.name()));
        Arc::new(Self {
            names: names.collect(),
            steps: Steps::default(),
            last_dead: std::sync::Mutex::default(),
            breaker: subscription.breaker().map(Breaker::new),
            subscription,
            id,
            pipeline,
            started,
            meters,
            number: NEXT.fetch_add(1, Ordering::Relaxed) as usize,
            seats: Arc::clone(seats),
            removed: AtomicBool::new(false),
            paused: AtomicU8::new(0),
            stuck: AtomicUsize::new(0),
            in_doubt: std::sync::Mutex::default(),
            awaited: AtomicBool::new(false),
            at_rest: Notify::new(),
        })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        self.subscription.name()
    }

    /// The name, for a worker to hand out.
    pub(crate) fn name_for(&self, worker: usize) -> Arc<str> {
        Arc::clone(&self.names[self.meters.set_of(worker)])
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst) != 0
    }

    /// Why it is paused, if it is.
    pub(crate) fn paused(&self) -> Option<PauseReason> {
        let code = usize::from(self.paused.load(Ordering::SeqCst));
        REASONS.get(code.checked_sub(1)?).copied()
    }

    /// Says why it is paused, if it is; a step of the bus, as backlogs are counted by it.
    pub(crate) fn set_paused(&self, why: Option<PauseReason>) {
        let code = |why| REASONS.iter().position(|reason| *reason == why);
        let code = why.and_then(code).map_or(0, |place| place + 1);
        self.paused.store(code as u8, Ordering::SeqCst);
    }

    pub(crate) fn is_tripped(&self) -> bool {
        self.breaker.as_ref().is_some_and(Breaker::is_tripped)
    }

    /// Whether the backlog of a mailbox may go now; a step of the bus, as it may become the probe of a
    /// breaker by that.
    pub(crate) fn lets(&self, mailbox: MailboxId) -> bool {
        let lets = |breaker: &Breaker| breaker.lets(mailbox);
        !self.is_paused() && self.breaker.as_ref().is_none_or(lets)
    }

    /// Whether the next delivery may be made: a first attempt, or one of the backlog of a mailbox.
    pub(crate) fn may_go_on(&self, backlog: Option<MailboxId>) -> bool {
        let is_probe = || backlog.is_some_and(|mailbox| self.is_probe(mailbox));
        !self.is_removed() && !self.is_paused() && (!self.is_tripped() || is_probe())
    }

    /// Whether the backlog of a mailbox is the probe of the breaker.
    pub(crate) fn is_probe(&self, mailbox: MailboxId) -> bool {
        let is_probe = |breaker: &Breaker| breaker.is_probe(mailbox);
        self.breaker.as_ref().is_some_and(is_probe)
    }

    /// Notes that a transaction with these deliveries was cut off.
    pub(crate) fn put_in_doubt(&self, deliveries: Vec<(AggregateRef, Position)>) {
        *self.in_doubt() = deliveries;
    }

    /// Whether what is to be saved of it speaks of deliveries whose transaction was cut off: it was known
    /// before that.
    pub(crate) fn is_in_doubt(&self, change: &DeliveryChange) -> bool {
        let deliveries = self.in_doubt();
        match change {
            DeliveryChange::Progressed(..) => !deliveries.is_empty(),
            DeliveryChange::Blocked(_, row) => deliveries
                .iter()
                .any(|(aggregate, at)| *aggregate == row.aggregate && row.from <= *at),
            _ => false,
        }
    }

    fn in_doubt(&self) -> std::sync::MutexGuard<'_, Vec<(AggregateRef, Position)>> {
        let in_doubt = self.in_doubt.lock();
        in_doubt.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes that a blocking handler runs past its time-out, for as long as the guard lives.
    pub(crate) fn stuck(&self) -> impl Drop + '_ {
        struct Stuck<'a>(&'a AtomicUsize);
        impl Drop for Stuck<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.stuck.fetch_add(1, Ordering::Relaxed);
        Stuck(&self.stuck)
    }

    /// How many blocking handlers run past their time-out.
    pub(crate) fn stuck_handlers(&self) -> u64 {
        self.stuck.load(Ordering::Relaxed) as u64
    }

    /// When a delivery was given up the last time.
    pub(crate) fn last_dead(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        let last = self.last_dead.lock();
        last.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes that a delivery is given up.
    pub(crate) fn note_dead(&self) {
        self.meters.shared().dead.up();
        *self.last_dead() = Some(Instant::now());
    }

    /// Counts a dead letter that is delivered again: one of its own, or one that it was not given.
    pub(crate) fn count_replay(&self, is_own: bool) {
        if is_own && self.meters.dead_letters() > 0 {
            self.meters.shared().replayed.up();
        } else {
            self.steps.matching.up();
        }
    }

    /// Counts a dead letter that is discarded, where it is one of its own.
    pub(crate) fn count_discard(&self, is_own: bool) {
        if is_own && self.meters.dead_letters() > 0 {
            self.meters.shared().discarded.up();
        }
    }

    /// How many deliveries are being attempted.
    pub(crate) fn running(&self) -> u64 {
        let seats = self.seats.iter().filter(|seat| seat.is_at(self.number));
        seats.map(|seat| seat.attempting() as u64).sum()
    }

    /// Notes that a worker is about to be at it.
    pub(crate) fn announce(&self, seat: &Seat) {
        seat.take_up(self.number);
    }

    /// Notes that a worker is at it, for as long as the guard lives, unless no attempt may begin: no
    /// first attempt, or none of the backlog of a mailbox.
    pub(crate) fn begin<'a>(&'a self, seat: &'a Seat, backlog: Option<MailboxId>) -> Begun<'a> {
        // Say so before looking, so that whoever removes or pauses and then looks sees it.
        self.announce(seat);
        let running = Running {
            subscribed: self,
            seat,
        };
        if self.may_go_on(backlog) {
            Begun::Runs(running)
        } else if self.is_removed() {
            Begun::Removed(running)
        } else {
            Begun::Held(running)
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
    Held(Running<'a>),
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
