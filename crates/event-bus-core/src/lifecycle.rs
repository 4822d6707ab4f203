//! From new to stopped: the phases of a bus, and its tasks.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use domain_events::{StopReport, StoreError};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    catch_up,
    engine::Engine,
    pipeline::PipelineId,
    progress,
    seat::{Seat, Worker},
    state::State,
    subscriptions::Subscribed,
    sync::{AtomicU8, AtomicUsize, Mutex, MutexGuard, lock},
    timers, worker,
};

/// How long a stop waits for a task that was told to end. A handler that blocks its thread does
/// not end when told to.
const GRACE: Duration = Duration::from_secs(1);

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
    cut_short: Notify,
    /// The runtime that the bus was started on.
    runtime: OnceLock<Handle>,
    tasks: Mutex<Tasks>,
    /// Handlers that were dropped while they ran: their deliveries may be repeats next time.
    cut_off: AtomicUsize,
}

#[derive(Default)]
struct Tasks {
    workers: Vec<JoinHandle<()>>,
    /// What brings events from the log.
    readers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    saver: Option<JoinHandle<Option<StoreError>>>,
    /// Whether a stop has taken them: none may be added.
    taken: bool,
}

impl Lifecycle {
    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
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

    /// Notes that a handler runs, until the attempt ends or is dropped.
    pub(crate) fn begin_attempt<'a>(&'a self, seat: &'a Seat) -> Attempt<'a> {
        seat.set_attempting(true);
        Attempt {
            lifecycle: self,
            seat,
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

    async fn until(&self, reached: impl Fn(Phase) -> bool) {
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
    fn take_tasks(&self) -> Tasks {
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
        }
        self.seat.set_attempting(false);
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

/// Stops the bus (L2).
pub(crate) async fn stop(engine: &Arc<Engine>, deadline: Duration) -> StopReport {
    let lifecycle = &engine.lifecycle;
    // They are asked again at the end, also those that go meanwhile.
    let (mut all, mut done_before);
    loop {
        lifecycle.started_or_not().await;
        // Before the stop can be seen, so that whatever ends after that is counted.
        all = engine.look(State::subscribed);
        done_before = ended(&all);
        if lifecycle.advance(Phase::New, Phase::Stopped) {
            return StopReport::default();
        }
        if lifecycle.advance(Phase::Running, Phase::Stopping) {
            break;
        }
        // A start may have begun in between.
        if lifecycle.phase() >= Phase::Stopping {
            stop_by(lifecycle, deadline).await;
            return StopReport::default();
        }
    }
    // Who waits for room is outside, and gets none any more.
    engine.step(State::stop_entering);
    let until = Instant::now().checked_add(deadline);
    let tasks = lifecycle.take_tasks();
    // What is only in the log stays there; the other tasks serve what is in memory until the end.
    tasks.readers.iter().for_each(JoinHandle::abort);
    let others = tasks.others;
    drain(engine, until).await;
    tasks
        .workers
        .iter()
        .chain(&others)
        .for_each(JoinHandle::abort);
    let grace = Instant::now() + GRACE;
    for task in tasks.workers.into_iter().chain(others) {
        let _ = timeout_at(grace, task).await;
    }
    let cut_off = engine.look(|state| lifecycle.cut_off(state));
    let left = left(engine);
    lifecycle.advance(Phase::Stopping, Phase::Closing);
    let unsaved = match tasks.saver {
        Some(saver) => close_saver(engine, saver).await,
        None => None,
    };
    engine.abandon();
    lifecycle.advance(Phase::Closing, Phase::Stopped);
    engine.quiet.notify_waiters();
    let durable = engine.stores.is_some();
    StopReport {
        drained: ended(&all) - done_before,
        left_in_log: if durable { left } else { 0 },
        abandoned: if durable { 0 } else { left },
        cut_off: cut_off as u64,
        unsaved,
    }
}

/// Waits for a stop that runs already; its drain ends at this deadline if that is sooner.
async fn stop_by(lifecycle: &Lifecycle, deadline: Duration) {
    let stopped = || lifecycle.until(|phase| phase == Phase::Stopped);
    if timeout(deadline, stopped()).await.is_err() {
        lifecycle.cut_short.notify_one();
        stopped().await;
    }
}

async fn close_saver(engine: &Engine, mut saver: JoinHandle<Option<StoreError>>) -> Option<String> {
    engine.unsaved.notify_one();
    match timeout(10 * GRACE, &mut saver).await {
        Ok(Ok(unsaved)) => unsaved.map(|error| error.to_string()),
        Ok(Err(_)) => Some("the task that saves progress ended early".to_owned()),
        Err(_) => {
            saver.abort();
            Some("the store did not answer".to_owned())
        }
    }
}

/// Waits until nothing runs or could run at once, or until the deadline.
async fn drain(engine: &Engine, until: Option<Instant>) {
    let drained = engine.until_quiet(State::is_drained);
    let deadline = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = drained => {}
        () = deadline => {}
        () = engine.lifecycle.cut_short.notified() => {}
    }
}

/// Deliveries that are not made: open ones, blocked ones counted once an aggregate, and events of
/// the log that were not looked at.
fn left(engine: &Engine) -> u64 {
    let in_log = |state: &State| {
        let pipelines = state.pipelines.iter().filter_map(|(_, pipeline)| {
            let cursor = pipeline.cursor.as_ref()?;
            let open = cursor.open_deliveries() + pipeline.mailboxes.blocked_count();
            Some(open as u64 + cursor.lag())
        });
        pipelines.sum()
    };
    engine.look(|state| match engine.stores {
        Some(_) => in_log(state),
        None => state
            .pipelines
            .iter()
            .map(|(_, pipeline)| pipeline.mailboxes.open_deliveries())
            .sum(),
    })
}

fn ended(all: &[Arc<Subscribed>]) -> u64 {
    all.iter().map(|subscribed| subscribed.meters.ended()).sum()
}
