#![doc = include_str!("../README.md")]

mod event;
pub use event::{DomainEvent, Event, UpcastError};
// For what the derive writes.
#[doc(hidden)]
pub use serde_json::Value;

mod id;
pub use id::{AggregateRef, CorrelationId, EventId};

mod place;
pub use place::{ExpectedVersion, Position, Recorded, Version};

mod timestamp;
pub use timestamp::Timestamp;

mod rank;
pub use rank::{Priority, Urgency};

mod envelope;
pub use envelope::{EventEnvelope, EventMetadata, Given, NewEvent};

mod payload;
pub use payload::{DecodeError, EncodeError, UnfaithfulError};

mod registry;
pub use registry::{EventRegistry, RegistryError};

mod handler;
pub use handler::{EventHandler, HandlerError, Verdict};

mod batch;
pub use batch::{Batch, BatchHandler, BatchPolicy, BatchVerdicts};

mod cancellation;
pub use cancellation::Cancellation;

mod blocking;
// For the crates of this workspace: what is published from code that is not async.
#[doc(hidden)]
pub use blocking::block_on;

mod context;
pub use context::{AttemptInfo, HandlerContext, HandlerPublisher};

mod transactional;
pub use transactional::{
    ConnectionType, InTransaction, Kept, ProjectionStart, TransactionDone, TransactionError,
    TransactionalDeliveries, TransactionalDelivery, TransactionalEnd, TransactionalEnds,
    TransactionalHandler,
};

mod projection;
pub use projection::Projection;

mod retry;
pub use retry::RetryPolicy;

mod breaker;
pub use breaker::CircuitBreaker;

mod policy;
pub use policy::{FailurePolicy, Isolation, Ordering, PauseReason};

mod subscription;
pub use subscription::{BoxFuture, StartFrom, Subscription};

mod guard;
pub use guard::SubscriptionGuard;

mod work;
pub use work::{BatchResults, CallAgain, TransactionalWork, Work};

mod config;
pub use config::{ConfigError, MAX_NAME_BYTES};

mod bus;
pub use bus::{
    EventBus, LetterError, PlaceError, PublishError, StartError, StopError, StopReport,
    SubscribeError, WaitError,
};

mod aggregate;
pub use aggregate::{AggregateRoot, RaisedEvents};

mod unit_of_work;
pub use unit_of_work::UnitOfWork;

mod publisher;
pub use publisher::DomainEventPublisher;

mod receipt;
pub use receipt::{DeliveryOutcome, Handled, Handling, Receipt};

mod promise;
// For the crates of this workspace: stores answer from threads of their own, under any runtime.
#[doc(hidden)]
pub use promise::{Awaited, Promise, promise};

mod store;
pub use store::{
    Append, AppendDone, AppendError, Appended, EventStore, StoreError, StoreErrorKind,
};

mod reading;
pub use reading::{EventQuery, EventStream, EventSummary, ReadError, StoreSize, StoreStatistics};

mod retention;
pub use retention::{Pruned, Retention};

mod deliveries;
pub use deliveries::{
    BlockedAggregate, ChangesDone, DeliveryChange, DeliveryChanges, DeliveryStore, Progress,
    Registration, RegistrationDone, RunState, StartedDelivery, StoredSubscription, SubscriptionId,
    SubscriptionState, WaitingDelivery,
};

mod dead_letter;
pub use dead_letter::{DeadLetter, DeadLetterGroup, DeadLetterQuery, DeadLetterReason};

mod export;
pub use export::ExportError;

mod processing;
pub use processing::{AttemptResult, ProcessingLog, ProcessingOutcome};

mod statistics;
pub use statistics::{
    BusStatistics, Latency, PipelineStatistics, StoreTrouble, SubscriptionStatistics,
};

mod health;
pub use health::{Health, HealthLimits, HealthReason};

#[cfg(feature = "derive")]
#[doc = include_str!("derive.md")]
pub use domain_events_derive::DomainEvent;
