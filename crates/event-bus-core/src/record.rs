//! One accepted event in memory: what its deliveries and its receipt share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Instant,
};

use domain_events::{BoxFuture, DeliveryOutcome, EventEnvelope, Handled, Handling, WaitError};

use crate::{
    engine::Engine,
    inside::{self, BusId},
    subscriptions::Subscribed,
};

/// How one delivery stands. It holds memory while open; a receipt waits while open or left.
const OPEN: u8 = 0;
/// Left to the log: a row of the store covers it.
const LEFT: u8 = 1;
const HANDLED: u8 = 2;
const SKIPPED: u8 = 3;
const DEAD: u8 = 4;
const STOPPED: u8 = 5;

/// An accepted event with the state of each of its deliveries.
pub(crate) struct Record {
    pub(crate) envelope: Arc<EventEnvelope>,
    pub(crate) targets: Arc<[Arc<Subscribed>]>,
    pub(crate) accepted_at: Instant,
    pub(crate) may_be_repeat: bool,
    /// Whether the event takes a place of the bus's capacity.
    pub(crate) has_room: bool,
    states: States,
    open: AtomicUsize,
    unresolved: AtomicUsize,
    followed: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

impl Record {
    pub(crate) fn new(
        envelope: Arc<EventEnvelope>,
        targets: Arc<[Arc<Subscribed>]>,
        accepted_at: Instant,
        has_room: bool,
        may_be_repeat: bool,
    ) -> Arc<Self> {
        let count = targets.len();
        Arc::new(Self {
            envelope,
            targets,
            accepted_at,
            may_be_repeat,
            has_room,
            states: States::new(count),
            open: AtomicUsize::new(count),
            unresolved: AtomicUsize::new(count),
            followed: AtomicBool::new(false),
            waiters: Mutex::default(),
        })
    }

    /// Whether no delivery holds the event in memory.
    pub(crate) fn is_finished(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_open(&self, target: usize) -> bool {
        self.states.of(target).load(Ordering::Acquire) == OPEN
    }

    /// Whether somebody holds a receipt of the event.
    pub(crate) fn is_followed(&self) -> bool {
        self.followed.load(Ordering::Acquire)
    }

    /// Whether every delivery has an outcome.
    pub(crate) fn is_resolved(&self) -> bool {
        self.unresolved.load(Ordering::Acquire) == 0
    }

    /// Whether a delivery is left to the log.
    pub(crate) fn is_left(&self, target: usize) -> bool {
        self.states.of(target).load(Ordering::Acquire) == LEFT
    }

    /// Which target a subscription is.
    pub(crate) fn target(&self, subscribed: &Arc<Subscribed>) -> Option<usize> {
        self.targets
            .iter()
            .position(|target| Arc::ptr_eq(target, subscribed))
    }

    /// Leaves a delivery to the log. Returns whether the event is finished by that.
    pub(crate) fn leave(&self, target: usize) -> bool {
        let was = self.states.of(target).swap(LEFT, Ordering::AcqRel);
        was == OPEN && self.open.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Notes a delivery's outcome, still to be [told](Self::tell). Returns whether the event is finished by that.
    pub(crate) fn resolve(&self, target: usize, outcome: DeliveryOutcome) -> bool {
        let code = match outcome {
            DeliveryOutcome::Handled => HANDLED,
            DeliveryOutcome::Skipped => SKIPPED,
            DeliveryOutcome::Dead => DEAD,
            DeliveryOutcome::Stopped => STOPPED,
        };
        let was = self.states.of(target).swap(code, Ordering::AcqRel);
        if was <= LEFT {
            self.unresolved.fetch_sub(1, Ordering::AcqRel);
        }
        was == OPEN && self.open.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Resolves whatever is still open or left: the bus has stopped.
    pub(crate) fn stop(&self) {
        for target in 0..self.targets.len() {
            if self.states.of(target).load(Ordering::Acquire) <= LEFT {
                self.resolve(target, DeliveryOutcome::Stopped);
            }
        }
        self.tell();
    }

    /// Wakes those who wait for the last outcome, if it is there. A waker is anybody's code: not to
    /// be called under the lock.
    pub(crate) fn tell(&self) {
        if !self.is_resolved() {
            return;
        }
        let waiters = std::mem::take(&mut *unpoisoned(&self.waiters));
        waiters.into_iter().for_each(Waker::wake);
    }

    fn outcomes(&self) -> Option<Handled> {
        if !self.is_resolved() {
            return None;
        }
        let outcome = |target| match self.states.of(target).load(Ordering::Acquire) {
            HANDLED => DeliveryOutcome::Handled,
            SKIPPED => DeliveryOutcome::Skipped,
            DEAD => DeliveryOutcome::Dead,
            _ => DeliveryOutcome::Stopped,
        };
        let names = self.targets.iter().map(|target| Arc::clone(target.name()));
        Some(Handled {
            outcomes: names.zip((0..self.targets.len()).map(outcome)).collect(),
        })
    }

    fn poll_handled(&self, waker: &Waker) -> Poll<Handled> {
        if let Some(handled) = self.outcomes() {
            return Poll::Ready(handled);
        }
        wait(&self.waiters, waker);
        // The last outcome may have come before the waker was in its place.
        self.outcomes().map_or(Poll::Pending, Poll::Ready)
    }
}

/// How many deliveries an event can have before their states need memory of their own.
const INLINE: usize = 8;

/// The states of an event's deliveries.
struct States {
    inline: [AtomicU8; INLINE],
    more: Box<[AtomicU8]>,
}

impl States {
    fn new(count: usize) -> Self {
        let open = || AtomicU8::new(OPEN);
        Self {
            inline: std::array::from_fn(|_| open()),
            more: (INLINE..count).map(|_| open()).collect(),
        }
    }

    fn of(&self, target: usize) -> &AtomicU8 {
        self.inline
            .get(target)
            .unwrap_or_else(|| &self.more[target - INLINE])
    }
}

/// A receipt's side of a record; the record may come later, when the event is read from the log.
pub(crate) struct Followed {
    bus: BusId,
    record: OnceLock<Arc<Record>>,
    early: Mutex<Vec<Waker>>,
    /// The bus that awaits the event, and the event, where it was left to the log.
    awaited: Option<(Weak<Engine>, Arc<EventEnvelope>)>,
}

impl Followed {
    pub(crate) fn new(bus: BusId, record: Arc<Record>) -> Arc<Self> {
        record.followed.store(true, Ordering::Release);
        Arc::new(Self {
            bus,
            record: record.into(),
            early: Mutex::default(),
            awaited: None,
        })
    }

    /// For an event that is left to the log.
    pub(crate) fn awaiting(
        bus: BusId,
        engine: Weak<Engine>,
        event: Arc<EventEnvelope>,
    ) -> Arc<Self> {
        let awaited = Some((engine, event));
        Arc::new(Self {
            bus,
            record: OnceLock::new(),
            early: Mutex::default(),
            awaited,
        })
    }

    /// Gives the record of the event, now that it was read from the log.
    pub(crate) fn found(&self, record: &Arc<Record>) {
        record.followed.store(true, Ordering::Release);
        let _ = self.record.set(Arc::clone(record));
        let early = std::mem::take(&mut *unpoisoned(&self.early));
        early.into_iter().for_each(Waker::wake);
    }

    /// The event, where it was left to the log.
    pub(crate) fn event(&self) -> Option<&Arc<EventEnvelope>> {
        self.awaited.as_ref().map(|(_, event)| event)
    }

    fn poll(&self, waker: &Waker) -> Poll<Handled> {
        if self.record.get().is_none() {
            wait(&self.early, waker);
        }
        // The record may have come before the waker was in its place.
        self.record
            .get()
            .map_or(Poll::Pending, |record| record.poll_handled(waker))
    }

    fn is_settled(&self) -> bool {
        self.record
            .get()
            .is_some_and(|record| record.outcomes().is_some())
    }
}

impl Handling for Followed {
    fn handled(self: Arc<Self>) -> BoxFuture<'static, Result<Handled, WaitError>> {
        Box::pin(std::future::poll_fn(move |cx| {
            if inside::is_inside(self.bus) && !self.is_settled() {
                return Poll::Ready(Err(WaitError::InsideHandler));
            }
            self.poll(cx.waker()).map(Ok)
        }))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(record) = self.record.get() {
            record.followed.store(false, Ordering::Release);
        } else if let Some((engine, event)) = &self.awaited
            && let Some(engine) = engine.upgrade()
        {
            engine.no_longer_awaited(event);
        }
    }
}

/// Adds a waker, once however often its task polls.
fn wait(waiters: &Mutex<Vec<Waker>>, waker: &Waker) {
    let mut waiters = unpoisoned(waiters);
    if !waiters.iter().any(|other| other.will_wake(waker)) {
        waiters.push(waker.clone());
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
