//! A handler under a stable name, with everything that governs its deliveries.

mod checks;
mod handlers;

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use crate::{
    BatchPolicy, BatchResults, CircuitBreaker, ConnectionType, DecodeError, DomainEvent,
    EventEnvelope, EventRegistry, FailurePolicy, HandlerContext, Isolation, Ordering, Position,
    Priority, ProjectionStart, RegistryError, RetryPolicy, Work, work::Erased,
};

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a subscription with a name that the store does not know begins (D8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// With the first event published after its start.
    #[default]
    Now,
    /// With the first event ever. An error where that was pruned (R8).
    Beginning,
    /// With the first event after this position. An error where that was pruned (R8).
    After(Position),
}

/// How many deliveries share a transaction at most: who publishes meanwhile waits for them.
const DELIVERIES_IN_TRANSACTION: usize = 256;

type Filter = dyn Fn(&Arc<EventEnvelope>) -> Result<bool, DecodeError> + Send + Sync;

/// A handler under a stable, unique name: the unit of delivery, retry and progress.
///
/// What is not said is the common case: the default pipeline, order per aggregate, four attempts, and
/// later events of an aggregate going on past a dead letter.
///
/// ```
/// use domain_events::{DomainEvent, Event, FailurePolicy, HandlerContext, RetryPolicy, Subscription};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
/// # struct OrderPlaced { order_id: String, total: u64 }
/// let invoice = |placed: Event<OrderPlaced>, _cx: HandlerContext| async move {
///     println!("{} owes {}", placed.order_id, placed.total);
///     Ok(())
/// };
/// Subscription::from_fn("invoices", invoice)
///     .filter(|placed: &OrderPlaced| placed.total > 0)
///     .isolated(2)                                     // a queue and two workers of its own (D4)
///     .retry(RetryPolicy::exponential().max_attempts(8))
///     .failure_policy(FailurePolicy::ParkAggregate);   // later events of the order wait for a person (F5)
/// ```
#[derive(Clone)]
pub struct Subscription {
    name: Arc<str>,
    event_type: Option<&'static str>,
    register: fn(&mut EventRegistry) -> Result<(), RegistryError>,
    read: fn(&Arc<EventEnvelope>) -> Result<(), DecodeError>,
    handler: Erased,
    filter: Option<Arc<Filter>>,
    /// The event type that the filter reads, where it reads one.
    filtered_type: Option<&'static str>,
    priority: Priority,
    retry: RetryPolicy,
    failure_policy: FailurePolicy,
    ordering: Ordering,
    isolation: Option<Isolation>,
    breaker: Option<CircuitBreaker>,
    /// The connection that its handler wants, where it runs in the transactions of a store.
    connection: Option<ConnectionType>,
    projection: Option<ProjectionStart>,
    /// How long a batch waits for company, where that was said.
    linger: Option<Duration>,
    timeout: Duration,
    start_from: StartFrom,
    former_names: Vec<Arc<str>>,
}

impl Subscription {
    /// Sets the rank among the subscriptions of the pipeline (D3).
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// Sets what happens after a failed attempt (F3).
    #[must_use]
    pub fn retry(self, retry: RetryPolicy) -> Self {
        Self { retry, ..self }
    }

    /// Sets what later events of an aggregate do once one of it is a dead letter (F5).
    #[must_use]
    pub fn failure_policy(self, failure_policy: FailurePolicy) -> Self {
        Self {
            failure_policy,
            ..self
        }
    }

    /// Sets the order in which events come (D2). Any other than per aggregate gives the
    /// subscription a pipeline of its own, `Total` one with a single worker.
    #[must_use]
    pub fn ordering(self, ordering: Ordering) -> Self {
        Self { ordering, ..self }
    }

    /// Gives the subscription a pipeline of its own, with this many workers: neither its pace nor
    /// its failures hold up others (D4).
    #[must_use]
    pub fn isolated(mut self, workers: usize) -> Self {
        self.isolation.get_or_insert_default().workers = Some(workers);
        self
    }

    /// Sets how many events the subscription's own pipeline holds (P4); the bus's capacity unless
    /// set. Gives the subscription a pipeline of its own.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.isolation.get_or_insert_default().capacity = Some(capacity);
        self
    }

    /// Passes over events of which `wanted` says no; they count as done (D10). A subscription has
    /// one filter, and `E` is its event type.
    #[must_use]
    pub fn filter<E: DomainEvent>(
        self,
        wanted: impl Fn(&E) -> bool + Send + Sync + 'static,
    ) -> Self {
        let filter = move |envelope: &Arc<EventEnvelope>| {
            let event = envelope.typed::<E>()?;
            Ok(wanted(&event))
        };
        Self {
            filter: Some(Arc::new(filter)),
            filtered_type: Some(E::EVENT_TYPE),
            ..self
        }
    }

    /// As [`filter`](Self::filter), by what is known of an event besides its content.
    #[must_use]
    pub fn filter_envelope(
        self,
        wanted: impl Fn(&EventEnvelope) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            filter: Some(Arc::new(move |envelope| Ok(wanted(envelope)))),
            filtered_type: None,
            ..self
        }
    }

    /// Leaves the handler alone for a while after failures in a row (F8).
    #[must_use]
    pub fn circuit_breaker(self, breaker: CircuitBreaker) -> Self {
        let breaker = Some(breaker);
        Self { breaker, ..self }
    }

    /// Lets the first event of a batch wait so long for others, unless the batch is full before (D9).
    /// For batch handlers alone.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = Some(linger);
        self
    }

    /// Sets how long one attempt may take (F1); 30 s unless set.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets where the subscription begins if the store does not know its name (D8).
    #[must_use]
    pub fn start_from(self, start_from: StartFrom) -> Self {
        Self { start_from, ..self }
    }

    /// Says that the store may know the subscription by an earlier name: it goes on where that one has
    /// stopped, and the store knows it by its new name from then on (D8). Nothing, where the new name is
    /// known already.
    #[must_use]
    pub fn formerly(mut self, name: impl Into<Arc<str>>) -> Self {
        self.former_names.push(name.into());
        self
    }

    /// The stable name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The names by which the store may know it.
    pub fn former_names(&self) -> &[Arc<str>] {
        &self.former_names
    }

    /// The event type subscribed to; `None` for every type.
    pub fn event_type(&self) -> Option<&'static str> {
        self.event_type
    }

    /// The rank among the subscriptions of the pipeline.
    pub fn rank(&self) -> Priority {
        self.priority
    }

    /// What happens after a failed attempt.
    pub fn retry_policy(&self) -> &RetryPolicy {
        &self.retry
    }

    /// What follows a dead letter.
    pub fn after_dead_letter(&self) -> FailurePolicy {
        self.failure_policy
    }

    /// The order in which events come.
    pub fn order(&self) -> Ordering {
        self.ordering
    }

    /// What the subscription asks of a pipeline of its own; `None` where it shares the default one.
    pub fn isolation(&self) -> Option<Isolation> {
        if self.connection.is_some() {
            // The store has one thread that writes.
            let isolation = self.isolation.unwrap_or_default();
            let workers = Some(1);
            return Some(Isolation {
                workers,
                ..isolation
            });
        }
        match self.ordering {
            Ordering::PerAggregate if self.batch().is_some() => {
                Some(self.isolation.unwrap_or_default())
            }
            Ordering::PerAggregate => self.isolation,
            Ordering::Total => Some(Isolation {
                workers: Some(1),
                ..self.isolation.unwrap_or_default()
            }),
            Ordering::None => Some(self.isolation.unwrap_or_default()),
        }
    }

    /// How batches are made up; `None` for a handler of one event at a time. A transaction holds a batch
    /// of deliveries, one event each.
    pub fn batch(&self) -> Option<BatchPolicy> {
        let size = match self.handler {
            Erased::Batch(_, size) => size,
            Erased::One(_) if self.connection.is_some() => DELIVERIES_IN_TRANSACTION,
            Erased::One(_) => return None,
        };
        let linger = self.linger.unwrap_or_default();
        Some(BatchPolicy { size, linger })
    }

    /// The type of the connection with which the handler wants to be called, in a transaction of the
    /// store (R7).
    pub fn connection(&self) -> Option<ConnectionType> {
        self.connection
    }

    /// What it begins with, where it is a projection.
    pub fn projection_start(&self) -> Option<&ProjectionStart> {
        self.projection.as_ref()
    }

    /// When the handler is left alone.
    pub fn breaker(&self) -> Option<CircuitBreaker> {
        self.breaker
    }

    /// How long one attempt may take.
    pub fn attempt_timeout(&self) -> Duration {
        self.timeout
    }

    /// Where the subscription begins if the store does not know its name.
    pub fn start(&self) -> StartFrom {
        self.start_from
    }

    /// Whether the filter lets `envelope` pass; for buses. Runs the user's code.
    ///
    /// # Errors
    /// When the event cannot be read as the type that the filter reads.
    pub fn wants(&self, envelope: &Arc<EventEnvelope>) -> Result<bool, DecodeError> {
        self.filter
            .as_ref()
            .map_or(Ok(true), |filter| filter(envelope))
    }

    /// Whether `envelope` is of the type subscribed to.
    pub fn matches(&self, envelope: &EventEnvelope) -> bool {
        self.event_type
            .is_none_or(|wanted| wanted == envelope.event_type())
    }

    /// Begins to handle `envelope`; for buses, which do the work. A batch handler gets it alone.
    ///
    /// # Errors
    /// When the event cannot be read as the type subscribed to.
    pub fn call(
        &self,
        envelope: Arc<EventEnvelope>,
        cx: HandlerContext,
    ) -> Result<Work, DecodeError> {
        self.handler.call(envelope, cx)
    }

    /// Begins to handle several events in one go; for buses, which poll the future: it gives one
    /// result an event. `None` where the handler takes one event at a time.
    ///
    /// # Errors
    /// When an event cannot be [read](Self::read) as the type subscribed to.
    pub fn call_batch(
        &self,
        items: Vec<(Arc<EventEnvelope>, HandlerContext)>,
    ) -> Option<Result<BoxFuture<'static, BatchResults>, DecodeError>> {
        self.handler.call_batch(items)
    }

    /// Reads `envelope` as the type subscribed to; for buses. Runs the user's code.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn read(&self, envelope: &Arc<EventEnvelope>) -> Result<(), DecodeError> {
        (self.read)(envelope)
    }

    /// Whether the other one is this one or a clone of it; for buses.
    pub fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.handler.is_same(&other.handler)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.name)
            .field("event_type", &self.event_type)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}
