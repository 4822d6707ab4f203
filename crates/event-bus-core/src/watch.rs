//! Looking for what others have appended to the log: when told, and where the watch is on, now and
//! then (P7).

use std::sync::{Arc, atomic::Ordering};

use domain_events::{Position, StoreError};
use tokio::time::{sleep, timeout};

use crate::{
    after::After,
    engine::{AFTER_FAULT, Engine, Stores},
    lifecycle::Phase,
    progress,
    say::say,
    state::State,
};

/// How many looks were asked for, and how many of them were made.
#[derive(Default)]
pub(crate) struct Looks {
    asked: u64,
    made: u64,
}

impl Looks {
    /// Whether every look that was asked for was made.
    pub(crate) fn are_made(&self) -> bool {
        self.made == self.asked
    }
}

/// Has the log looked at soon; a bus that starts does so by itself.
pub(crate) fn ask(engine: &Engine) {
    if engine.stores.is_some() && engine.lifecycle.phase() == Phase::Running {
        engine.step(|state, _| state.looks.asked += 1);
    }
    engine.asked.notify_one();
}

/// Looks at the log whenever that is asked for, or the watch says so.
pub(crate) async fn run(engine: Arc<Engine>, stores: Stores) {
    let mut is_at_fault = false;
    loop {
        match look(&engine, &stores).await {
            Ok(()) if is_at_fault => engine.store_works(),
            Ok(()) => {}
            Err(ref error) => {
                engine.store_fails(error.kind(), &error.to_string());
                say!(error, "log not looked at", "again.in.ms" = AFTER_FAULT.as_millis(); error);
                is_at_fault = true;
                sleep(AFTER_FAULT).await;
                continue;
            }
        }
        is_at_fault = false;
        let asked = engine.asked.notified();
        match engine.config.watch {
            Some(interval) => drop(timeout(interval, asked).await),
            None => asked.await,
        }
    }
}

async fn look(engine: &Engine, stores: &Stores) -> Result<(), StoreError> {
    let asked = engine.look(|state| state.looks.asked);
    let head = stores.events.head().await?;
    if engine.look(|state| state.is_news(head)) {
        // What the bus itself has appended up to there may be committed and not announced yet, and
        // must not be taken from the log before it is: the announcements come in the order of the log.
        progress::save(stores, Vec::new()).await?;
    }
    engine.step(|state, after| {
        let live = state.reaches(head, after);
        engine.live.store(live, Ordering::Release);
        state.looks.made = asked;
        after.quiet = true;
    });
    Ok(())
}

impl State {
    /// Whether the log goes further than the bus has known.
    fn is_news(&self, head: Position) -> bool {
        let mut cursors = self
            .pipelines
            .iter()
            .filter_map(|(_, it)| it.cursor.as_ref());
        cursors.any(|cursor| cursor.head < head)
    }

    /// Notes that the log reaches as far, and tells those who have something to read. Returns as
    /// [`tell_who_is_behind`](Self::tell_who_is_behind).
    pub(crate) fn reaches(&mut self, head: Position, after: &mut After) -> bool {
        for (_, pipeline) in self.pipelines.iter_mut() {
            if let Some(cursor) = &mut pipeline.cursor {
                cursor.head = cursor.head.max(head);
                cursor.live &= cursor.through >= cursor.head;
            }
        }
        self.tell_who_is_behind(after)
    }
}
