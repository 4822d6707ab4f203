#![doc = include_str!("../README.md")]

mod config;
pub use config::{Config, Store};

mod builder;
pub use builder::EventSystemBuilder;

mod system;
pub use system::EventSystem;

mod publisher;
pub use publisher::SyncPublisher;

mod status;
pub use status::SystemStatus;

mod error;
pub use error::SystemError;

#[doc(no_inline)]
pub use domain_events::{
    self, Batch, BatchHandler, BatchVerdicts, CircuitBreaker, DeadLetter, DeadLetterQuery,
    DomainEvent, DomainEventPublisher, Event, EventBus, EventHandler, EventId, EventStore,
    FailurePolicy, HandlerContext, HandlerError, Health, NewEvent, Ordering, Position, Priority,
    Projection, Pruned, Receipt, Retention, RetryPolicy, StartFrom, StoredSubscription,
    Subscription, SubscriptionGuard, Timestamp, TransactionalHandler, Urgency,
};
#[doc(no_inline)]
pub use event_bus_core::BusConfig;
#[cfg(feature = "metrics")]
#[doc(no_inline)]
pub use event_bus_core::metrics;
#[doc(no_inline)]
pub use event_store_diesel::{
    self, SqliteEventStore, SqliteOptions, append_in, prepare_connection,
};

/// The README of the project, so that its program is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ProjectReadme;
