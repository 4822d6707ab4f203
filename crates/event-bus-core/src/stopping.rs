//! Stopping a bus (L2): refuse, drain, cut off, save, report.

use std::{sync::Arc, time::Duration};

use domain_events::{StopReport, StoreError};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    engine::Engine,
    lifecycle::{Lifecycle, Phase},
    state::State,
    subscribed::Subscribed,
};

/// How long a stop waits for a task that was told to end. A handler that blocks its thread does
/// not end when told to.
const GRACE: Duration = Duration::from_secs(1);

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
