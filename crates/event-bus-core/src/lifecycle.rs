//! From new to stopped: the phases of a bus, and its tasks.

use std::sync::{Arc, OnceLock, atomic::Ordering};

use domain_events::{Cancellation, StoreError};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use crate::{
    catch_up,
    engine::Engine,
    pipeline::PipelineId,
    progress,
    seat::{Seat, Worker},
    state::State,
    sync::{AtomicU8, AtomicUsize, Mutex, MutexGuard, lock},
    timers, watch, worker,
};

/// Where a bus is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    New,
    Starting,
    Running,
    /// Outside events are refused; what is in memory is finished.
    Stopping,
    /// Nothing runs; the last progress is saved.
    Closing,
    Stopped,
}

const PHASES: [Phase; 6] = [
    Phase::New,
    Phase::Starting,
    Phase::Running,
    Phase::Stopping,
    Phase::Closing,
    Phase::Stopped,
];

/// The phase of a bus, and its tasks.
#[derive(Default)]
pub(crate) struct Lifecycle {
    phase: AtomicU8,
    changed: Notify,
    /// Told to a running stop by a later one whose deadline has passed.
    pub(crate) cut_short: Notify,
    /// The runtime that the bus was started on.
    runtime: OnceLock<Handle>,
    tasks: Mutex<Tasks>,
    /// Handlers that were dropped while they ran: their deliveries may be repeats next time.
    cut_off: AtomicUsize,
}

#[derive(Default)]
pub(crate) struct Tasks {
    pub(crate) workers: Vec<JoinHandle<()>>,
    /// What brings events from the log.
    pub(crate) readers: Vec<JoinHandle<()>>,
    pub(crate) others: Vec<JoinHandle<()>>,
    pub(crate) saver: Option<JoinHandle<Option<StoreError>>>,
    /// Whether a stop has taken them: none may be added.
    taken: bool,
}

impl Lifecycle {
    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// The runtime that the bus was started on.
    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// Moves from one phase to another. Returns whether the bus was in that phase.
    pub(crate) fn advance(&self, from: Phase, to: Phase) -> bool {
        let moved =
            self.phase
                .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire);
        self.changed.notify_waiters();
        moved.is_ok()
    }

    /// How many handlers were cut off, those counted that still block their threads.
    pub(crate) fn cut_off(&self, state: &State) -> usize {
        self.cut_off.load(Ordering::Acquire) + state.attempting()
    }

    /// Notes that a handler runs, at so many deliveries, until the attempt ends or is dropped.
    pub(crate) fn begin_attempt<'a>(
        &'a self,
        seat: &'a Seat,
        deliveries: usize,
        cancellation: &'a Cancellation,
    ) -> Attempt<'a> {
        seat.set_attempting(deliveries);
        Attempt {
            lifecycle: self,
            seat,
            cancellation,
            ended: false,
        }
    }

    /// Waits until the bus is not starting.
    pub(crate) async fn started_or_not(&self) {
        self.until(|phase| phase != Phase::Starting).await;
    }

    /// Waits until the last progress is to be saved.
    pub(crate) async fn closing(&self) {
        self.until(|phase| phase >= Phase::Closing).await;
    }

    pub(crate) async fn until(&self, reached: impl Fn(Phase) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Register before looking, so that a change in between is not missed.
            changed.as_mut().enable();
            if reached(self.phase()) {
                return;
            }
            changed.await;
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        lock(&self.tasks)
    }

    /// Takes all tasks out; none may be added any more.
    pub(crate) fn take_tasks(&self) -> Tasks {
        let none = Tasks {
            taken: true,
            ..Tasks::default()
        };
        std::mem::replace(&mut *self.tasks(), none)
    }

    /// Ends every task without waiting for anything.
    pub(crate) fn abort(&self) {
        let tasks = self.take_tasks();
        tasks
            .workers
            .iter()
            .chain(&tasks.readers)
            .chain(&tasks.others)
            .for_each(JoinHandle::abort);
        tasks.saver.iter().for_each(JoinHandle::abort);
    }
}

/// A running handler.
pub(crate) struct Attempt<'a> {
    lifecycle: &'a Lifecycle,
    seat: &'a Seat,
    cancellation: &'a Cancellation,
    ended: bool,
}

impl Attempt<'_> {
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.lifecycle.cut_off.fetch_add(1, Ordering::AcqRel);
            self.cancellation.cancel();
        }
        self.seat.set_attempting(0);
    }
}

/// Starts the tasks; returns when every worker runs (L1).
pub(crate) async fn run(engine: &Arc<Engine>) {
    let lifecycle = &engine.lifecycle;
    let _ = lifecycle.runtime.set(Handle::current());
    let pipelines: Vec<_> = engine.look(|state| state.pipelines.iter().map(|(id, _)| id).collect());
    let (tell, mut told) = mpsc::channel::<()>(1);
    for pipeline in pipelines {
        serve(engine, pipeline, Some(&tell));
    }
    drop(tell);
    let clock = tokio::spawn(timers::run(Arc::clone(engine)));
    lifecycle.tasks().others.push(clock);
    if let Some(stores) = &engine.stores {
        let saver = progress::run(Arc::clone(engine), stores.clone());
        lifecycle.tasks().saver = Some(tokio::spawn(saver));
        let watch = watch::run(Arc::clone(engine), stores.clone());
        lifecycle.tasks().readers.push(tokio::spawn(watch));
    }
    if engine.look(|state| state.is_closed) {
        lifecycle.abort();
    }
    // It closes when every worker has let go of its end.
    while told.recv().await.is_some() {}
    lifecycle.advance(Phase::Starting, Phase::Running);
}

/// Starts the tasks of a pipeline. Each worker lets go of `running` once it runs.
pub(crate) fn serve(engine: &Arc<Engine>, id: PipelineId, running: Option<&mpsc::Sender<()>>) {
    let lifecycle = &engine.lifecycle;
    let Some(runtime) = lifecycle.runtime.get() else {
        return;
    };
    let seats = engine.look(|state| state.pipelines.get(id).map(|it| Arc::clone(&it.seats)));
    let Some(seats) = seats else {
        return;
    };
    let mut tasks = lifecycle.tasks();
    if tasks.taken {
        return;
    }
    // Of pipelines that have gone.
    tasks.workers.retain(|task| !task.is_finished());
    tasks.readers.retain(|task| !task.is_finished());
    for worker in Worker::all(engine, id, &seats) {
        let (engine, running) = (Arc::clone(engine), running.cloned());
        tasks.workers.push(runtime.spawn(async move {
            drop(running);
            worker::run(engine, worker).await;
        }));
    }
    if let Some(stores) = &engine.stores {
        let reader = catch_up::run(Arc::clone(engine), stores.clone(), id);
        tasks.readers.push(runtime.spawn(reader));
    }
}
