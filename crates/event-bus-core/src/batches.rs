//! Handing several events over in one go (D9).
//!
//! A worker takes the runs of as many aggregates as a batch has room for. Of each run, what follows an
//! event that failed stays in its mailbox, as if it had not been taken.

mod attempt;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use domain_events::{BatchPolicy, DeliveryOutcome};
use tokio::time::{Instant, timeout_at};

use self::attempt::attempt;
use crate::{
    after::After,
    breaker,
    engine::{Engine, discard},
    lifecycle::Phase,
    mailboxes::{BacklogStart, Start},
    pipeline::{Pipeline, PipelineId},
    record::Record,
    run::Run,
    seat::Worker,
    state::State,
    subscribed::{Begun, Subscribed},
    worker::Led,
};

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
