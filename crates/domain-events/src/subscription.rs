//! A handler under a stable name, with everything that governs its deliveries.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use crate::{
    ConfigError, DecodeError, DomainEvent, Event, EventEnvelope, EventHandler, EventRegistry,
    HandlerContext, HandlerError, Position, Priority, RegistryError, RetryPolicy,
    config::check_name,
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

/// A handler under a stable, unique name: the unit of delivery, retry and progress.
#[derive(Clone)]
pub struct Subscription {
    name: Arc<str>,
    event_type: Option<&'static str>,
    register: fn(&mut EventRegistry) -> Result<(), RegistryError>,
    call: Arc<Call>,
    priority: Priority,
    retry: RetryPolicy,
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
            priority: Priority::NORMAL,
            retry: RetryPolicy::exponential(),
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

    /// How long one attempt may take.
    pub fn attempt_timeout(&self) -> Duration {
        self.timeout
    }

    /// Where the subscription begins if the store does not know its name.
    pub fn start(&self) -> StartFrom {
        self.start_from
    }

    /// Whether the subscription wants `envelope`.
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
        (self.register)(registry)
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
