//! The death of a store in memory at one of its calls, and its life after it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch};

use super::{MemoryStore, State, lock};

/// A moment at which a store dies; its calls are counted from 1, whatever they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// As the call comes: nothing is done.
    Before(u64),
    /// As the call is done, and not answered yet.
    After(u64),
}

/// The calls of a store, and with which of them it dies.
pub(super) struct Calls {
    count: u64,
    crash: Option<Crash>,
    is_dead: watch::Sender<bool>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done, and answered.
    Answered,
    /// It is done, and never answered.
    Unanswered,
    /// It is neither.
    Unheard,
}

impl Default for Calls {
    fn default() -> Self {
        let is_dead = watch::Sender::new(false);
        Self {
            count: 0,
            crash: None,
            is_dead,
        }
    }
}

impl Calls {
    /// Counts a call, which may be the last one. Returns what becomes of it.
    pub(super) fn next(&mut self) -> Fate {
        if self.is_dead() {
            return Fate::Unheard;
        }
        self.count += 1;
        let fate = match self.crash {
            Some(Crash::Before(last)) if last == self.count => Fate::Unheard,
            Some(Crash::After(last)) if last == self.count => Fate::Unanswered,
            _ => return Fate::Answered,
        };
        self.die();
        fate
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.is_dead.borrow()
    }

    fn die(&self) {
        self.is_dead.send_replace(true);
    }
}

impl MemoryStore {
    /// Has the store die at that moment, as with its process: from then on nothing is done and
    /// nothing is answered, not even what was done before; futures stay pending, and what was to be
    /// called at the end of a call is kept.
    ///
    /// The process of the test lives on, and what runs in it is to be dropped: the bus, and on a
    /// runtime of its own, that. [`has_crashed`](Self::has_crashed) tells what a handler does in
    /// between, and would not have done.
    pub fn crash_at(&self, crash: Crash) {
        lock(&self.shared).calls.crash = Some(crash);
    }

    /// How many calls came until now, those after a crash not counted.
    pub fn calls(&self) -> u64 {
        lock(&self.shared).calls.count
    }

    /// Whether the store has died.
    pub fn has_crashed(&self) -> bool {
        lock(&self.shared).calls.is_dead()
    }

    /// Waits until the store dies.
    pub async fn crashed(&self) {
        let mut is_dead = lock(&self.shared).calls.is_dead.subscribe();
        // An error would say that the store, which is borrowed here, is gone.
        let _ = is_dead.wait_for(|is_dead| *is_dead).await;
    }

    /// A new store with what this one has done until it died; one that lives dies with this. It
    /// answers where this one did: on tasks of the current runtime, or on a thread.
    ///
    /// Whoever waits for an answer of this store is forgotten.
    ///
    /// # Panics
    /// Outside a runtime, where this store was made by [`on_runtime`](Self::on_runtime).
    pub fn restarted(&self) -> Self {
        self.restarted_after(Duration::ZERO)
    }

    /// As [`restarted`](Self::restarted), as if so long had passed meanwhile: whatever waits for a
    /// moment is nearer to it.
    ///
    /// # Panics
    /// As [`restarted`](Self::restarted).
    pub fn restarted_after(&self, time: Duration) -> Self {
        let (state, forgotten) = {
            let mut state = lock(&self.shared);
            state.calls.die();
            let answers = std::mem::take(&mut state.answers);
            let unanswered = std::mem::take(&mut state.unanswered);
            (state.survivor(time), (answers, unanswered))
        };
        // Not under the lock: what waits for an answer may be the caller's own.
        drop(forgotten);
        let runtime = self.runtime.as_ref().map(|_| Handle::current());
        Self {
            shared: Arc::new(Mutex::new(state)),
            runtime,
            latency: self.latency,
        }
    }
}

impl State {
    /// What is there after a crash.
    fn survivor(&self, time: Duration) -> Self {
        let mut survivor = Self {
            log: self.log.clone(),
            deliveries: self.deliveries.clone(),
            ..Self::default()
        };
        survivor.deliveries.let_pass(time);
        survivor
    }
}
