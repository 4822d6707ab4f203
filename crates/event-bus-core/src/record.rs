//! One accepted event in the memory of one pipeline: what its deliveries and its receipt share.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    task::{Poll, Waker},
};

use domain_events::{
    BoxFuture, DeliveryOutcome, EventEnvelope, Handled, Handling, Urgency, WaitError,
};
use tokio::time::Instant;

use crate::{
    engine::wake,
    inside::{self, BusId},
    subscribed::Subscribed,
    subscriptions::Targets,
    sync::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Mutex, lock},
};

/// How one delivery stands. It holds memory while open.
const OPEN: u8 = 0;
/// Left to the log: a row of the store covers it.
const LEFT: u8 = 1;
/// The outcomes; odd, so that leaving changes none of them.
const HANDLED: u8 = 3;
const SKIPPED: u8 = 5;
const DEAD: u8 = 7;
const STOPPED: u8 = 9;
const STAND: u8 = 0x0f;
/// Why a delivery that is open or left rests: an outcome for its receipt, until it goes on.
const PARKED: u8 = 0x10;
const PAUSED: u8 = 0x20;

/// Why a delivery rests until somebody acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Parked,
    Paused,
}

/// An accepted event with the state of each of its deliveries; with the counts of its `Arc` in 120
/// bytes, up to which allocators have the quickest lists.
pub(crate) struct Record {
    pub(crate) envelope: Arc<EventEnvelope>,
    /// `None` until the event is taken in.
    targets: Option<Targets>,
    /// The envelope's, so that steps under the lock need not go there for it.
    pub(crate) urgency: Urgency,
    pub(crate) accepted_at: Instant,
    pub(crate) marks: Marks,
    bus: BusId,
    states: [AtomicU8; INLINE],
    counts: Counts,
    followed: AtomicBool,
    /// Made for the first who waits.
    waiters: OnceLock<Box<Mutex<Vec<Waker>>>>,
    /// `None` for most.
    rare: Option<Box<Rare>>,
}

/// What few records have.
#[derive(Default)]
struct Rare {
    /// In how many pipelines the event is not finished; `None` where it is in no other.
    pipelines: Option<Arc<AtomicUsize>>,
    /// The states of the deliveries after the first ones.
    more: Box<[AtomicU8]>,
}

/// What is known of an event when it is taken in.
#[derive(Clone, Copy, Default)]
pub(crate) struct Marks {
    pub(crate) may_be_repeat: bool,
    pub(crate) is_replay: bool,
    /// Whether it takes a place of the pipeline's capacity.
    pub(crate) has_room: bool,
}

impl Record {
    pub(crate) fn new(
        bus: BusId,
        envelope: Arc<EventEnvelope>,
        targets: Targets,
        accepted_at: Instant,
        marks: Marks,
    ) -> Self {
        let mut record = Self::arriving(bus, envelope, accepted_at);
        record.marks = marks;
        record.aim(targets);
        record
    }

    /// The record of an event that is not taken in yet: made without the lock, which then has only
    /// to [aim](Self::aim) it.
    pub(crate) fn arriving(bus: BusId, envelope: Arc<EventEnvelope>, accepted_at: Instant) -> Self {
        Self {
            urgency: envelope.urgency(),
            envelope,
            targets: None,
            accepted_at,
            marks: Marks::default(),
            bus,
            states: std::array::from_fn(|_| AtomicU8::new(OPEN)),
            counts: Counts::new(0),
            followed: AtomicBool::new(false),
            waiters: OnceLock::new(),
            rare: None,
        }
    }

    /// Says who is to have the event.
    pub(crate) fn aim(&mut self, targets: Targets) {
        let count = targets.len();
        if count > INLINE {
            let more = (INLINE..count).map(|_| AtomicU8::new(OPEN));
            self.rare.get_or_insert_default().more = more.collect();
        }
        self.counts = Counts::new(count);
        self.targets = Some(targets);
    }

    pub(crate) fn targets(&self) -> &[Arc<Subscribed>] {
        self.targets.as_deref().unwrap_or_default()
    }

    /// For an event that is in several pipelines, which count together when it is finished.
    pub(crate) fn share(&mut self, pipelines: Option<Arc<AtomicUsize>>) {
        if pipelines.is_some() {
            self.rare.get_or_insert_default().pipelines = pipelines;
        }
    }

    /// Notes that the event is finished in this pipeline. Returns whether it is in all.
    pub(crate) fn leave_pipeline(&self) -> bool {
        let last = |count: &Arc<AtomicUsize>| count.fetch_sub(1, Ordering::AcqRel) == 1;
        let pipelines = self.rare.as_ref().and_then(|rare| rare.pipelines.as_ref());
        pipelines.is_none_or(last)
    }

    fn state(&self, target: usize) -> &AtomicU8 {
        let more = || self.rare.as_deref().map_or(&[][..], |rare| &rare.more);
        self.states
            .get(target)
            .unwrap_or_else(|| &more()[target - INLINE])
    }

    fn stand_of(&self, target: usize) -> u8 {
        self.state(target).load(Ordering::Acquire) & STAND
    }

    /// Whether no delivery holds the event in memory.
    pub(crate) fn is_finished(&self) -> bool {
        self.counts.open() == 0
    }

    /// How many deliveries hold the event in memory.
    pub(crate) fn open(&self) -> u64 {
        self.counts.open()
    }

    pub(crate) fn is_open(&self, target: usize) -> bool {
        self.stand_of(target) == OPEN
    }

    /// Whether somebody holds a receipt of the event.
    pub(crate) fn is_followed(&self) -> bool {
        self.followed.load(Ordering::Acquire)
    }

    pub(crate) fn set_followed(&self, followed: bool) {
        self.followed.store(followed, Ordering::Release);
    }

    /// Whether every delivery has an outcome, be it a passing one.
    pub(crate) fn is_resolved(&self) -> bool {
        self.counts.unresolved() == 0
    }

    /// Whether a delivery is left to the log.
    pub(crate) fn is_left(&self, target: usize) -> bool {
        self.stand_of(target) == LEFT
    }

    /// Whether some delivery is left to the log.
    pub(crate) fn is_any_left(&self) -> bool {
        (0..self.targets().len()).any(|target| self.is_left(target))
    }

    /// Whether a delivery was given up.
    pub(crate) fn is_dead(&self, target: usize) -> bool {
        self.stand_of(target) == DEAD
    }

    /// Whether a delivery was not made, as its subscription went.
    pub(crate) fn is_stopped(&self, target: usize) -> bool {
        self.stand_of(target) == STOPPED
    }

    /// Which target a subscription is.
    pub(crate) fn target(&self, subscribed: &Arc<Subscribed>) -> Option<usize> {
        self.targets()
            .iter()
            .position(|target| Arc::ptr_eq(target, subscribed))
    }

    /// Leaves a delivery to the log. Returns whether the event is finished by that.
    pub(crate) fn leave(&self, target: usize) -> bool {
        // Set and not replaced: why the delivery rests stays known.
        let was = self.state(target).fetch_or(LEFT, Ordering::AcqRel);
        was & STAND == OPEN && self.counts.close(false)
    }

    /// Notes a delivery's outcome, still to be [told](Self::tell). Returns whether the event is
    /// finished by that.
    pub(crate) fn resolve(&self, target: usize, outcome: DeliveryOutcome) -> bool {
        let code = match outcome {
            DeliveryOutcome::Handled => HANDLED,
            DeliveryOutcome::Skipped => SKIPPED,
            DeliveryOutcome::Dead => DEAD,
            DeliveryOutcome::Stopped | DeliveryOutcome::Parked | DeliveryOutcome::Paused => STOPPED,
        };
        let was = self.state(target).swap(code, Ordering::AcqRel);
        let is_resolved = was <= LEFT;
        if was & STAND == OPEN {
            return self.counts.close(is_resolved);
        }
        if is_resolved {
            self.counts.resolve();
        }
        false
    }

    /// Notes, still to be [told](Self::tell), why a delivery rests.
    pub(crate) fn rest(&self, target: usize, why: Rest) {
        let why = match why {
            Rest::Parked => PARKED,
            Rest::Paused => PAUSED,
        };
        let rests = |state| (state & STAND <= LEFT).then_some(state & STAND | why);
        let state = self.state(target);
        let was = state.fetch_update(Ordering::AcqRel, Ordering::Acquire, rests);
        if was.is_ok_and(|was| was <= LEFT) {
            self.counts.resolve();
        }
    }

    /// Notes that a delivery rests no more.
    pub(crate) fn go_on(&self, target: usize) {
        let was = self.state(target).fetch_and(STAND, Ordering::AcqRel);
        if was & STAND <= LEFT && was > LEFT {
            self.counts.go_on();
        }
    }

    /// Resolves whatever is still open or left: the bus has stopped.
    pub(crate) fn stop(&self) {
        for target in 0..self.targets().len() {
            if self.stand_of(target) <= LEFT {
                self.resolve(target, DeliveryOutcome::Stopped);
            }
        }
        self.tell();
    }

    /// Wakes those who wait for the last outcome, if it is there. A waker is anybody's code: not to
    /// be called under the lock.
    pub(crate) fn tell(&self) {
        if !self.counts.is_to_be_told() {
            return;
        }
        if let Some(waiters) = self.waiters.get() {
            let waiters = std::mem::take(&mut *lock(waiters));
            waiters.into_iter().for_each(wake);
        }
    }

    /// The name and the outcome of every delivery, once all have one.
    pub(crate) fn outcomes(&self) -> Option<Vec<(Arc<str>, DeliveryOutcome)>> {
        if !self.is_resolved() {
            return None;
        }
        let outcome = |target| {
            let state = self.state(target).load(Ordering::Acquire);
            match state & STAND {
                HANDLED => DeliveryOutcome::Handled,
                SKIPPED => DeliveryOutcome::Skipped,
                DEAD => DeliveryOutcome::Dead,
                STOPPED => DeliveryOutcome::Stopped,
                _ if state & PARKED != 0 => DeliveryOutcome::Parked,
                _ => DeliveryOutcome::Paused,
            }
        };
        let names = self
            .targets()
            .iter()
            .map(|target| Arc::clone(target.name()));
        Some(names.zip((0..self.targets().len()).map(outcome)).collect())
    }

    /// The same, or the waker is told when they are there.
    pub(crate) fn poll_outcomes(&self, waker: &Waker) -> Poll<Vec<(Arc<str>, DeliveryOutcome)>> {
        if let Some(outcomes) = self.outcomes() {
            return Poll::Ready(outcomes);
        }
        wait(self.waiters.get_or_init(Box::default), waker);
        self.counts.wait();
        // The last outcome may have come before the waker was in its place.
        self.outcomes().map_or(Poll::Pending, Poll::Ready)
    }
}

/// A record is the receipt's side too, of an event that is in one pipeline.
impl Handling for Record {
    fn handled(self: Arc<Self>) -> BoxFuture<'static, Result<Handled, WaitError>> {
        Box::pin(std::future::poll_fn(move |cx| {
            if inside::is_inside(self.bus) && !self.is_resolved() {
                return Poll::Ready(Err(WaitError::InsideHandler));
            }
            self.poll_outcomes(cx.waker())
                .map(|outcomes| Ok(Handled { outcomes }))
        }))
    }
}

/// How many deliveries are open and unresolved, and whether somebody has ever waited for the last
/// outcome: in one word, so that a delivery is closed by one write and nobody waits unseen.
struct Counts(AtomicU64);

impl Counts {
    const UNRESOLVED: u64 = 1;
    const OPEN: u64 = 1 << 31;
    const WAITED: u64 = 1 << 62;

    fn new(count: usize) -> Self {
        Self(AtomicU64::new(
            count as u64 * (Self::UNRESOLVED + Self::OPEN),
        ))
    }

    fn unresolved(&self) -> u64 {
        self.0.load(Ordering::Acquire) % Self::OPEN
    }

    fn open(&self) -> u64 {
        Self::open_of(self.0.load(Ordering::Acquire))
    }

    fn open_of(counts: u64) -> u64 {
        counts % Self::WAITED / Self::OPEN
    }

    /// Notes that a delivery is open no more, and whether it is resolved by that. Returns whether it
    /// was the last open one.
    fn close(&self, is_resolved: bool) -> bool {
        let less = Self::OPEN + u64::from(is_resolved) * Self::UNRESOLVED;
        Self::open_of(self.0.fetch_sub(less, Ordering::AcqRel)) == 1
    }

    fn resolve(&self) {
        self.0.fetch_sub(Self::UNRESOLVED, Ordering::AcqRel);
    }

    fn go_on(&self) {
        self.0.fetch_add(Self::UNRESOLVED, Ordering::AcqRel);
    }

    /// Notes that somebody waits; who then finds something unresolved is told.
    fn wait(&self) {
        self.0.fetch_or(Self::WAITED, Ordering::AcqRel);
    }

    fn is_to_be_told(&self) -> bool {
        let counts = self.0.load(Ordering::Acquire);
        counts & Self::WAITED != 0 && counts.is_multiple_of(Self::OPEN)
    }
}

/// How many deliveries an event can have before their states need memory of their own.
const INLINE: usize = 8;

/// Adds a waker, once however often its task polls.
pub(crate) fn wait(waiters: &Mutex<Vec<Waker>>, waker: &Waker) {
    let mut waiters = lock(waiters);
    if !waiters.iter().any(|other| other.will_wake(waker)) {
        waiters.push(waker.clone());
    }
}

#[cfg(all(test, not(shuttle), target_pointer_width = "64"))]
mod tests {
    #[test]
    fn a_record_is_no_larger_than_it_says() {
        assert!(size_of::<super::Record>() + 2 * size_of::<usize>() <= 120);
    }
}
