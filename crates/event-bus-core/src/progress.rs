//! Saving how far everyone has come, together with whatever deviates from success (R1, R2).

use std::sync::{Arc, atomic::Ordering};

use domain_events::{DeliveryChange, DeliveryChanges, StoreError, StoreErrorKind};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    engine::{AFTER_FAULT, Engine, Stores},
    lifecycle::Phase,
    say::say,
    state::State,
    timers::Due,
};

/// What is to be committed together; kept until it is.
#[derive(Default)]
struct Batch {
    changes: DeliveryChanges,
    retries: Vec<Due>,
}

/// Saves what is unsaved until the bus closes. Returns what kept the last save from being made.
pub(crate) async fn run(engine: Arc<Engine>, stores: Stores) -> Option<StoreError> {
    let mut batch = Batch::default();
    loop {
        engine.unsaved.notified().await;
        company(&engine).await;
        let closing = engine.lifecycle.phase() == Phase::Closing;
        let turn = engine.saving.lock().await;
        batch.take(&engine, closing)?;
        let saved = save(&stores, batch.changes.clone()).await;
        match saved {
            Ok(()) => {
                engine.store_works();
                note_committed(&engine, std::mem::take(&mut batch));
                drop(turn);
            }
            Err(ref error) if !closing => {
                drop(turn);
                batch.keep_out(&engine);
                engine.store_fails(error.kind(), &error.to_string());
                say!(error, "progress not saved", "again.in.ms" = AFTER_FAULT.as_millis(); error);
                let _ = timeout(AFTER_FAULT, engine.lifecycle.closing()).await;
                engine.unsaved.notify_one();
            }
            Err(_) => {}
        }
        if closing {
            return saved.err();
        }
    }
}

impl Batch {
    /// Adds what has become unsaved, behind what a failed commit has left.
    /// `None` once everything in memory was given up: of what is not there, nothing is finished.
    fn take(&mut self, engine: &Engine, closing: bool) -> Option<()> {
        let (changes, retries) = take(engine, closing)?;
        let renewed = |old: &DeliveryChange| {
            let DeliveryChange::Progressed(id, _) = old else {
                return false;
            };
            changes
                .iter()
                .any(|new| matches!(new, DeliveryChange::Progressed(same, _) if same == id))
        };
        self.changes.retain(|old| !renewed(old));
        self.changes.extend(changes);
        self.changes.extend(engine.processing.take());
        self.retries.extend(retries);
        Some(())
    }
}

impl Batch {
    /// Puts attempts back into the bounded log while the store is at fault.
    fn keep_out(&mut self, engine: &Engine) {
        let is_log =
            |change: &mut DeliveryChange| matches!(change, DeliveryChange::Processed { .. });
        for change in self.changes.extract_if(.., is_log) {
            if let DeliveryChange::Processed { attempts, .. } = change {
                engine.processing.put_back(attempts);
            }
        }
    }
}

/// Waits for more to save in the same commit: not for changes, which a retry waits for, and not
/// where somebody waits for the save.
async fn company(engine: &Engine) {
    let latest = Instant::now() + engine.config.progress_interval;
    loop {
        let hurried = engine.hurried.load(Ordering::SeqCst) > 0;
        let has_changes = engine.look(|state| state.unsaved.has_changes());
        if hurried || has_changes || engine.lifecycle.phase() == Phase::Closing {
            return;
        }
        tokio::select! {
            () = sleep_until(latest) => return,
            () = engine.unsaved.notified() => {}
        }
    }
}

fn take(engine: &Engine, closing: bool) -> Option<(DeliveryChanges, Vec<Due>)> {
    engine.step(|state, _| {
        if state.is_closed {
            return None;
        }
        let (mut changes, retries) = state.take_unsaved();
        if closing {
            for (_, pipeline) in state.pipelines.iter() {
                let blocked = pipeline.mailboxes.all_blocked();
                changes.extend(blocked.filter_map(|(_, aggregate, it)| it.row(aggregate)));
            }
            if engine.lifecycle.cut_off(state) == 0 {
                changes.push(DeliveryChange::RunEnded);
            }
        }
        state.leave_in_doubt(&mut changes);
        Some((changes, retries))
    })
}

/// Has changes committed. Those of what runs are left to the saver, which knows what has to go with them.
pub(crate) async fn save(stores: &Stores, changes: DeliveryChanges) -> Result<(), StoreError> {
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |result| drop(tell.send(result)));
    stores.deliveries.submit_changes(changes, done);
    let closed = || StoreError::new(StoreErrorKind::Closed, "what was to be saved was not");
    told.await.unwrap_or_else(|_| Err(closed()))
}

/// Waits until a save is committed. Returns whether it was: else the bus has stopped.
pub(crate) async fn committed(engine: &Engine, save: u64) -> bool {
    let is_saved = |state: &State| state.unsaved.saves() >= save;
    engine
        .until_quiet(|state| state.is_closed || is_saved(state))
        .await;
    engine.look(is_saved)
}

/// Waits until what is unsaved at this moment is committed.
pub(crate) async fn all_committed(engine: &Engine) {
    let save = engine.look(|state| state.unsaved.last_save());
    let _hurry = engine.hurry();
    committed(engine, save).await;
}

fn note_committed(engine: &Engine, batch: Batch) {
    engine.step(|state, after| {
        state.unsaved.saved();
        after.due.extend(batch.retries);
        after.quiet = true;
    });
}
