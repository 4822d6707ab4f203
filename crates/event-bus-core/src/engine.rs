//! A running bus: what its tasks share, and the steps they take on it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use domain_events::{
    DeadLetter, DeliveryChange, DeliveryOutcome, DeliveryStore, EventEnvelope, EventStore,
};
use tokio::sync::{Notify, Semaphore};

use crate::{
    BusConfig,
    admission::Admission,
    dead_letters::DeadLetters,
    inside::BusId,
    lifecycle::Lifecycle,
    mailboxes::{Round, Start},
    pipeline::{Pipeline, Wake},
    record::Record,
    subscriptions::Subscribed,
    timers::{Due, Timers},
};

/// The two ports of a store.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) events: Arc<dyn EventStore>,
    pub(crate) deliveries: Arc<dyn DeliveryStore>,
}

/// Everything that the tasks of a bus share.
pub(crate) struct Engine {
    pub(crate) id: BusId,
    pub(crate) config: BusConfig,
    /// The store behind the bus; `None` makes it volatile.
    pub(crate) stores: Option<Stores>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) timers: Timers,
    pub(crate) dead_letters: DeadLetters,
    /// What the cursor says of being live, for those who need no more than a hint.
    pub(crate) live: AtomicBool,
    /// One permit for every entry in the lanes.
    pub(crate) ready: Semaphore,
    pub(crate) unsaved: Notify,
    pub(crate) behind: Notify,
    /// Told to publishers who wait for room that is needed no more.
    pub(crate) falling_behind: Notify,
    pub(crate) quiet: Notify,
    /// How many wait for the bus to be idle, and so want progress saved at once.
    pub(crate) hurried: AtomicUsize,
    pipeline: Mutex<Pipeline>,
    me: Weak<Engine>,
}

impl Engine {
    pub(crate) fn new(config: BusConfig, stores: Option<Stores>) -> Arc<Self> {
        let admission = Admission::new(config.capacity);
        Arc::new_cyclic(|me| Self {
            id: BusId::fresh(),
            stores,
            lifecycle: Lifecycle::default(),
            timers: Timers::default(),
            dead_letters: DeadLetters::new(config.dead_letters),
            live: AtomicBool::new(false),
            ready: Semaphore::new(0),
            unsaved: Notify::new(),
            behind: Notify::new(),
            falling_behind: Notify::new(),
            quiet: Notify::new(),
            hurried: AtomicUsize::new(0),
            pipeline: Mutex::new(Pipeline::new(Arc::clone(&admission))),
            admission,
            config,
            me: Weak::clone(me),
        })
    }

    /// The state of the bus, locked: for steps that neither wait nor run user code.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Pipeline> {
        self.pipeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// Takes in nothing more, and tells every receipt that the bus has stopped.
    pub(crate) fn abandon(&self) {
        let abandoned = self.lock().abandon();
        for record in abandoned {
            record.stop();
            discard(record);
        }
        self.quiet.notify_waiters();
    }

    /// Has progress saved at once, for as long as the guard lives.
    pub(crate) fn hurry(&self) -> impl Drop + '_ {
        struct Hurry<'a>(&'a AtomicUsize);
        impl Drop for Hurry<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.hurried.fetch_add(1, Ordering::SeqCst);
        if self
            .lock()
            .cursor
            .as_ref()
            .is_some_and(|cursor| !cursor.is_saved())
        {
            self.unsaved.notify_one();
        }
        Hurry(&self.hurried)
    }

    /// Waits until a condition holds, asked whenever the bus may have become quiet.
    pub(crate) async fn until_quiet(&self, holds: impl Fn(&Pipeline) -> bool) {
        loop {
            let mut quiet = std::pin::pin!(self.quiet.notified());
            // Register before looking, so that a change in between is not missed.
            quiet.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            quiet.await;
        }
    }

    /// Wakes whom a step has given something to do; called without the lock.
    pub(crate) fn wake(&self, wake: Wake) {
        if wake.workers > 0 {
            self.ready.add_permits(wake.workers);
        }
        if wake.saver {
            self.unsaved.notify_one();
        }
        if wake.quiet {
            self.quiet.notify_waiters();
        }
    }

    /// Tells that the log is to be read before new events go straight to the mailboxes again.
    pub(crate) fn fell_behind(&self) {
        self.behind.notify_one();
        self.falling_behind.notify_waiters();
    }

    /// What to do next; waits until there is something. `None` once the bus is stopped.
    pub(crate) async fn next_start(&self) -> Option<Start> {
        loop {
            self.ready.acquire().await.ok()?.forget();
            let mut wake = Wake::default();
            let start = self.lock().take(&mut wake);
            self.wake(wake);
            if start.is_some() {
                return start;
            }
        }
    }

    /// Ends a round, and with it perhaps the event. Returns the aggregate's next round where the
    /// worker may keep the aggregate.
    pub(crate) fn finish_round(&self, round: Round, finished: bool) -> Option<Start> {
        let mut wake = Wake::default();
        let next = self.lock().finish_round(&round, finished, &mut wake);
        self.wake(wake);
        discard(round.record);
        next.map(Start::Round)
    }

    /// Notes the outcome of a delivery that is in memory.
    pub(crate) fn resolve(&self, record: &Arc<Record>, target: usize, outcome: DeliveryOutcome) {
        let finished = record.resolve(target, outcome);
        record.tell();
        if finished {
            let wake = self.lock().finish(record);
            self.wake(wake);
        }
    }

    /// Counts and tells that a delivery was given up.
    pub(crate) fn mourn(&self, subscribed: &Subscribed, letter: &DeadLetter) {
        subscribed.meters.dead.up();
        log::warn!(
            "dead letter: subscription={} event.id={} event.type={} attempts={} reason={}: {}",
            letter.subscription,
            letter.event_id,
            letter.event_type,
            letter.attempts,
            letter.reason.as_str(),
            letter.error,
        );
    }

    /// Keeps a delivery in memory that was given up. Durable: with the next commit, which also is
    /// the first that may pass its position.
    pub(crate) fn give_up(&self, letter: DeadLetter, record: &Arc<Record>, target: usize) {
        let subscribed = &record.targets[target];
        self.mourn(subscribed, &letter);
        let mut pipeline = self.lock();
        match (subscribed.id, &mut pipeline.cursor) {
            (Some(id), Some(cursor)) => cursor.change([DeliveryChange::Dead(id, letter)], None),
            _ => self.dead_letters.keep(letter),
        }
        let mut wake = Wake {
            saver: true,
            ..Wake::default()
        };
        if record.resolve(target, DeliveryOutcome::Dead) {
            wake += pipeline.finish(record);
        }
        drop(pipeline);
        record.tell();
        self.wake(wake);
    }

    pub(crate) fn retry_is_due(&self, due: &Due) {
        let ready = self.lock().mailboxes.due(due.mailbox, &due.subscribed);
        self.wake(Wake {
            workers: usize::from(ready),
            ..Wake::default()
        });
    }

    /// Forgets a receipt that was dropped before its event was read from the log.
    pub(crate) fn no_longer_awaited(&self, event: &EventEnvelope) {
        if let (Some(cursor), Some(position)) = (&mut self.lock().cursor, event.position()) {
            cursor.awaited.remove(&position);
        }
    }
}

/// Drops what may be or hold the user's: its panic is not ours.
pub(crate) fn discard<T>(value: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}
