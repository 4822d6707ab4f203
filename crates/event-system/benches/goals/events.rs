//! What is published, and the ledger that finds what was lost, doubled or out of order.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use std::time::Instant;

use anyhow::{Result, ensure};
use domain_events::{
    DomainEvent, Event, EventHandler, HandlerContext, HandlerError, NewEvent, RetryPolicy,
    Subscription,
};
use serde::{Deserialize, Serialize};

/// A meter was read: the event of all measurements.
#[derive(Clone, Debug, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "goals.measured", aggregate = "meter", id = meter)]
pub(crate) struct Measured {
    /// The aggregate's id: 36 characters, in no order.
    pub(crate) meter: Arc<str>,
    /// The aggregate's number.
    pub(crate) slot: usize,
    /// The number of the event in its aggregate, from 1.
    pub(crate) number: u64,
}

/// `count` events of `aggregates` in turn.
pub(crate) fn events(count: usize, aggregates: usize) -> impl Iterator<Item = Measured> {
    let meters: Vec<Arc<str>> = (0..aggregates as u64).map(meter).collect();
    (0..count).map(move |index| {
        let slot = index % aggregates;
        let number = (index / aggregates) as u64 + 1;
        Measured {
            meter: Arc::clone(&meters[slot]),
            slot,
            number,
        }
    })
}

/// The same, ready to be published, in batches.
pub(crate) fn batches(count: usize, aggregates: usize, size: usize) -> Vec<Vec<NewEvent>> {
    let mut events = events(count, aggregates).map(NewEvent::from).peekable();
    let mut batches = Vec::new();
    while events.peek().is_some() {
        batches.push(events.by_ref().take(size).collect());
    }
    batches
}

fn meter(slot: u64) -> Arc<str> {
    // An odd factor spreads the numbers without letting two meet.
    let spread = (slot + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{spread:016x}-{:019}", slot).into()
}

/// What each aggregate saw last.
#[derive(Clone, Debug)]
pub(crate) struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    last: Vec<AtomicU64>,
    wrong: AtomicU64,
    first: OnceLock<Instant>,
    fails: Fails,
}

/// What a ledger refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fails {
    Never,
    /// The events of this aggregate, always.
    Aggregate(usize),
    /// The first attempt of every event.
    FirstAttempts,
}

impl Ledger {
    pub(crate) fn new(aggregates: usize) -> Self {
        Self::failing(aggregates, Fails::Never)
    }

    pub(crate) fn failing(aggregates: usize, fails: Fails) -> Self {
        Self(Arc::new(Inner {
            last: (0..aggregates).map(|_| AtomicU64::new(0)).collect(),
            wrong: AtomicU64::new(0),
            first: OnceLock::new(),
            fails,
        }))
    }

    /// A subscription that keeps this ledger.
    pub(crate) fn subscription(&self, name: &str) -> Subscription {
        let retry = RetryPolicy::exponential().max_attempts(u32::MAX);
        Subscription::new(name, self.clone()).retry(retry)
    }

    /// How many events were handled in order.
    pub(crate) fn handled(&self) -> u64 {
        self.0.last.iter().map(|last| last.load(Relaxed)).sum()
    }

    /// When the first event was handled.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.0.first.get().copied()
    }

    /// Checks that each of `expected` events was handled once, and in the order of its aggregate.
    pub(crate) fn check(&self, expected: usize) -> Result<()> {
        let (handled, wrong) = (self.handled(), self.0.wrong.load(Relaxed));
        ensure!(
            wrong == 0,
            "{wrong} events were doubled, left out or out of order"
        );
        ensure!(
            handled == expected as u64,
            "{handled} events of {expected} were handled"
        );
        Ok(())
    }
}

impl EventHandler<Measured> for Ledger {
    async fn handle(&self, event: Event<Measured>, cx: HandlerContext) -> Result<(), HandlerError> {
        let fails = match self.0.fails {
            Fails::Never => false,
            Fails::Aggregate(slot) => slot == event.slot,
            Fails::FirstAttempts => cx.attempt() == 1,
        };
        if fails {
            return Err(HandlerError::transient("as it was told to"));
        }
        let before = self.0.last[event.slot].swap(event.number, Relaxed);
        if before + 1 != event.number {
            self.0.wrong.fetch_add(1, Relaxed);
        }
        self.0.first.get_or_init(Instant::now);
        Ok(())
    }
}
