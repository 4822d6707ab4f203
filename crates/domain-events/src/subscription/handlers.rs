//! A subscription by its handler: types with `async fn`, closures, handlers that block, batches.

use std::{any::Any, sync::Arc, time::Duration};

use super::{StartFrom, Subscription};
use crate::{
    Batch, BatchHandler, BatchVerdicts, BoxFuture, ConnectionType, DecodeError, DomainEvent, Event,
    EventEnvelope, EventHandler, EventRegistry, FailurePolicy, HandlerContext, HandlerError,
    Ordering, Priority, Projection, ProjectionStart, RegistryError, RetryPolicy,
    TransactionalHandler, Work, transactional, work::Erased,
};

impl Subscription {
    /// Subscribes `handler` to events of type `E` under `name`.
    pub fn new<E: DomainEvent, H: EventHandler<E>>(name: impl Into<Arc<str>>, handler: H) -> Self {
        let handler = Arc::new(handler);
        let handler = move |event, cx| -> BoxFuture<'static, _> {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handler.handle(event, cx).await })
        };
        Self::typed::<E>(name, Erased::future::<E>(handler))
    }

    /// Subscribes an async closure to events of type `E` under `name`.
    pub fn from_fn<E, F, Fut>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        E: DomainEvent,
        F: Fn(Event<E>, HandlerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler = move |event, cx| -> BoxFuture<'static, _> { Box::pin(handler(event, cx)) };
        Self::typed::<E>(name, Erased::future::<E>(handler))
    }

    /// Subscribes a plain closure to events of type `E` under `name`.
    ///
    /// It runs on a worker, so it must be quick and never block; nor can it be timed out. What may
    /// block, as publishing on a durable bus does, is for
    /// [`from_blocking_fn`](Self::from_blocking_fn).
    pub fn from_sync_fn<E, F>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        E: DomainEvent,
        F: Fn(Event<E>, HandlerContext) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        let handler = move |event, cx| -> BoxFuture<'static, _> {
            Box::pin(std::future::ready(handler(event, cx)))
        };
        Self::typed::<E>(name, Erased::future::<E>(handler))
    }

    /// Subscribes a plain closure that may block its thread to events of type `E` under `name`.
    ///
    /// It runs off the workers, on a thread that may block. Past its time-out it counts as failed,
    /// and as stuck until it returns: so long it keeps its aggregate and its worker's place, and only
    /// then does the time to its next attempt begin (F1). It can ask its context whether it is given
    /// up ([`cancellation`](HandlerContext::cancellation)), and publish by
    /// [`publish_blocking`](HandlerContext::publish_blocking).
    pub fn from_blocking_fn<E, F>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        E: DomainEvent,
        F: Fn(Event<E>, HandlerContext) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        let work = move |event, cx| {
            let handler = Arc::clone(&handler);
            Work::Blocking(Box::new(move || handler(event, cx)))
        };
        Self::typed::<E>(name, Erased::one::<E>(work))
    }

    /// Subscribes `handler` to events of type `E` under `name`, up to `size` at a time (D9). It has a
    /// pipeline of its own.
    pub fn batched<E: DomainEvent, H: BatchHandler<E>>(
        name: impl Into<Arc<str>>,
        size: usize,
        handler: H,
    ) -> Self {
        let handler = Arc::new(handler);
        Self::from_batch_fn(name, size, move |batch| {
            let handler = Arc::clone(&handler);
            async move { handler.handle(batch).await }
        })
    }

    /// Subscribes an async closure to events of type `E` under `name`, as [`batched`](Self::batched).
    pub fn from_batch_fn<E, F, Fut>(name: impl Into<Arc<str>>, size: usize, handler: F) -> Self
    where
        E: DomainEvent,
        F: Fn(Batch<E>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BatchVerdicts, HandlerError>> + Send + 'static,
    {
        let handler = move |batch| -> BoxFuture<'static, _> { Box::pin(handler(batch)) };
        Self::typed::<E>(name, Erased::batch::<E>(handler, size))
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
        let handler = move |event, cx| -> BoxFuture<'static, _> {
            match transform(event) {
                Ok(transformed) => Box::pin(handler(transformed, cx)),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        };
        Self::typed::<E>(name, Erased::future::<E>(handler))
    }

    /// Subscribes an async closure to every event, as raw envelopes; it needs no decoder (D10).
    pub fn to_all<F, Fut>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        F: Fn(Arc<EventEnvelope>, HandlerContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let call = move |envelope, cx| Work::Async(Box::pin(handler(envelope, cx)));
        let (register, read) = (|_: &mut _| Ok(()), |_: &_| Ok(()));
        Self::erased(name.into(), None, register, read, Erased::raw(call))
    }

    /// Subscribes `handler` to events of type `E` under `name`, to be called in the transactions of the
    /// store, with its connection (R7). It has a pipeline of its own; the bus needs a store with
    /// connections of the type `C`.
    ///
    /// Its time-out counts from the call, and what it has written is undone where it runs past that;
    /// until it returns, nobody writes.
    pub fn transactional<E, C, H>(name: impl Into<Arc<str>>, handler: H) -> Self
    where
        E: DomainEvent,
        C: 'static,
        H: TransactionalHandler<E, C>,
    {
        Self::from_transactional_fn(name, move |event, conn: &mut C, cx: &HandlerContext| {
            handler.handle(event, conn, cx)
        })
    }

    /// Subscribes a plain closure to events of type `E` under `name`, as
    /// [`transactional`](Self::transactional).
    pub fn from_transactional_fn<E, C, F>(name: impl Into<Arc<str>>, handler: F) -> Self
    where
        E: DomainEvent,
        C: 'static,
        F: Fn(Event<E>, &mut C, &HandlerContext) -> Result<(), HandlerError>
            + Send
            + Sync
            + 'static,
    {
        let handler = move |envelope: &Arc<EventEnvelope>, conn: &mut C, cx: &HandlerContext| {
            // It was read before it was given out.
            handler(envelope.typed::<E>()?, conn, cx)
        };
        Self {
            connection: Some(ConnectionType::of::<C>()),
            ..Self::typed::<E>(name, Erased::transactional(handler))
        }
    }

    /// Subscribes a read model to every event, under `name` (R7): from the beginning, and where an event
    /// of an aggregate is a dead letter, the later ones wait for it.
    pub fn projection<C, P>(name: impl Into<Arc<str>>, projection: P) -> Self
    where
        C: 'static,
        P: Projection<C>,
    {
        let projection = Arc::new(projection);
        let begins = Arc::clone(&projection);
        let begin = move |conn: &mut dyn Any| begins.begin(transactional::connection(conn)?);
        let apply = move |event: &Arc<EventEnvelope>, conn: &mut C, cx: &HandlerContext| {
            projection.apply(event, conn, cx)
        };
        let (register, read) = (|_: &mut _| Ok(()), |_: &_| Ok(()));
        let handler = Erased::transactional(apply);
        Self {
            connection: Some(ConnectionType::of::<C>()),
            projection: Some(ProjectionStart::new(P::VERSION, Arc::new(begin))),
            start_from: StartFrom::Beginning,
            failure_policy: FailurePolicy::ParkAggregate,
            ..Self::erased(name.into(), None, register, read, handler)
        }
    }

    fn typed<E: DomainEvent>(name: impl Into<Arc<str>>, handler: Erased) -> Self {
        Self::erased(
            name.into(),
            Some(E::EVENT_TYPE),
            EventRegistry::register::<E>,
            |envelope| envelope.typed::<E>().map(drop),
            handler,
        )
    }

    fn erased(
        name: Arc<str>,
        event_type: Option<&'static str>,
        register: fn(&mut EventRegistry) -> Result<(), RegistryError>,
        read: fn(&Arc<EventEnvelope>) -> Result<(), DecodeError>,
        handler: Erased,
    ) -> Self {
        Self {
            name,
            event_type,
            register,
            read,
            handler,
            filter: None,
            filtered_type: None,
            priority: Priority::NORMAL,
            retry: RetryPolicy::exponential(),
            failure_policy: FailurePolicy::Skip,
            ordering: Ordering::PerAggregate,
            isolation: None,
            breaker: None,
            connection: None,
            projection: None,
            linger: None,
            timeout: Duration::from_secs(30),
            start_from: StartFrom::Now,
            former_names: Vec::new(),
        }
    }
}
