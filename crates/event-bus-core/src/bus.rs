//! The bus as its users hold it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use domain_events::{
    BusStatistics, ConfigError, DeadLetter, DeadLetterGroup, DeadLetterQuery, DeliveryStore,
    EventBus, EventId, EventRegistry, EventStore, LetterError, NewEvent, PlaceError,
    ProcessingOutcome, Pruned, PublishError, Receipt, Retention, StartError, StartFrom, StopError,
    StopReport, StoreError, StoredSubscription, SubscribeError, Subscription, SubscriptionGuard,
    WaitError, block_on,
};
use tokio::runtime::Handle;

use crate::{
    BusConfig, aboard, ashore,
    engine::{Engine, Stores, discard},
    inside, lifecycle,
    lifecycle::Phase,
    pausing, places, progress,
    publish::publish,
    settling, statistics, stopping, stored_letters, transactional,
    waiting::NoRoom,
    watch,
};

/// An asynchronous bus: bounded, ordered per aggregate, by priority, with retries; in memory, with
/// or without a store behind it.
///
/// Dropping a running bus only signals its tasks (L2); [`stop`](EventBus::stop) it.
pub struct InMemoryEventBus {
    pub(crate) engine: Arc<Engine>,
    planned: Arc<Mutex<Planned>>,
}

/// What is subscribed before the start.
#[derive(Default)]
struct Planned {
    subscriptions: Vec<Subscription>,
    registry: EventRegistry,
    started_at: Option<Instant>,
}

impl InMemoryEventBus {
    /// A bus that forgets with its process (volatile).
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(config: BusConfig) -> Result<Self, ConfigError> {
        Self::build(config, None)
    }

    /// A bus whose events, progress, retries and dead letters are kept by `store` (durable).
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn with_store<S>(config: BusConfig, store: Arc<S>) -> Result<Self, ConfigError>
    where
        S: EventStore + DeliveryStore + 'static,
    {
        let events = Arc::clone(&store) as Arc<dyn EventStore>;
        Self::build(
            config,
            Some(Stores {
                events,
                deliveries: store,
            }),
        )
    }

    /// Publishes events, all or none, from code that is not async: on any thread, inside a runtime or
    /// without one (P8). Blocks the thread until they are accepted, durable until they are committed,
    /// but never for room: where there is none, a bus with a store leaves them to the log.
    ///
    /// The store must not answer on the runtime whose only thread this blocks; no store on a disk does.
    ///
    /// # Errors
    /// [`PublishError::Full`] with the events, where there is no room and no store; else as
    /// [`publish_all`](EventBus::publish_all).
    pub fn publish_blocking(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        // Not made to give way to others: they may need this thread.
        let publishing = publish(&self.engine, events, NoRoom::DoWithout, false);
        block_on(tokio::task::unconstrained(publishing))
    }

    fn build(config: BusConfig, stores: Option<Stores>) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            engine: Engine::new(config, stores),
            planned: Arc::default(),
        })
    }

    fn planned(&self) -> std::sync::MutexGuard<'_, Planned> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a subscription for the start; `None` where the bus has started.
    fn plan(&self, subscription: &Subscription) -> Option<Result<(), SubscribeError>> {
        let mut planned = self.planned();
        if self.engine.lifecycle.phase() != Phase::New {
            return None;
        }
        let Planned {
            subscriptions,
            registry,
            ..
        } = &mut *planned;
        let name = subscription.name();
        let is_taken = |name: &&Arc<str>| subscriptions.iter().any(|other| other.name() == *name);
        let mut names = [name].into_iter().chain(subscription.former_names());
        if let Some(taken) = names.find(is_taken) {
            return Some(Err(SubscribeError::DuplicateName(Arc::clone(taken))));
        }
        if let Err(source) = subscription.check(registry) {
            let name = Arc::clone(name);
            return Some(Err(SubscribeError::Invalid { name, source }));
        }
        subscriptions.push(subscription.clone());
        Some(Ok(()))
    }
}

#[async_trait]
impl EventBus for InMemoryEventBus {
    async fn start(&self) -> Result<(), StartError> {
        if !has_runtime() {
            return Err(StartError::NoRuntime);
        }
        let subscriptions = {
            let mut planned = self.planned();
            if !self.engine.lifecycle.advance(Phase::New, Phase::Starting) {
                return Err(StartError::AlreadyStarted);
            }
            planned.started_at = Some(Instant::now());
            planned.subscriptions.clone()
        };
        // In a task of its own, so that a start that is given up half-way still comes to its end.
        let (engine, planned) = (Arc::clone(&self.engine), Arc::clone(&self.planned));
        let starting = async move {
            let taken = subscriptions.clone();
            let begun = aboard::begin(&engine, subscriptions).await;
            match &begun {
                Ok(()) => {
                    lifecycle::run(&engine).await;
                    // Whose guards were dropped meanwhile.
                    let gone = |it: &Subscription| {
                        let planned = planned.lock().unwrap_or_else(PoisonError::into_inner);
                        !planned.subscriptions.iter().any(|other| it.is_same(other))
                    };
                    let gone = taken.iter().filter(|it| gone(it));
                    gone.for_each(|it| ashore::leave_later(&engine, it.clone()));
                }
                Err(_) => drop(engine.lifecycle.advance(Phase::Starting, Phase::New)),
            }
            begun
        };
        own_task(&self.engine, starting).await
    }

    async fn stop(&self, deadline: Duration) -> Result<StopReport, StopError> {
        if inside::is_inside(self.engine.id) {
            return Err(StopError::InsideHandler);
        }
        // In a task of its own, so that a stop that is given up half-way still comes to its end.
        let engine = Arc::clone(&self.engine);
        let stopping = async move { stopping::stop(&engine, deadline).await };
        Ok(own_task(&self.engine, stopping).await)
    }

    async fn publish(&self, event: NewEvent) -> Result<Receipt, PublishError> {
        publish(&self.engine, vec![event], NoRoom::Wait, false)
            .await
            .map(only)
    }

    async fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        publish(&self.engine, events, NoRoom::Wait, false).await
    }

    async fn try_publish(&self, event: NewEvent) -> Result<Receipt, PublishError> {
        publish(&self.engine, vec![event], NoRoom::GiveBack, false)
            .await
            .map(only)
    }

    async fn publish_timeout(
        &self,
        event: NewEvent,
        timeout: Duration,
    ) -> Result<Receipt, PublishError> {
        publish(&self.engine, vec![event], NoRoom::WaitFor(timeout), false)
            .await
            .map(only)
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        transactional::check(&self.engine, &subscription)?;
        loop {
            if let Some(planned) = self.plan(&subscription) {
                return planned;
            }
            match self.engine.lifecycle.phase() {
                // A start that fails makes the bus new again.
                Phase::New | Phase::Starting => self.engine.lifecycle.started_or_not().await,
                Phase::Running => return aboard::join(&self.engine, subscription).await,
                Phase::Stopping | Phase::Closing | Phase::Stopped => {
                    return Err(SubscribeError::Stopped);
                }
            }
        }
    }

    async fn subscribe_guarded(
        &self,
        subscription: Subscription,
    ) -> Result<SubscriptionGuard, SubscribeError> {
        let same = subscription.clone();
        self.subscribe(subscription).await?;
        let (engine, planned) = (self.engine.weak(), Arc::downgrade(&self.planned));
        Ok(SubscriptionGuard::new(move || {
            if let (Some(engine), Some(planned)) = (engine.upgrade(), planned.upgrade()) {
                // Before the engine is asked: a start under way looks here at its end.
                discard(take_planned(&planned, |it| it.is_same(&same)));
                ashore::leave_later(&engine, same);
            }
        }))
    }

    async fn unsubscribe(&self, name: &str) -> bool {
        self.engine.lifecycle.started_or_not().await;
        let planned = take_planned(&self.planned, |it| &**it.name() == name);
        let was_planned = !planned.is_empty();
        discard(planned);
        let Some(leaves) = ashore::unsubscribe(&self.engine, name.into(), |_| true) else {
            return was_planned;
        };
        let left = own_task(&self.engine, leaves);
        inside::is_inside(self.engine.id) || left.await || was_planned
    }

    async fn pause(&self, name: &str) -> bool {
        pausing::pause(&self.engine, name).await
    }

    async fn resume(&self, name: &str) -> bool {
        pausing::resume(&self.engine, name).await
    }

    async fn reset(&self, name: &str, start: StartFrom) -> Result<(), PlaceError> {
        let (engine, name) = (Arc::clone(&self.engine), name.into());
        if inside::is_inside(engine.id) {
            return Err(PlaceError::InsideHandler);
        }
        // In a task of its own, so that one that is given up half-way still comes to its end.
        let resetting = async move { places::reset(&engine, name, start).await };
        own_task(&self.engine, resetting).await
    }

    async fn forget(&self, name: &str) -> Result<(), PlaceError> {
        places::forget(&self.engine, name.into()).await
    }

    async fn stored_subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        match &self.engine.stores {
            Some(stores) => stores.deliveries.subscriptions().await,
            None => Ok(Vec::new()),
        }
    }

    async fn prune(&self, keep: Retention) -> Result<Pruned, StoreError> {
        places::prune(&self.engine, keep).await
    }

    async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        match &self.engine.stores {
            Some(stores) => stored_letters::list(&self.engine, stores, query, limit).await,
            None => Ok(self.engine.look(|state| state.letters.list(query, limit))),
        }
    }

    async fn dead_letter_groups(
        &self,
        query: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        match &self.engine.stores {
            Some(stores) => stored_letters::groups(&self.engine, stores, query).await,
            None => Ok(self.engine.look(|state| state.letters.groups(query))),
        }
    }

    async fn replay(&self, subscription: &str, event: EventId) -> Result<(), LetterError> {
        settling::replay(&self.engine, subscription, event).await
    }

    async fn replay_all(&self, query: &DeadLetterQuery) -> Result<usize, LetterError> {
        settling::replay_all(&self.engine, query).await
    }

    async fn discard(
        &self,
        subscription: &str,
        event: EventId,
        reason: &str,
    ) -> Result<(), LetterError> {
        settling::discard(&self.engine, subscription, event, reason).await
    }

    async fn discard_all(
        &self,
        query: &DeadLetterQuery,
        reason: &str,
    ) -> Result<usize, LetterError> {
        settling::discard_all(&self.engine, query, reason).await
    }

    async fn processing_log(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        let Some(stores) = &self.engine.stores else {
            return Ok(self.engine.processing.list(subscription, limit));
        };
        progress::all_committed(&self.engine).await;
        stores.deliveries.processing_log(subscription, limit).await
    }

    async fn wait_idle(&self) -> Result<(), WaitError> {
        if inside::is_inside(self.engine.id) {
            return Err(WaitError::InsideHandler);
        }
        watch::ask(&self.engine);
        let _hurry = self.engine.hurry();
        self.engine
            .until_quiet(|state| state.is_closed || state.is_idle())
            .await;
        Ok(())
    }

    fn wake(&self) {
        watch::ask(&self.engine);
    }

    fn statistics(&self) -> BusStatistics {
        let started_at = self.planned().started_at;
        statistics::of(&self.engine, started_at.map(|at| at.elapsed()))
    }
}

/// Whether a runtime with a timer runs here.
fn has_runtime() -> bool {
    let timer = || drop(tokio::time::sleep(Duration::ZERO));
    Handle::try_current().is_ok() && std::panic::catch_unwind(timer).is_ok()
}

/// Runs `work` to its end, whether or not the caller waits for that.
fn own_task<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    engine: &Engine,
    work: F,
) -> impl Future<Output = T> + use<T, F> {
    // The call may come from a thread that knows no runtime.
    let task = match engine.lifecycle.runtime() {
        Some(runtime) if Handle::try_current().is_err() => runtime.spawn(work),
        _ => tokio::spawn(work),
    };
    async move {
        match task.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down, and everything in it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Takes subscriptions out of those planned, to be dropped without the lock: handlers are the user's.
fn take_planned(
    planned: &Mutex<Planned>,
    which: impl Fn(&Subscription) -> bool,
) -> Vec<Subscription> {
    let mut planned = planned.lock().unwrap_or_else(PoisonError::into_inner);
    planned
        .subscriptions
        .extract_if(.., |it| which(it))
        .collect()
}

fn only(mut receipts: Vec<Receipt>) -> Receipt {
    receipts.swap_remove(0)
}

impl Drop for InMemoryEventBus {
    fn drop(&mut self) {
        // In this order: a start under way looks whether it is abandoned once it has begun tasks.
        self.engine.abandon();
        self.engine.lifecycle.abort();
    }
}

impl fmt::Debug for InMemoryEventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryEventBus")
            .field("config", &self.engine.config)
            .field("phase", &self.engine.lifecycle.phase())
            .finish_non_exhaustive()
    }
}
