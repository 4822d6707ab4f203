//! One attempt of several events: what has its end before the handler is called, the call, and an end for
//! each.

use std::sync::Arc;

use domain_events::{Cancellation, EventEnvelope, HandlerContext};
use tokio::time::Instant;

use crate::{
    attempt::{Attempt, Ended, Given, context, note},
    engine::Engine,
    guarded::{self, Fault, Guarded},
    record::Record,
    run::Run,
    seat::Worker,
    starts,
    subscribed::Subscribed,
    transactional::{self, Turn},
};

/// An event of a batch, and what its handler is told.
type Item = (Arc<EventEnvelope>, HandlerContext);

/// Runs one attempt of the events of several runs: catches panics, stops it at its time-out (F1).
/// Nothing behind an event that cannot be read is handed over.
pub(super) async fn attempt(
    engine: &Arc<Engine>,
    worker: &Worker,
    subscribed: &Arc<Subscribed>,
    runs: &[&mut Run],
) -> (Vec<Vec<Attempt>>, Option<Turn>) {
    let deliveries = runs.iter().map(|run| run.records.len()).sum();
    let mut handed = HandedOver {
        records: Vec::with_capacity(deliveries),
        is_closed: false,
    };
    let mut counts = Vec::with_capacity(runs.len());
    let mut early = Vec::with_capacity(runs.len());
    for run in runs {
        let before = handed.records.len();
        early.push(early_ends(engine, subscribed, &run.records, &mut handed));
        counts.push(handed.records.len() - before);
    }
    let handed_over = handed.records;
    let repeats = handed_over.iter().filter(|it| it.marks.may_be_repeat);
    let repeats: Vec<_> = repeats.map(|it| &it.envelope).collect();
    let mut started = None;
    if !repeats.is_empty() {
        started = starts::record(engine, subscribed, repeats).await;
    }
    let (began, cancellation) = (Instant::now(), worker.cancellation());
    let item = |record: &Arc<Record>| {
        let cx = context(worker, subscribed, Given::of(record), began, &cancellation);
        (Arc::clone(&record.envelope), cx)
    };
    let items = handed_over.into_iter().map(item).collect();
    let running = engine
        .lifecycle
        .begin_attempt(worker.seat(), deliveries, &cancellation);
    let (ends, turn) = match subscribed.subscription.connection() {
        None => {
            let ends = call(engine, subscribed, items, &cancellation).await;
            (ends.into_iter().map(Some).collect(), None)
        }
        Some(_) => transactional::call(engine, subscribed, items, &counts).await,
    };
    running.end();
    drop(started);
    let end = Instant::now();
    let took = end.saturating_duration_since(began);
    let made = |(record, ended): (&Arc<Record>, Ended)| {
        note(engine, worker, subscribed, Given::of(record), &ended, took);
        let turn = None;
        Attempt {
            ended,
            end,
            took,
            turn,
        }
    };
    let mut ends = ends.into_iter();
    let of_run = |(run, early): (&&mut Run, Vec<Option<Ended>>)| {
        let mut handed = || ends.next().unwrap_or_else(|| Some(no_verdict()));
        let all: Vec<_> = early
            .into_iter()
            .map(|end| end.or_else(&mut handed))
            .collect();
        // Behind what was not made nothing of the run is over: it is left to come again.
        let over = all.into_iter().map_while(|end| end);
        run.records.iter().zip(over).map(made).collect()
    };
    let made = runs.iter().zip(early).map(of_run).collect();
    (made, turn)
}

/// The end of an event of which the handler's results say nothing.
fn no_verdict() -> Ended {
    Ended::failed("the batch ended without a verdict on the event".to_owned())
}

/// What a handler is called with.
struct HandedOver<'a> {
    records: Vec<&'a Arc<Record>>,
    /// Whether nothing may come with it.
    is_closed: bool,
}

impl<'a> HandedOver<'a> {
    /// Whether an event may come with what is there; one that may have ended the process comes alone.
    fn lets_in(&mut self, subscribed: &Subscribed, record: &Record) -> bool {
        let is_suspect = starts::is_suspect(subscribed, &record.envelope);
        self.is_closed |= is_suspect && !self.records.is_empty();
        let lets = !self.is_closed;
        self.is_closed |= is_suspect;
        lets
    }
}

/// The ends that the events of a run have before the handler is called, up to the first that failed or
/// is to come later; `None` for those that are handed over.
fn early_ends<'a>(
    engine: &Engine,
    subscribed: &Subscribed,
    records: &'a [Arc<Record>],
    handed: &mut HandedOver<'a>,
) -> Vec<Option<Ended>> {
    let mut ends = Vec::with_capacity(records.len());
    for record in records {
        if !handed.lets_in(subscribed, record) {
            break;
        }
        let end = look(engine, subscribed, &record.envelope);
        let has_failed = end.as_ref().is_some_and(|end| !end.is_success());
        if end.is_none() {
            handed.records.push(record);
        }
        ends.push(end);
        if has_failed {
            break;
        }
    }
    ends
}

/// Whether an event has its end before the handler is called: it cannot be read, or is not wanted.
fn look(engine: &Engine, subscribed: &Subscribed, envelope: &Arc<EventEnvelope>) -> Option<Ended> {
    if let Some(ends) = starts::too_many(engine, subscribed, envelope) {
        return Some(Ended::Crashed(ends));
    }
    let subscription = &subscribed.subscription;
    let looked = guarded::call(engine.id, || {
        let wanted = subscription.wants(envelope)?;
        subscription.read(envelope).map(|()| wanted)
    });
    match looked {
        Ok(Ok(true)) => None,
        Ok(Ok(false)) => Some(Ended::Unwanted),
        Ok(Err(error)) => Some(Ended::unreadable(&error)),
        Err(text) => Some(Ended::failed(text)),
    }
}

/// Calls the handler with all events. Returns one end for each of them.
async fn call(
    engine: &Engine,
    subscribed: &Subscribed,
    items: Vec<Item>,
    cancellation: &Cancellation,
) -> Vec<Ended> {
    let (bus, subscription, count) = (engine.id, &subscribed.subscription, items.len());
    if count == 0 {
        return Vec::new();
    }
    let limit = subscription.attempt_timeout();
    let ends = match guarded::call(bus, || subscription.call_batch(items)) {
        Err(text) => Err(Fault::Panicked(text)),
        Ok(None) => Ok(Vec::new()),
        Ok(Some(Err(error))) => Ok((0..count).map(|_| Ended::unreadable(&error)).collect()),
        Ok(Some(Ok(future))) => {
            let ends = |results: Vec<_>| results.into_iter().map(Ended::from).collect();
            Guarded::new(bus, future, ends).within(limit, || {}).await
        }
    };
    ends.unwrap_or_else(|fault| {
        if fault == Fault::OverTime {
            cancellation.cancel();
        }
        let text = fault.text(limit);
        (0..count).map(|_| Ended::failed(text.clone())).collect()
    })
}
