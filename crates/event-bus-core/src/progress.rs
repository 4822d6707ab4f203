//! Saving how far everyone has come, together with whatever deviates from success (R1, R2).

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use domain_events::{DeliveryChange, DeliveryChanges, StoreError, StoreErrorKind};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    cursor::Cursor,
    engine::{Engine, Stores},
    lifecycle::Phase,
    pipeline::{Pipeline, Wake},
    timers::Due,
};

/// How long after a fault of the store the save is tried again.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// Saves what is unsaved until the bus closes. Returns what kept the last save from being made.
pub(crate) async fn run(engine: Arc<Engine>, stores: Stores) -> Option<StoreError> {
    loop {
        engine.unsaved.notified().await;
        company(&engine).await;
        let closing = engine.lifecycle.phase() == Phase::Closing;
        let (changes, retries) = take(&engine, closing);
        let result = save(&engine, &stores, changes, closing).await;
        committed(&engine, retries);
        if closing {
            return result.err();
        }
    }
}

/// Waits for more to save in the same commit: not for changes, which a retry waits for, and not
/// where somebody waits for the save.
async fn company(engine: &Engine) {
    let latest = Instant::now() + engine.config.progress_interval;
    loop {
        let hurried = engine.hurried.load(Ordering::SeqCst) > 0;
        let has_changes = engine
            .lock()
            .cursor
            .as_ref()
            .is_some_and(Cursor::has_changes);
        if hurried || has_changes || engine.lifecycle.phase() == Phase::Closing {
            return;
        }
        tokio::select! {
            () = sleep_until(latest) => return,
            () = engine.unsaved.notified() => {}
        }
    }
}

fn take(engine: &Engine, closing: bool) -> (DeliveryChanges, Vec<Due>) {
    let mut pipeline = engine.lock();
    let Pipeline {
        subscriptions,
        cursor: Some(cursor),
        mailboxes,
        ..
    } = &mut *pipeline
    else {
        return (Vec::new(), Vec::new());
    };
    let (mut changes, retries) = cursor.take_unsaved(subscriptions.members(), mailboxes);
    if closing {
        let blocked = mailboxes
            .all_blocked()
            .filter_map(|(aggregate, blocked)| blocked.row(aggregate));
        changes.extend(blocked);
        if engine.lifecycle.is_clean() {
            changes.push(DeliveryChange::RunEnded);
        }
    }
    (changes, retries)
}

/// Commits changes, however long the store's fault lasts; while the bus closes, once.
async fn save(
    engine: &Engine,
    stores: &Stores,
    changes: DeliveryChanges,
    closing: bool,
) -> Result<(), StoreError> {
    loop {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        stores.deliveries.submit_changes(changes.clone(), done);
        let closed = || StoreError::new(StoreErrorKind::Closed, "the progress was not saved");
        let Err(error) = told.await.unwrap_or_else(|_| Err(closed())) else {
            return Ok(());
        };
        let give_up = closing || engine.lifecycle.phase() == Phase::Closing;
        if give_up {
            log::error!("progress not saved: {error}");
            return Err(error);
        }
        log::error!("progress not saved, tried again in {AFTER_FAULT:?}: {error}");
        sleep(AFTER_FAULT).await;
    }
}

fn committed(engine: &Engine, retries: Vec<Due>) {
    retries.into_iter().for_each(|due| engine.timers.set(due));
    if let Some(cursor) = &mut engine.lock().cursor {
        cursor.saved();
    }
    engine.wake(Wake {
        quiet: true,
        ..Wake::default()
    });
}
