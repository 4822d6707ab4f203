//! Putting a system together.

use std::{path::PathBuf, sync::Arc, time::Duration};

use domain_events::{
    DomainEvent, Event, EventBus, HandlerContext, HandlerError, Priority, Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};

use crate::{Config, EventSystem, Store, SystemError};

/// Collects settings and subscriptions, and brings the system alive. It cannot publish.
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct EventSystemBuilder {
    config: Config,
    subscriptions: Vec<Subscription>,
}

impl EventSystemBuilder {
    /// Takes every setting from one value.
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Keeps events in the SQLite file at `path`, made if it is missing.
    pub fn sqlite(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.store = Store::Sqlite(path.into());
        self
    }

    /// Keeps events in the application's own SQLite database at `path`, in tables whose names begin with
    /// `de_`: so that it can commit them together with what it changes
    /// ([`append_in`](event_store_diesel::append_in)). The database is kept with a write-ahead log.
    pub fn sqlite_shared(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.sqlite.share_database = true;
        self.sqlite(path)
    }

    /// Has the log looked at every `interval` for what another process has appended (P7).
    pub fn watch(mut self, interval: Duration) -> Self {
        self.config.bus.watch = Some(interval);
        self
    }

    /// Keeps events in a store that is open already, for handlers that read it too. The system
    /// closes it at its shutdown.
    pub fn store(mut self, store: Arc<SqliteEventStore>) -> Self {
        self.config.store = Store::Open(store);
        self
    }

    /// Sets how many handlers run at once (D6).
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.bus.workers = workers;
        self
    }

    /// Sets how many events may be in memory at a time (P4).
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.config.bus.capacity = capacity;
        self
    }

    /// Subscribes an async closure to events of type `E` under `name`, with the default policies.
    pub fn on<E, F, Fut>(self, name: impl Into<Arc<str>>, priority: Priority, handler: F) -> Self
    where
        E: DomainEvent,
        F: Fn(Event<E>, HandlerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.subscribe(Subscription::from_fn(name, handler).priority(priority))
    }

    /// Adds a subscription.
    pub fn subscribe(mut self, subscription: Subscription) -> Self {
        self.subscriptions.push(subscription);
        self
    }

    /// Opens the store, recovers what an earlier run left, and runs: returns when every worker
    /// does (L1). What was left unfinished is delivered from then on, in order (R4).
    ///
    /// # Errors
    /// When a setting or a subscription cannot work, or the store cannot be opened: nothing runs
    /// then, and a store opened here is closed again.
    pub async fn start(self) -> Result<EventSystem, SystemError> {
        let Self {
            config,
            subscriptions,
        } = self;
        let store = open(config.store, config.sqlite).await?;
        match run(config.bus, store.as_ref(), subscriptions).await {
            Ok(bus) => Ok(EventSystem::new(bus, store)),
            Err(error) => {
                if let Some(store) = store {
                    store.close().await;
                }
                Err(error)
            }
        }
    }
}

async fn open(
    store: Store,
    options: SqliteOptions,
) -> Result<Option<Arc<SqliteEventStore>>, SystemError> {
    let path = match store {
        Store::Nowhere => return Ok(None),
        Store::Open(store) => return Ok(Some(store)),
        Store::Sqlite(path) => path,
    };
    let opening = tokio::task::spawn_blocking(move || SqliteEventStore::open(path, options));
    match opening.await {
        Ok(opened) => Ok(Some(Arc::new(opened?))),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

async fn run(
    config: BusConfig,
    store: Option<&Arc<SqliteEventStore>>,
    subscriptions: Vec<Subscription>,
) -> Result<InMemoryEventBus, SystemError> {
    let bus = match store {
        Some(store) => InMemoryEventBus::with_store(config, Arc::clone(store))?,
        None => InMemoryEventBus::new(config)?,
    };
    for subscription in subscriptions {
        bus.subscribe(subscription).await?;
    }
    bus.start().await?;
    Ok(bus)
}
