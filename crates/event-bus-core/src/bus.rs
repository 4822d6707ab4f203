//! The bus as its users hold it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use domain_events::{
    BusStatistics, ConfigError, DeadLetter, DeliveryStore, EventBus, EventRegistry, EventStore,
    NewEvent, PublishError, Receipt, StartError, StopError, StopReport, StoreError, SubscribeError,
    Subscription, SubscriptionStatistics, WaitError,
};
use tokio::runtime::Handle;

use crate::{
    BusConfig, aboard,
    cursor::Cursor,
    engine::{Engine, Stores},
    inside, lifecycle,
    lifecycle::Phase,
    meters::latency,
    publish::{NoRoom, publish},
    subscriptions::Subscribed,
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

    /// Up to `limit` dead letters, oldest first, of one subscription or of all (F6).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn dead_letters(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        if let Some(stores) = &self.engine.stores {
            return stores.deliveries.dead_letters(subscription, limit).await;
        }
        let (letters, _) = self.engine.dead_letters.list();
        let wanted =
            |letter: &DeadLetter| subscription.is_none_or(|name| name == &*letter.subscription);
        Ok(letters.into_iter().filter(wanted).take(limit).collect())
    }

    /// How many dead letters a volatile bus has lost to its bound.
    pub fn evicted_dead_letters(&self) -> u64 {
        self.engine.dead_letters.list().1
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
        own_task(starting).await.map_err(StartError::Store)
    }

    async fn stop(&self, deadline: Duration) -> Result<StopReport, StopError> {
        if inside::is_inside(self.engine.id) {
            return Err(StopError::InsideHandler);
        }
        // In a task of its own, so that a stop that is given up half-way still comes to its end.
        let engine = Arc::clone(&self.engine);
        Ok(own_task(async move { lifecycle::stop(&engine, deadline).await }).await)
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

    async fn subscribe(&self, subscription: Subscription) -> Result<(), SubscribeError> {
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
        let planned = {
            let mut planned = self.planned();
            let before = planned.subscriptions.len();
            planned
                .subscriptions
                .retain(|subscription| &**subscription.name() != name);
            before > planned.subscriptions.len()
        };
        let engine = Arc::clone(&self.engine);
        let Some(leaving) = aboard::leave(&engine, name) else {
            return planned;
        };
        let left = own_task(async move { aboard::left(&engine, leaving).await });
        if !inside::is_inside(self.engine.id) {
            left.await;
        }
        true
    }

    async fn wait_idle(&self) -> Result<(), WaitError> {
        if inside::is_inside(self.engine.id) {
            return Err(WaitError::InsideHandler);
        }
        let _hurry = self.engine.hurry();
        self.engine
            .until_quiet(|pipeline| pipeline.is_closed || pipeline.is_idle())
            .await;
        Ok(())
    }

    fn statistics(&self) -> BusStatistics {
        let uptime = self
            .planned()
            .started_at
            .map_or(Duration::ZERO, |at| at.elapsed());
        let phase = self.engine.lifecycle.phase();
        let pipeline = self.engine.lock();
        let figures = pipeline.figures;
        let lag = pipeline.cursor.as_ref().map_or(0, Cursor::lag);
        let members: Vec<_> = pipeline
            .subscriptions
            .members()
            .iter()
            .map(|member| Arc::clone(&member.subscribed))
            .collect();
        drop(pipeline);
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
                    .map(|member| &member.meters.publish_to_handled),
            ),
            subscriptions: members.iter().map(|member| figures_of(member)).collect(),
        }
    }
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
    SubscriptionStatistics {
        name: Arc::clone(subscribed.name()),
        handled: meters.handled.get(),
        skipped: meters.skipped.get(),
        dead: meters.dead.get(),
        failed_attempts: meters.failed_attempts.get(),
        retries: meters.retries.get(),
        waiting: meters.waiting.get(),
        handling: latency([&meters.handling].into_iter()),
        publish_to_handled: latency([&meters.publish_to_handled].into_iter()),
    }
}

fn only(mut receipts: Vec<Receipt>) -> Receipt {
    receipts.swap_remove(0)
}

impl Drop for InMemoryEventBus {
    fn drop(&mut self) {
        self.engine.lifecycle.abort();
        self.engine.abandon();
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
