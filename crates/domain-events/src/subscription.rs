//! A handler under a stable name, with everything that governs its deliveries.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use crate::{
    ConfigError, DecodeError, DomainEvent, Event, EventEnvelope, EventHandler, EventRegistry,
    FailurePolicy, HandlerContext, HandlerError, Isolation, Ordering, Position, Priority,
    RegistryError, RetryPolicy, config::check_name,
};

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a subscription with a name that the store does not know begins (D8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// With the first event published after its start.
    #[default]
    Now,
    /// With the first event of the log.
    Beginning,
    /// With the first event after this position.
    After(Position),
}

type Handling = BoxFuture<'static, Result<(), HandlerError>>;
type Call =
    dyn Fn(Arc<EventEnvelope>, HandlerContext) -> Result<Handling, DecodeError> + Send + Sync;
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
    call: Arc<Call>,
    filter: Option<Arc<Filter>>,
    /// The event type that the filter reads, where it reads one.
    filtered_type: Option<&'static str>,
    priority: Priority,
    retry: RetryPolicy,
    failure_policy: FailurePolicy,
    ordering: Ordering,
    isolation: Option<Isolation>,
    timeout: Duration,
    start_from: StartFrom,
}

impl Subscription {
    /// Subscribes `handler` to events of type `E` under `name`.
    pub fn new<E: DomainEvent, H: EventHandler<E>>(name: impl Into<Arc<str>>, handler: H) -> Self {
        let handler = Arc::new(handler);
        Self::typed::<E>(name, move |event, cx| {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handler.handle(event, cx).await })
        })
    }

    /// Subscribes an async closure to events of type `E` under `name`.
    pub fn from_fn<E, F, Fut>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        E: DomainEvent,
        F: Fn(Event<E>, HandlerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self::typed::<E>(name, move |event, cx| Box::pin(handler(event, cx)))
    }

    /// Subscribes an async closure to what `transform` makes of events of type `E` (D10).
    ///
    /// An error of the transform is a failed attempt with its verdict; it runs again with the next.
    pub fn transformed<E, T, M, F, Fut>(name: impl Into<Arc<str>>, transform: M, handler: F) -> Self
    where
        E: DomainEvent,
        T: Send + 'static,
        M: Fn(Event<E>) -> Result<T, HandlerError> + Send + Sync + 'static,
        F: Fn(T, HandlerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self::typed::<E>(name, move |event, cx| match transform(event) {
            Ok(transformed) => Box::pin(handler(transformed, cx)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        })
    }

    /// Subscribes an async closure to every event, as raw envelopes; it needs no decoder (D10).
    pub fn to_all<F, Fut>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        F: Fn(Arc<EventEnvelope>, HandlerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let call = move |envelope, cx| Ok(Box::pin(handler(envelope, cx)) as Handling);
        Self::erased(name.into(), None, |_| Ok(()), Arc::new(call))
    }

    fn typed<E: DomainEvent>(
        name: impl Into<Arc<str>>,
        handler: impl Fn(Event<E>, HandlerContext) -> Handling + Send + Sync + 'static,
    ) -> Self {
        let call = move |envelope: Arc<EventEnvelope>, cx| Ok(handler(envelope.typed::<E>()?, cx));
        Self::erased(
            name.into(),
            Some(E::EVENT_TYPE),
            EventRegistry::register::<E>,
            Arc::new(call),
        )
    }

    fn erased(
        name: Arc<str>,
        event_type: Option<&'static str>,
        register: fn(&mut EventRegistry) -> Result<(), RegistryError>,
        call: Arc<Call>,
    ) -> Self {
        Self {
            name,
            event_type,
            register,
            call,
            filter: None,
            filtered_type: None,
            priority: Priority::NORMAL,
            retry: RetryPolicy::exponential(),
            failure_policy: FailurePolicy::Skip,
            ordering: Ordering::PerAggregate,
            isolation: None,
            timeout: Duration::from_secs(30),
            start_from: StartFrom::Now,
        }
    }

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

    /// The stable name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
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
        match self.ordering {
            Ordering::PerAggregate => self.isolation,
            Ordering::Total => Some(Isolation {
                workers: Some(1),
                ..self.isolation.unwrap_or_default()
            }),
            Ordering::None => Some(self.isolation.unwrap_or_default()),
        }
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

    /// Checks that the subscription can work, and makes its event type known to `registry`.
    ///
    /// # Errors
    /// For a name, time-out or retry policy that cannot work, and for an event type name that
    /// another type has.
    pub fn check(&self, registry: &mut EventRegistry) -> Result<(), RegistryError> {
        check_name("subscription.name", &self.name)?;
        self.retry.check()?;
        if self.timeout.is_zero() {
            return Err(ConfigError::new("subscription.timeout", "0 s", "more than 0").into());
        }
        self.check_policies()?;
        (self.register)(registry)
    }

    fn check_policies(&self) -> Result<(), ConfigError> {
        let parks = self.failure_policy == FailurePolicy::ParkAggregate;
        if parks && self.ordering != Ordering::PerAggregate {
            let allowed = "Skip or PauseSubscription, as the ordering is not per aggregate";
            let value = self.failure_policy;
            return Err(ConfigError::new(
                "subscription.failure_policy",
                value,
                allowed,
            ));
        }
        if let Some(filtered) = self.filtered_type
            && self.event_type != Some(filtered)
        {
            let wanted = self.event_type.unwrap_or("any type, by filter_envelope");
            return Err(ConfigError::new("subscription.filter", filtered, wanted));
        }
        let Isolation { workers, capacity } = self.isolation.unwrap_or_default();
        let total = self.ordering == Ordering::Total;
        if let Some(workers) = workers
            && !(1..=if total { 1 } else { Isolation::MAX_WORKERS }).contains(&workers)
        {
            let allowed = if total {
                "1, as the ordering is total".to_owned()
            } else {
                format!("1 to {}", Isolation::MAX_WORKERS)
            };
            return Err(ConfigError::new("subscription.workers", workers, allowed));
        }
        if capacity == Some(0) {
            return Err(ConfigError::new("subscription.capacity", 0, "1 or more"));
        }
        Ok(())
    }

    /// Begins to handle `envelope`; for buses, which poll the future.
    ///
    /// # Errors
    /// When the event cannot be read as the type subscribed to.
    pub fn call(
        &self,
        envelope: Arc<EventEnvelope>,
        cx: HandlerContext,
    ) -> Result<Handling, DecodeError> {
        (self.call)(envelope, cx)
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
