//! The bus as its users hold it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use domain_events::{
    BusStatistics, ConfigError, DeadLetter, DeliveryStore, EventBus, EventId, EventRegistry,
    EventStore, LetterError, NewEvent, PublishError, Receipt, RegistryError, StartError, StopError,
    StopReport, StoreError, SubscribeError, Subscription, SubscriptionStatistics, WaitError,
};
use tokio::runtime::Handle;

use crate::{
    BusConfig, aboard, ashore, dead_letters,
    engine::{Engine, Stores, discard},
    inside, lifecycle,
    lifecycle::Phase,
    meters::latency,
    pausing,
    publish::publish,
    stopping,
    subscribed::Subscribed,
    waiting::NoRoom,
};

/// An asynchronous bus: bounded, ordered per aggregate, by priority, with retries; in memory, with
/// or without a store behind it.
///
/// Dropping a running bus only signals its tasks (L2); [`stop`](EventBus::stop) it.
pub struct InMemoryEventBus {
    engine: Arc<Engine>,
    planned: Mutex<Planned>,
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

    fn build(config: BusConfig, stores: Option<Stores>) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            engine: Engine::new(config, stores),
            planned: Mutex::default(),
        })
    }

    /// How many dead letters a volatile bus has lost to its bound.
    pub fn evicted_dead_letters(&self) -> u64 {
        self.engine.look(|state| state.letters.evicted())
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
        if subscriptions.iter().any(|other| other.name() == name) {
            return Some(Err(SubscribeError::DuplicateName(Arc::clone(name))));
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
        let engine = Arc::clone(&self.engine);
        let starting = async move {
            let begun = aboard::begin(&engine, subscriptions).await;
            match &begun {
                Ok(()) => lifecycle::run(&engine).await,
                Err(_) => drop(engine.lifecycle.advance(Phase::Starting, Phase::New)),
            }
            begun
        };
        own_task(starting).await
    }

    async fn stop(&self, deadline: Duration) -> Result<StopReport, StopError> {
        if inside::is_inside(self.engine.id) {
            return Err(StopError::InsideHandler);
        }
        // In a task of its own, so that a stop that is given up half-way still comes to its end.
        let engine = Arc::clone(&self.engine);
        Ok(own_task(async move { stopping::stop(&engine, deadline).await }).await)
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
        if let Err(source) = check_store(self.engine.stores.is_some(), &subscription) {
            let name = Arc::clone(subscription.name());
            return Err(SubscribeError::Invalid { name, source });
        }
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

    async fn unsubscribe(&self, name: &str) -> bool {
        self.engine.lifecycle.started_or_not().await;
        let planned: Vec<_> = {
            let subscriptions = &mut self.planned().subscriptions;
            let named = |subscription: &mut Subscription| &**subscription.name() == name;
            subscriptions.extract_if(.., named).collect()
        };
        // Not under the lock: its handler is the user's.
        let was_planned = !planned.is_empty();
        discard(planned);
        let engine = Arc::clone(&self.engine);
        let Some(leaving) = ashore::leave(&engine, name) else {
            return was_planned;
        };
        let left = own_task(async move { ashore::left(&engine, leaving).await });
        if !inside::is_inside(self.engine.id) {
            left.await;
        }
        true
    }

    async fn pause(&self, name: &str) -> bool {
        pausing::pause(&self.engine, name).await
    }

    async fn resume(&self, name: &str) -> bool {
        pausing::resume(&self.engine, name)
    }

    async fn dead_letters(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        match &self.engine.stores {
            Some(stores) => stores.deliveries.dead_letters(subscription, limit).await,
            None => Ok(self
                .engine
                .look(|state| state.letters.list(subscription, limit))),
        }
    }

    async fn replay(&self, subscription: &str, event: EventId) -> Result<(), LetterError> {
        dead_letters::replay(&self.engine, subscription, event)
    }

    async fn discard(
        &self,
        subscription: &str,
        event: EventId,
        reason: &str,
    ) -> Result<(), LetterError> {
        dead_letters::discard(&self.engine, subscription, event, reason)
    }

    async fn wait_idle(&self) -> Result<(), WaitError> {
        if inside::is_inside(self.engine.id) {
            return Err(WaitError::InsideHandler);
        }
        let _hurry = self.engine.hurry();
        self.engine
            .until_quiet(|state| state.is_closed || state.is_idle())
            .await;
        Ok(())
    }

    fn statistics(&self) -> BusStatistics {
        let uptime = self
            .planned()
            .started_at
            .map_or(Duration::ZERO, |at| at.elapsed());
        let phase = self.engine.lifecycle.phase();
        let (figures, lag, members) = self.engine.look(|state| {
            let members = state.subscriptions.members().iter();
            let members: Vec<_> = members.map(|it| Arc::clone(&it.subscribed)).collect();
            let cursors = state.pipelines.iter();
            let lags = cursors.filter_map(|(_, it)| Some(it.cursor.as_ref()?.lag()));
            (state.figures, lags.max().unwrap_or(0), members)
        });
        BusStatistics {
            running: phase == Phase::Running,
            workers: self.engine.config.workers,
            capacity: self.engine.config.capacity,
            accepted: figures.accepted,
            recovered: figures.recovered,
            finished: figures.finished,
            in_flight: figures.in_flight,
            lag,
            uptime,
            publish_to_handled: latency(
                members
                    .iter()
                    .flat_map(|member| member.meters.all())
                    .map(|set| &set.publish_to_handled),
            ),
            subscriptions: members.iter().map(|member| figures_of(member)).collect(),
        }
    }
}

/// Checks that a bus, where it has a store, can do what the subscription asks.
fn check_store(durable: bool, subscription: &Subscription) -> Result<(), RegistryError> {
    if durable {
        aboard::check_durable(subscription)?;
    }
    Ok(())
}

/// Whether a runtime with a timer runs here.
fn has_runtime() -> bool {
    let timer = || drop(tokio::time::sleep(Duration::ZERO));
    Handle::try_current().is_ok() && std::panic::catch_unwind(timer).is_ok()
}

/// Runs `work` to its end, whether or not the caller waits for that.
fn own_task<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let task = tokio::spawn(work);
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

fn figures_of(subscribed: &Subscribed) -> SubscriptionStatistics {
    let meters = &subscribed.meters;
    let dead = meters.sum(|set| &set.dead);
    SubscriptionStatistics {
        name: Arc::clone(subscribed.name()),
        handled: meters.sum(|set| &set.handled),
        skipped: meters.sum(|set| &set.skipped),
        dead: dead.saturating_sub(meters.sum(|set| &set.replayed)),
        failed_attempts: meters.sum(|set| &set.failed_attempts),
        retries: meters.sum(|set| &set.retries),
        waiting: meters.sum(|set| &set.waiting),
        paused: subscribed.is_paused(),
        handling: latency(meters.all().map(|set| &set.handling)),
        publish_to_handled: latency(meters.all().map(|set| &set.publish_to_handled)),
    }
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
