//! Handing several events over in one go (D9).
//!
//! A worker takes the runs of as many aggregates as a batch has room for. Of each run, what follows an
//! event that failed stays in its mailbox, as if it had not been taken.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use domain_events::{BatchPolicy, Cancellation, DeliveryOutcome, EventEnvelope, HandlerContext};
use tokio::time::{Instant, timeout_at};

use crate::{
    after::After,
    attempt::{Attempt, Ended, Given, context, note},
    breaker,
    engine::{Engine, discard},
    guarded::{self, Fault, Guarded},
    lifecycle::Phase,
    mailboxes::{BacklogStart, Start},
    pipeline::{Pipeline, PipelineId},
    record::Record,
    run::Run,
    seat::Worker,
    starts,
    state::State,
    subscribed::{Begun, Subscribed},
    transactional::{self, Turn},
    worker::Led,
};

/// An event of a batch, and what its handler is told.
type Item = (Arc<EventEnvelope>, HandlerContext);

/// The error of an event of which the handler's results say nothing.
const NO_VERDICT: &str = "the batch ended without a verdict on the event";

/// Waits until there is something to do, and then for company, as long as the policy says. What is to be
/// done meanwhile is a delivery that failed, which comes alone: then returns its backlog.
pub(crate) async fn company(
    engine: &Engine,
    worker: &Worker,
    policy: BatchPolicy,
) -> Option<BacklogStart> {
    poll_fn(|cx| engine.step(|state, _| state.is_ready(worker, cx.waker()))).await;
    let until = engine.step(|state, _| state.lingers_until(worker, policy.linger));
    let full = poll_fn(|cx| engine.step(|state, _| state.is_full(worker, policy.size, cx.waker())));
    let alone = timeout_at(until, full).await.ok().flatten();
    discard(engine.step(|state, _| state.lingers_no_more(worker)));
    alone
}

/// Leads the events of a run, and of others that are ready, through the one subscription of their
/// pipeline. `None` where the bus was stopped meanwhile.
pub(crate) async fn lead(
    engine: &Arc<Engine>,
    worker: &Worker,
    first: &mut Run,
    policy: BatchPolicy,
) -> Option<()> {
    let mut runs = vec![std::mem::take(first)];
    engine.step(|state, after| state.gather(worker.pipeline, &mut runs, policy.size, after));
    let led = lead_all(engine, worker, &mut runs).await;
    engine.step(|state, after| state.finish_runs(worker.pipeline, &mut runs, after));
    for mut run in runs {
        run.spent().for_each(discard);
    }
    led
}

async fn lead_all(engine: &Arc<Engine>, worker: &Worker, runs: &mut [Run]) -> Option<()> {
    let first = runs.first().and_then(|run| run.records.first());
    let Some(subscribed) = first.and_then(|record| record.targets().first()).cloned() else {
        return Some(());
    };
    // A handler that blocked its thread has outlived the stop.
    if engine.lifecycle.phase() >= Phase::Closing {
        return None;
    }
    for run in runs.iter_mut().filter(|run| run.is_passed_over()) {
        run.finished.push(false);
    }
    let wanted = runs.iter_mut().filter(|run| !run.is_passed_over());
    let mut wanted: Vec<_> = wanted.collect();
    match subscribed.begin(worker.seat(), None) {
        Begun::Runs(_running) => deliver(engine, worker, &subscribed, &mut wanted).await,
        Begun::Removed(_running) => {
            for run in wanted {
                let stop = |record: &Arc<Record>| {
                    let finished = record.resolve(0, DeliveryOutcome::Stopped);
                    record.tell();
                    finished
                };
                run.finished.extend(run.records.iter().map(stop));
            }
        }
        Begun::Held(_running) => {
            for run in wanted {
                let (mailbox, record) = (run.mailbox, &run.records[0]);
                engine.step(|state, after| state.hold(mailbox, record, 0, after));
                run.finished.push(false);
            }
        }
    }
    Some(())
}

/// Makes one attempt of all events, and acts on how it ended for each.
async fn deliver(
    engine: &Arc<Engine>,
    worker: &Worker,
    subscribed: &Arc<Subscribed>,
    runs: &mut [&mut Run],
) {
    let (made, _turn) = attempt(engine, worker, subscribed, runs).await;
    let ends = made.iter().flatten();
    let spoken = ends.filter_map(|made| breaker::speaks(&made.ended));
    // A batch that fails is one failure, and one that is handled in part is none.
    breaker::note(engine, subscribed, spoken.reduce(|one, other| one | other));
    for (run, made) in runs.iter_mut().zip(made) {
        for (record, made) in run.records.iter().zip(made) {
            let mut led = Led::default();
            led.act(engine, worker, run.mailbox, record, 0, made);
            run.finished.push(led.finished);
            if led.blocked {
                break;
            }
        }
    }
}

/// Runs one attempt of the events of several runs: catches panics, stops it at its time-out (F1).
/// Nothing behind an event that cannot be read is handed over.
async fn attempt(
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
    let mut ends = ends.into_iter();
    running.end();
    drop(started);
    let end = Instant::now();
    let took = end.saturating_duration_since(began);
    let mut made = |record: &Arc<Record>, early: Option<Ended>| {
        let ended = match early {
            Some(ended) => ended,
            None => match ends.next() {
                Some(ended) => ended?,
                None => Ended::failed(NO_VERDICT.to_owned()),
            },
        };
        note(engine, worker, subscribed, Given::of(record), &ended, took);
        let turn = None;
        Some(Attempt {
            ended,
            end,
            took,
            turn,
        })
    };
    let of_run = |(run, early): (&&mut Run, Vec<_>)| {
        let both = run.records.iter().zip(early);
        // Behind what was not made nothing of the run is over: it is left to come again.
        let mut attempts: Vec<_> = both.map(|(record, early)| made(record, early)).collect();
        let count = attempts.iter().take_while(|made| made.is_some()).count();
        attempts.truncate(count);
        attempts.into_iter().flatten().collect()
    };
    let made = runs.iter().zip(early).map(of_run).collect();
    (made, turn)
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

impl State {
    /// Adds the runs that are ready to the first one, until they hold `size` events.
    fn gather(&mut self, id: PipelineId, runs: &mut Vec<Run>, size: usize, after: &mut After) {
        let mut count: usize = runs.iter().map(Run::wanted).sum();
        while count < size {
            let Some(pipeline) = self.pipelines.get_mut(id) else {
                return;
            };
            let mut run = Run::default();
            match pipeline.mailboxes.take(&mut run, size - count) {
                Some(Start::Run) => {
                    self.pass_over(id, &run, after);
                    count += run.wanted();
                    runs.push(run);
                }
                // It has its turn alone, and comes up again.
                Some(Start::Backlog(start)) => {
                    pipeline.mailboxes.put_back(&start);
                    after.dropped.push(Box::new(start));
                    return;
                }
                None => return,
            }
        }
    }

    fn finish_runs(&mut self, id: PipelineId, runs: &mut [Run], after: &mut After) {
        let ready = runs.iter_mut().map(|run| self.finish_run(id, run, after));
        let ready: usize = ready.sum();
        if let Some(pipeline) = self.pipelines.get_mut(id) {
            // The worker itself takes one.
            pipeline.wake_workers(ready.saturating_sub(1), after);
        }
    }

    /// Whether there is something to do in a worker's pipeline; else the worker rests.
    fn is_ready(&mut self, worker: &Worker, waker: &Waker) -> Poll<()> {
        let Some(pipeline) = self.pipelines.get_mut(worker.pipeline) else {
            return Poll::Ready(());
        };
        if self.is_closed || pipeline.mailboxes.is_ready() {
            pipeline.idle.leave(worker.number);
            return Poll::Ready(());
        }
        pipeline.idle.rest(worker.number, waker);
        Poll::Pending
    }

    /// When those that wait in a worker's pipeline have waited long enough for company.
    fn lingers_until(&mut self, worker: &Worker, linger: Duration) -> Instant {
        let until = Instant::now() + linger;
        let pipeline = self.pipelines.get_mut(worker.pipeline);
        pipeline.map_or(until, |it| *it.lingers_until.get_or_insert(until))
    }

    /// Whether so many events wait in a worker's pipeline, or there is no room for more; or else the
    /// backlog that is due. The worker lingers where there is neither.
    fn is_full(
        &mut self,
        worker: &Worker,
        size: usize,
        waker: &Waker,
    ) -> Poll<Option<BacklogStart>> {
        let Some(pipeline) = self.pipelines.get_mut(worker.pipeline) else {
            return Poll::Ready(None);
        };
        if pipeline.is_full(size) {
            return Poll::Ready(None);
        }
        if let Some(start) = pipeline.mailboxes.take_backlog() {
            // As in a turn: whoever removes the subscription waits for what comes of it.
            start.subscribed.announce(worker.seat());
            if pipeline.mailboxes.untaken() == 0 {
                pipeline.lingers_until = None;
            }
            return Poll::Ready(Some(start));
        }
        pipeline.lingering.rest(worker.number, waker);
        Poll::Pending
    }

    /// Returns the worker's waker, to be dropped without the lock.
    fn lingers_no_more(&mut self, worker: &Worker) -> Option<Waker> {
        let pipeline = self.pipelines.get_mut(worker.pipeline)?;
        pipeline.lingering.leave(worker.number)
    }

    /// Has nobody wait for company in any pipeline: no more events come.
    pub(crate) fn end_lingering(&mut self, after: &mut After) {
        for (_, pipeline) in self.pipelines.iter_mut() {
            pipeline.end_lingering(after);
        }
    }
}

impl Pipeline {
    /// Whether a worker that waits for so many events is to wait no longer.
    pub(crate) fn is_full(&self, size: usize) -> bool {
        self.is_done_lingering || self.mailboxes.untaken() >= size || !self.room.fits(1)
    }

    /// Has nobody wait for company any more.
    pub(crate) fn end_lingering(&mut self, after: &mut After) {
        self.is_done_lingering = true;
        for waker in self.lingering.wake_all() {
            after.wake(Some(waker));
        }
    }
}
