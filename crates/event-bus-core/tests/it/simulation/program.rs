//! A program as plain data, drawn by a seed: the bus, who is subscribed, and what clients do.

use std::time::Duration;

use domain_events::{FailurePolicy, Ordering, Position, StartFrom};
use fastrand::Rng;

use super::events::{Kind, Raised};

/// How many events clients publish at most; those of handlers have numbers from here on.
pub(super) const MOST_EVENTS: u64 = 100;

/// How long attempts wait for their time at most, and how long a crash takes: longer.
pub(super) const DOWN_TIME: Duration = Duration::from_secs(24 * 3_600);

/// What is done with a bus.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) seed: u64,
    pub(super) capacity: usize,
    pub(super) workers: usize,
    pub(super) aggregates: u8,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) clients: Vec<Vec<Step>>,
    /// Whether the first run is to be idle before it is stopped; else it is cut off.
    pub(super) ends_idle: bool,
    /// Whether nothing waits for a time. Of one who leaves and comes back, the wait is what the
    /// system's clock says, and that is not the seed's.
    pub(super) is_hasty: bool,
    /// How long the store takes to answer what is written.
    pub(super) latency: Duration,
}

/// A subscription.
#[derive(Debug)]
pub(super) struct Subscriber {
    /// The type of the events wanted; `None` for all.
    pub(super) wants: Option<Kind>,
    /// The aggregate of which a filter passes events over.
    pub(super) passes_over: Option<u8>,
    pub(super) priority: i32,
    /// Workers and capacity of a pipeline of its own.
    pub(super) isolated: Option<(usize, usize)>,
    pub(super) attempts: u32,
    pub(super) policy: FailurePolicy,
    pub(super) ordering: Ordering,
    pub(super) start: StartFrom,
    /// Whether it is subscribed by a step, and not before the start.
    pub(super) is_late: bool,
}

/// One step of a client. Subscriptions are named by their number.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Publish(Vec<Raised>),
    Pass(Duration),
    Pause(usize),
    Resume(usize),
    Replay(usize),
    Discard(usize),
    Reset(usize, StartFrom),
    Leave(usize),
    Join(usize),
    /// Prunes the log, but for so many of the latest.
    Prune(u64),
    Idle,
}

/// What an attempt does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behaviour {
    /// How many events it publishes, in one batch.
    pub(super) publishes: u64,
    pub(super) yields: u8,
    pub(super) rests: Duration,
    pub(super) end: Finish,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Handle,
    Skip,
    Fail,
    RetryAfter(Duration),
    FailForGood,
    Panic,
}

impl Program {
    pub(super) fn of(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed);
        let aggregates = rng.u8(2..=4);
        let early = rng.usize(1..=2);
        let subscribers: Vec<_> = (0..=early)
            .map(|number| Subscriber::draw(rng, number == early))
            .collect();
        let mut clients = clients(rng, aggregates, subscribers.len());
        // In the middle of the first client's steps.
        let middle = clients[0].len() / 2;
        clients[0].insert(middle, Step::Join(early));
        let mut all = clients.iter().flatten();
        Self {
            seed,
            capacity: rng.usize(2..=8),
            workers: rng.usize(1..=3),
            aggregates,
            ends_idle: rng.bool(),
            is_hasty: all.any(|step| matches!(step, Step::Leave(_))),
            subscribers,
            clients,
            latency: Duration::from_millis(if rng.bool() { 0 } else { rng.u64(1..30) }),
        }
    }

    /// What an attempt of a delivery does: always the same.
    pub(super) fn behaviour(
        &self,
        subscriber: usize,
        event: u64,
        attempt: u32,
        is_replay: bool,
    ) -> Behaviour {
        let place = (
            subscriber as u64,
            event,
            u64::from(attempt),
            u64::from(is_replay),
        );
        let rng = &mut Rng::with_seed(
            self.seed ^ place.0 << 60 ^ place.1 << 40 ^ place.2 << 20 ^ place.3 << 10,
        );
        let first = (attempt, is_replay) == (1, false) && event < MOST_EVENTS;
        Behaviour {
            publishes: if first && rng.u8(..8) == 0 {
                rng.u64(1..=2)
            } else {
                0
            },
            yields: rng.u8(..3),
            rests: Duration::from_millis(if rng.bool() { 0 } else { rng.u64(1..120) }),
            end: self.finish(rng),
        }
    }

    fn finish(&self, rng: &mut Rng) -> Finish {
        let later = rng.u64(1..3_600_000);
        match rng.u8(..32) {
            0..18 => Finish::Handle,
            18 | 19 => Finish::Skip,
            20..26 => Finish::Fail,
            26 | 27 if self.is_hasty => Finish::RetryAfter(Duration::ZERO),
            26 | 27 => Finish::RetryAfter(Duration::from_millis(later)),
            28 | 29 => Finish::FailForGood,
            _ => Finish::Panic,
        }
    }
}

impl Subscriber {
    fn draw(rng: &mut Rng, is_late: bool) -> Self {
        let orderings = [Ordering::Total, Ordering::None];
        let ordering = match rng.u8(..4) {
            0 => orderings[rng.usize(..2)],
            _ => Ordering::PerAggregate,
        };
        let policies = [
            FailurePolicy::Skip,
            FailurePolicy::PauseSubscription,
            // In another order there is no aggregate to be parked.
            FailurePolicy::ParkAggregate,
        ];
        let policies = match ordering {
            Ordering::PerAggregate => &policies[..],
            _ => &policies[..2],
        };
        let starts = [StartFrom::Beginning, StartFrom::Now, after(rng)];
        Self {
            wants: (rng.u8(..4) == 0).then_some(Kind::Opened),
            passes_over: (rng.u8(..4) == 0).then_some(0),
            priority: rng.i32(0..3),
            isolated: (rng.u8(..3) == 0).then(|| {
                let workers = rng.usize(1..=2);
                let workers = if ordering == Ordering::Total {
                    1
                } else {
                    workers
                };
                (workers, rng.usize(1..=4))
            }),
            attempts: rng.u32(1..=3),
            policy: policies[rng.usize(..policies.len())],
            ordering,
            start: if is_late {
                starts[rng.usize(..3)]
            } else {
                StartFrom::Beginning
            },
            is_late,
        }
    }

    /// What keeps its order, and never runs beside each other: an aggregate, all, or each by itself.
    pub(super) fn lane(&self, aggregate: u8, position: Position) -> u64 {
        match self.ordering {
            Ordering::PerAggregate => u64::from(aggregate),
            Ordering::Total => 1_000,
            Ordering::None => 1_000 + position.get(),
        }
    }

    /// Whether it is to have an event.
    pub(super) fn wants(&self, raised: Raised) -> bool {
        self.wants.is_none_or(|kind| kind == raised.kind)
            && self.passes_over != Some(raised.aggregate)
    }
}

fn after(rng: &mut Rng) -> StartFrom {
    StartFrom::After(Position::new(rng.u64(0..6)))
}

/// The steps of two clients, with 10 to 25 events.
fn clients(rng: &mut Rng, aggregates: u8, subscribers: usize) -> Vec<Vec<Step>> {
    let (mut clients, events) = (vec![Vec::new(), Vec::new()], rng.u64(10..=25));
    let mut number = 0;
    while number < events {
        let client = &mut clients[rng.usize(..2)];
        if rng.u8(..3) == 0 {
            client.push(operation(rng, subscribers));
            continue;
        }
        let size = if rng.u8(..3) == 0 { rng.u64(2..=5) } else { 1 };
        let batch = number..(number + size).min(events);
        number = batch.end;
        let raised = batch.map(|number| Raised {
            number,
            kind: if rng.bool() {
                Kind::Opened
            } else {
                Kind::Moved
            },
            aggregate: rng.u8(..aggregates),
        });
        client.push(Step::Publish(raised.collect()));
    }
    clients
}

fn operation(rng: &mut Rng, subscribers: usize) -> Step {
    let of = rng.usize(..subscribers);
    match rng.u8(..20) {
        0..6 => Step::Pass(Duration::from_millis(rng.u64(1..200))),
        6 | 7 => Step::Pause(of),
        8..11 => Step::Resume(of),
        11..14 => Step::Replay(of),
        14 => Step::Discard(of),
        15 => Step::Reset(
            of,
            if rng.bool() {
                StartFrom::Beginning
            } else {
                after(rng)
            },
        ),
        16 => Step::Leave(of),
        17 => Step::Join(of),
        18 => Step::Prune(rng.u64(..6)),
        _ => Step::Idle,
    }
}
