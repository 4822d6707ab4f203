//! A running bus: what its tasks share, and how they take steps on it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use domain_events::{DeliveryStore, EventEnvelope, EventStore, StoreErrorKind, StoreTrouble};
use tokio::{sync::Notify, time::Instant};

use crate::{
    BusConfig,
    admission::Crossing,
    after::After,
    inside::{self, BusId},
    lifecycle::Lifecycle,
    mailboxes::Start,
    pipeline::PipelineId,
    processing::Processing,
    run::Run,
    say::say,
    seat::Worker,
    state::State,
    sync::{AtomicBool, AtomicUsize, Mutex, lock},
    timers::Timers,
};

/// How long after a fault of the store its next use is tried.
pub(crate) const AFTER_FAULT: Duration = Duration::from_millis(500);

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
    pub(crate) lifecycle: Lifecycle,
    pub(crate) timers: Timers,
    pub(crate) processing: Processing,
    /// What the cursor of the default pipeline says of being live, for those who need no more than
    /// a hint.
    pub(crate) live: AtomicBool,
    pub(crate) unsaved: Notify,
    /// Told where the log is to be looked at, for what others have appended.
    pub(crate) asked: Notify,
    pub(crate) quiet: Notify,
    /// How many wait for the bus to be idle, and so want progress saved at once.
    pub(crate) hurried: AtomicUsize,
    /// What keeps the store from serving the bus, and since when.
    trouble: Mutex<Option<(StoreErrorKind, Arc<str>, Instant)>>,
    /// Held by the saver from looking until it knows what is committed, and by whoever has deliveries made
    /// in a transaction of the store from looking until it has acted on their ends: neither may commit
    /// what it has seen before the other has changed it.
    pub(crate) saving: Arc<tokio::sync::Mutex<()>>,
    /// Held while dead letters of the store are settled, so that each is settled once.
    pub(crate) letters: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    me: Weak<Engine>,
}

impl Engine {
    pub(crate) fn new(config: BusConfig, stores: Option<Stores>) -> Arc<Self> {
        let id = BusId::fresh();
        Arc::new_cyclic(|me| Self {
            id,
            stores,
            lifecycle: Lifecycle::default(),
            timers: Timers::default(),
            processing: Processing::new(config.processing_log, config.processing_log_entries),
            live: AtomicBool::new(false),
            unsaved: Notify::new(),
            asked: Notify::new(),
            quiet: Notify::new(),
            hurried: AtomicUsize::new(0),
            trouble: Mutex::new(None),
            saving: Arc::default(),
            letters: tokio::sync::Mutex::default(),
            state: Mutex::new(State::new(id, &config)),
            config,
            me: Weak::clone(me),
        })
    }

    /// Takes a step: under the lock, so that it neither waits nor runs user code; then does what
    /// the step has left to be done.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut State, &mut After) -> T) -> T {
        self.step_then(step, |result| result)
    }

    /// As [`step`](Self::step), with something to be done before what the step has left.
    pub(crate) fn step_then<T, U>(
        &self,
        step: impl FnOnce(&mut State, &mut After) -> T,
        then: impl FnOnce(T) -> U,
    ) -> U {
        let mut after = After::default();
        let result = step(&mut lock(&self.state), &mut after);
        let done = then(result);
        self.act(after);
        done
    }

    /// Looks at the state, without changing it.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.state))
    }

    fn act(&self, mut after: After) {
        if after.saver {
            self.unsaved.notify_one();
        }
        after.first.take().into_iter().for_each(wake);
        if after.has_more() {
            self.act_on_more(&mut after);
        }
        if after.quiet {
            self.quiet.notify_waiters();
        }
    }

    /// Most steps leave none of this.
    #[cold]
    fn act_on_more(&self, after: &mut After) {
        after.due.drain(..).for_each(|due| self.timers.set(due));
        after.wakers.drain(..).for_each(wake);
        for (followed, part, record) in after.found.drain(..) {
            followed.found(part, &record);
            discard((followed, record));
        }
        for record in after.told.drain(..) {
            record.tell();
            discard(record);
        }
        after
            .behind
            .drain(..)
            .for_each(|behind| behind.notify_one());
        after.dropped.drain(..).for_each(discard);
        for letter in after.evicted.drain(..) {
            say!(
                warn,
                "dead letter lost to the bound",
                "subscription" = letter.subscription,
                "event.id" = letter.event_id()
            );
            discard(letter);
        }
        for (pipeline, crossing) in after.crossings.drain(..) {
            self.tell_crossing(pipeline, crossing);
        }
    }

    /// Says that a pipeline is nearly full, or is so no more; not under the lock, as a logger is the
    /// user's.
    fn tell_crossing(&self, pipeline: PipelineId, crossing: Crossing) {
        let Crossing {
            taken,
            capacity,
            is_nearly_full,
        } = crossing;
        let name = self.look(|state| Some(Arc::clone(&state.pipelines.get(pipeline)?.name)));
        let Some(name) = name else {
            return;
        };
        if is_nearly_full {
            say!(
                warn,
                "queue above 80 %",
                "pipeline" = name,
                "events" = taken,
                "capacity" = capacity
            );
        } else {
            say!(
                info,
                "queue below 60 % again",
                "pipeline" = name,
                "events" = taken,
                "capacity" = capacity
            );
        }
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// What a worker does next, after what it did last; waits until there is something. `None` once
    /// there is nothing more to be done.
    pub(crate) async fn next(&self, worker: &Worker, run: &mut Run) -> Option<Start> {
        std::future::poll_fn(|cx| {
            let next = self.step(|state, after| state.next(worker, run, cx.waker(), after));
            run.spent().for_each(discard);
            next
        })
        .await
    }

    /// Takes in nothing more, and tells every receipt that the bus has stopped.
    pub(crate) fn abandon(&self) {
        let abandoned = self.step(crate::state::State::abandon);
        for record in abandoned {
            record.stop();
            discard(record);
        }
        self.quiet.notify_waiters();
    }

    /// Notes that the store is at fault.
    pub(crate) fn store_fails(&self, kind: StoreErrorKind, error: &str) {
        let mut trouble = lock(&self.trouble);
        let since = trouble
            .as_ref()
            .map_or_else(Instant::now, |(.., since)| *since);
        *trouble = Some((kind, error.into(), since));
        drop(trouble);
        self.quiet.notify_waiters();
    }

    /// Notes that the store serves the bus.
    pub(crate) fn store_works(&self) {
        *lock(&self.trouble) = None;
    }

    pub(crate) fn store_trouble(&self) -> Option<StoreTrouble> {
        let (kind, error, since) = lock(&self.trouble).clone()?;
        let age = since.elapsed();
        Some(StoreTrouble { kind, error, age })
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
        if !self.look(|state| state.unsaved.is_saved()) {
            self.unsaved.notify_one();
        }
        Hurry(&self.hurried)
    }

    /// Waits until a condition holds, asked whenever the bus may have become quiet; not in a transaction of
    /// the store, where it would never come.
    pub(crate) async fn until_quiet(&self, holds: impl Fn(&State) -> bool) {
        while !inside::is_in_transaction(self.id) {
            let mut quiet = std::pin::pin!(self.quiet.notified());
            // Register before looking, so that a change in between is not missed.
            quiet.as_mut().enable();
            if self.look(&holds) {
                return;
            }
            quiet.await;
        }
    }

    /// Forgets a receipt that was dropped while it waited for what is in the log.
    pub(crate) fn forget_receipt(&self, event: &EventEnvelope) {
        self.step(|state, _| {
            for (_, pipeline) in state.pipelines.iter_mut() {
                if let (Some(cursor), Some(position)) = (&mut pipeline.cursor, event.position()) {
                    cursor.forget(position);
                }
            }
        });
    }
}

/// Wakes whoever waits. A waker is anybody's code, and its panic is not ours.
pub(crate) fn wake(waker: Waker) {
    contain(|| waker.wake());
}

/// Drops what may be or hold the user's: its panic is not ours.
pub(crate) fn discard<T>(value: T) {
    contain(|| drop(value));
}

/// Runs what is not ours, whose panic is not ours either.
pub(crate) fn contain(code: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(code)) {
        // Its drop may panic as well, and so on.
        std::mem::forget(panic);
    }
}
