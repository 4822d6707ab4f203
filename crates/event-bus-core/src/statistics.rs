//! The figures of the bus at one moment, put together (N1, N2).

use std::{sync::Arc, time::Duration};

use domain_events::{BusStatistics, PipelineStatistics, SubscriptionStatistics};
use hashbrown::HashMap;
use tokio::time::Instant;

use crate::{
    blocked::{Behind, Blocked, Stand},
    engine::Engine,
    lifecycle::Phase,
    meters::latency,
    pipeline::Pipeline,
    process,
    record::Record,
    state::State,
    subscribed::Subscribed,
};

/// The figures of a bus that has been running for so long.
pub(crate) fn of(engine: &Engine, uptime: Option<Duration>) -> BusStatistics {
    let (mut statistics, members) = engine.look(|state| {
        let unfinished = Unfinished::of(state);
        let members: Vec<_> = state
            .subscriptions
            .members()
            .iter()
            .map(|member| {
                let subscribed = Arc::clone(&member.subscribed);
                let figures = figures(state, &subscribed, unfinished.of_one(&subscribed));
                (subscribed, figures)
            })
            .collect();
        (of_state(state, &unfinished), members)
    });
    let sets = || members.iter().flat_map(|(it, _)| it.meters.all());
    statistics.running = engine.lifecycle.phase() == Phase::Running;
    statistics.workers = engine.config.workers;
    statistics.capacity = engine.config.capacity;
    statistics.uptime = uptime.unwrap_or_default();
    statistics.store_trouble = engine.store_trouble();
    statistics.resident_memory = process::resident_memory();
    statistics.handling = latency(sets().map(|set| &set.handling));
    statistics.publish_to_handled = latency(sets().map(|set| &set.publish_to_handled));
    let with_latencies = members.into_iter().map(|(subscribed, figures)| {
        let sets = || subscribed.meters.all();
        SubscriptionStatistics {
            handling: latency(sets().map(|set| &set.handling)),
            publish_to_handled: latency(sets().map(|set| &set.publish_to_handled)),
            ..figures
        }
    });
    statistics.subscriptions = with_latencies.collect();
    statistics
}

fn of_state(state: &State, unfinished: &Unfinished) -> BusStatistics {
    let figures = state.figures;
    let pipelines: Vec<_> = state
        .pipelines
        .iter()
        .map(|(_, pipeline)| of_pipeline(pipeline))
        .collect();
    BusStatistics {
        accepted: figures.accepted,
        recovered: figures.recovered,
        finished: figures.finished,
        in_flight: figures.in_flight,
        lag: pipelines.iter().map(|it| it.behind).max().unwrap_or(0),
        dead_letters: state.letters.count(),
        evicted_dead_letters: state.letters.evicted(),
        oldest_unfinished: unfinished.oldest(),
        pipelines,
        ..BusStatistics::default()
    }
}

fn of_pipeline(pipeline: &Pipeline) -> PipelineStatistics {
    PipelineStatistics {
        name: Arc::clone(&pipeline.name),
        workers: pipeline.seats.len(),
        capacity: pipeline.room.capacity(),
        taken: pipeline.room.taken(),
        behind: pipeline.cursor.as_ref().map_or(0, |cursor| cursor.lag()),
    }
}

fn figures(state: &State, subscribed: &Subscribed, waits: Waits) -> SubscriptionStatistics {
    let meters = &subscribed.meters;
    let mut figures = SubscriptionStatistics {
        name: Arc::clone(subscribed.name()),
        matching: subscribed.steps.matching.get(),
        handled: meters.sum(|set| &set.handled),
        skipped: meters.sum(|set| &set.skipped),
        dead: meters.dead_letters(),
        discarded: meters.sum(|set| &set.discarded),
        blocked: waits.blocked,
        parked: waits.parked,
        waiting: waits.waiting,
        running: subscribed.running(),
        failed_attempts: meters.sum(|set| &set.failed_attempts),
        retries: meters.sum(|set| &set.retries),
        paused: subscribed.paused(),
        is_tripped: subscribed.is_tripped(),
        stuck: subscribed.stuck_handlers(),
        oldest_unfinished: waits.oldest.map(|at| at.elapsed()),
        last_dead: subscribed.last_dead().map(|at| at.elapsed()),
        ..SubscriptionStatistics::default()
    };
    let ended = figures.handled + figures.skipped + figures.dead + figures.discarded;
    if state.is_closed {
        // Nothing waits for anything any more, be it kept in the log.
        (figures.blocked, figures.parked, figures.waiting) = (0, 0, 0);
        figures.abandoned = figures.matching.saturating_sub(ended + figures.lag());
    } else {
        figures.pending = figures.matching.saturating_sub(ended + figures.lag());
    }
    figures
}

/// What waits of one subscription.
#[derive(Clone, Copy, Default)]
struct Waits {
    blocked: u64,
    parked: u64,
    waiting: u64,
    oldest: Option<Instant>,
}

impl Waits {
    /// Of a subscription of which nothing is in memory.
    fn in_log(subscribed: &Subscribed) -> Self {
        let blocked = subscribed.steps.left.get();
        Self {
            blocked,
            ..Self::default()
        }
    }

    fn since(&mut self, at: Instant) {
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
    }
}

/// What is not finished, of each subscription.
#[derive(Default)]
struct Unfinished(HashMap<*const Subscribed, Waits>);

impl Unfinished {
    /// Looks through everything in memory, once.
    fn of(state: &State) -> Self {
        let mut unfinished = Self::default();
        for (_, pipeline) in state.pipelines.iter() {
            let cursor = pipeline.cursor.as_ref();
            let queued = pipeline.mailboxes.queued_records();
            for record in queued.chain(cursor.into_iter().flat_map(|it| it.open_records())) {
                unfinished.add_record(record);
            }
            for (_, _, blocked) in pipeline.mailboxes.all_blocked() {
                unfinished.add_blocked(blocked);
            }
        }
        unfinished
    }

    fn add_record(&mut self, record: &Record) {
        for (target, subscribed) in record.targets().iter().enumerate() {
            if record.is_open(target) {
                self.waits(subscribed).since(record.accepted_at);
            }
        }
    }

    /// Durable, what waits behind the first delivery is known by what was left to the log.
    fn add_blocked(&mut self, blocked: &Blocked) {
        let is_waiting = matches!(
            blocked.stand,
            Stand::Waiting | Stand::Ready | Stand::AfterRun
        );
        let first = u64::from(is_waiting && blocked.attempts > 0);
        let is_running = u64::from(blocked.stand == Stand::Running);
        let is_parked = matches!(blocked.stand, Stand::Parked(_));
        let waits = self.waits(&blocked.subscribed);
        waits.waiting += first;
        match &blocked.behind {
            Behind::Memory(records) => {
                let behind = (records.len() as u64).saturating_sub(first + is_running);
                waits.blocked += behind;
                waits.parked += if is_parked { behind } else { 0 };
                // A replay may stand before one that has waited for longer.
                if let Some(oldest) = records.iter().map(|record| record.accepted_at).min() {
                    waits.since(oldest);
                }
            }
            Behind::Log { passed_over, .. } => {
                waits.parked += if is_parked { *passed_over } else { 0 };
                waits.blocked = waits.blocked.saturating_sub(first + is_running);
                waits.since(blocked.began);
            }
        }
    }

    fn waits(&mut self, subscribed: &Arc<Subscribed>) -> &mut Waits {
        let known = self.0.entry(Arc::as_ptr(subscribed));
        known.or_insert_with(|| Waits::in_log(subscribed))
    }

    fn of_one(&self, subscribed: &Arc<Subscribed>) -> Waits {
        let known = self.0.get(&Arc::as_ptr(subscribed)).copied();
        known.unwrap_or_else(|| Waits::in_log(subscribed))
    }

    fn oldest(&self) -> Option<Duration> {
        let oldest = self.0.values().filter_map(|waits| waits.oldest).min();
        oldest.map(|at| at.elapsed())
    }
}
