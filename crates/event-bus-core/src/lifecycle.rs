//! From new to stopped: the phases of a bus, and its tasks.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain_events::{StopReport, StoreError};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    catch_up,
    engine::Engine,
    pipeline::{Figures, Pipeline},
    progress, timers, worker,
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
    tasks: Mutex<Tasks>,
    running: AtomicUsize,
    /// Handlers that were dropped while they ran: their deliveries may be repeats next time.
    cut_off: AtomicUsize,
}

#[derive(Default)]
struct Tasks {
    workers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    saver: Option<JoinHandle<Option<StoreError>>>,
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
    fn cut_off(&self) -> usize {
        self.cut_off.load(Ordering::Acquire) + self.running.load(Ordering::Acquire)
    }

    /// Whether no handler was cut off.
    pub(crate) fn is_clean(&self) -> bool {
        self.cut_off() == 0
    }

    /// Notes that a handler runs, until the attempt ends or is dropped.
    pub(crate) fn begin_attempt(&self) -> Attempt<'_> {
        self.running.fetch_add(1, Ordering::AcqRel);
        Attempt {
            lifecycle: self,
            ended: false,
        }
    }

    /// Waits until the bus is not starting.
    pub(crate) async fn started_or_not(&self) {
        self.until(|phase| phase != Phase::Starting).await;
    }

    /// Waits until the bus is stopping.
    pub(crate) async fn stopping(&self) {
        self.until(|phase| phase >= Phase::Stopping).await;
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

    fn tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every task without waiting for anything.
    pub(crate) fn abort(&self) {
        let tasks = std::mem::take(&mut *self.tasks());
        tasks
            .workers
            .iter()
            .chain(&tasks.others)
            .for_each(JoinHandle::abort);
        tasks.saver.iter().for_each(JoinHandle::abort);
    }
}

/// A running handler.
pub(crate) struct Attempt<'a> {
    lifecycle: &'a Lifecycle,
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
        self.lifecycle.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Starts the tasks; returns when every worker runs (L1).
pub(crate) async fn run(engine: &Arc<Engine>) {
    let workers = engine.config.workers;
    let (tell, mut told) = mpsc::channel::<()>(workers);
    let mut tasks = Tasks::default();
    for _ in 0..workers {
        let (engine, tell) = (Arc::clone(engine), tell.clone());
        tasks.workers.push(tokio::spawn(async move {
            let _ = tell.send(()).await;
            drop(tell);
            worker::run(engine).await;
        }));
    }
    tasks
        .others
        .push(tokio::spawn(timers::run(Arc::clone(engine))));
    if let Some(stores) = &engine.stores {
        tasks.others.push(tokio::spawn(catch_up::run(
            Arc::clone(engine),
            stores.clone(),
        )));
        tasks.saver = Some(tokio::spawn(progress::run(
            Arc::clone(engine),
            stores.clone(),
        )));
    }
    *engine.lifecycle.tasks() = tasks;
    for _ in 0..workers {
        told.recv().await;
    }
    engine.lifecycle.advance(Phase::Starting, Phase::Running);
}

/// Stops the bus (L2).
pub(crate) async fn stop(engine: &Arc<Engine>, deadline: Duration) -> StopReport {
    let lifecycle = &engine.lifecycle;
    loop {
        lifecycle.started_or_not().await;
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
    let until = Instant::now().checked_add(deadline);
    let done_before = deliveries_done(engine);
    let tasks = std::mem::take(&mut *lifecycle.tasks());
    // What is only in the log stays there; the other tasks serve what is in memory until the end.
    let others = tasks.others;
    if engine.stores.is_some() {
        others.iter().for_each(JoinHandle::abort);
    }
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
    let cut_off = lifecycle.cut_off();
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
        drained: deliveries_done(engine).saturating_sub(done_before),
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
    let drained = engine.until_quiet(Pipeline::is_drained);
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
    let pipeline = engine.lock();
    match &pipeline.cursor {
        Some(cursor) => {
            (cursor.open_deliveries() + pipeline.mailboxes.blocked_count()) as u64 + cursor.lag()
        }
        None => {
            let Figures { in_flight, .. } = pipeline.figures;
            in_flight
        }
    }
}

fn deliveries_done(engine: &Engine) -> u64 {
    let pipeline = engine.lock();
    let done = pipeline.subscriptions.members().iter().map(|member| {
        let meters = &member.subscribed.meters;
        meters.handled.get() + meters.skipped.get() + meters.dead.get()
    });
    done.sum()
}
