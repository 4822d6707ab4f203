//! Handlers that misbehave on purpose, around one that does not: for tests of what follows.
//!
//! ```
//! use std::time::Duration;
//! use domain_events::{Event, HandlerContext, HandlerError, Subscription};
//! use event_testkit::handlers::{duplicating, failing, failing_when, handler_fn, slow};
//! # use domain_events::DomainEvent;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Serialize, Deserialize, DomainEvent)]
//! # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
//! # struct OrderPlaced { order_id: String }
//! let invoice = || handler_fn(|placed: Event<OrderPlaced>, _cx: HandlerContext| async move {
//!     println!("an invoice for {}", placed.order_id);
//!     Ok(())
//! });
//! let printer_burns = |cx: &HandlerContext| {
//!     (cx.attempt() == 3).then(|| HandlerError::permanent("the printer is on fire"))
//! };
//!
//! Subscription::new("retried-twice", failing(invoice(), 2));
//! Subscription::new("given-up", failing_when(invoice(), printer_burns));
//! Subscription::new("too-late", slow(invoice(), Duration::from_secs(31)));
//! Subscription::new("repeated", duplicating(invoice()));
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain_events::{
    BoxFuture, DomainEvent, Event, EventHandler, HandlerContext, HandlerError, HandlerPublisher,
    NewEvent, PublishError, Receipt,
};

/// A handler that fails the first `times` attempts of each event, transiently and without calling
/// `handler`.
///
/// It counts for itself, as long as it lives: what is replayed, or probed by a circuit breaker, does
/// not begin anew.
pub fn failing<H>(
    handler: H,
    times: u32,
) -> Failing<H, impl Fn(&HandlerContext) -> Option<HandlerError> + Send + Sync + 'static> {
    let failures = Mutex::new(HashMap::new());
    failing_when(handler, move |cx| {
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = failures.entry(cx.envelope().id()).or_insert(0);
        if *failed == times {
            return None;
        }
        *failed += 1;
        Some(HandlerError::transient("made to fail"))
    })
}

/// A handler that fails each attempt for which `error` gives an error, with it and without calling
/// `handler`.
pub fn failing_when<H, W>(handler: H, error: W) -> Failing<H, W>
where
    W: Fn(&HandlerContext) -> Option<HandlerError> + Send + Sync + 'static,
{
    Failing { handler, error }
}

/// A handler that waits for `delay`, by the clock of tokio, before it calls `handler`.
pub fn slow<H>(handler: H, delay: Duration) -> Slow<H> {
    Slow { handler, delay }
}

/// A handler that calls `handler` twice in each attempt, one after the other, as a crash would: to
/// show that it is idempotent (D1).
///
/// The two calls are given the same context, and what they publish through it has the same ids
/// (P9). The first error is the result; after one there is no second call.
pub fn duplicating<H>(handler: H) -> Duplicating<H> {
    Duplicating { handler }
}

/// A handler made of an async closure.
pub fn handler_fn<E, F, Fut>(handler: F) -> HandlerFn<F>
where
    E: DomainEvent,
    F: Fn(Event<E>, HandlerContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    HandlerFn(handler)
}

/// See [`failing`] and [`failing_when`].
#[derive(Debug)]
pub struct Failing<H, W> {
    handler: H,
    error: W,
}

impl<E, H, W> EventHandler<E> for Failing<H, W>
where
    E: DomainEvent,
    H: EventHandler<E>,
    W: Fn(&HandlerContext) -> Option<HandlerError> + Send + Sync + 'static,
{
    async fn handle(&self, event: Event<E>, cx: HandlerContext) -> Result<(), HandlerError> {
        match (self.error)(&cx) {
            Some(error) => Err(error),
            None => self.handler.handle(event, cx).await,
        }
    }
}

/// See [`slow`].
#[derive(Debug)]
pub struct Slow<H> {
    handler: H,
    delay: Duration,
}

impl<E: DomainEvent, H: EventHandler<E>> EventHandler<E> for Slow<H> {
    async fn handle(&self, event: Event<E>, cx: HandlerContext) -> Result<(), HandlerError> {
        tokio::time::sleep(self.delay).await;
        self.handler.handle(event, cx).await
    }
}

/// See [`duplicating`].
#[derive(Debug)]
pub struct Duplicating<H> {
    handler: H,
}

impl<E: DomainEvent, H: EventHandler<E>> EventHandler<E> for Duplicating<H> {
    async fn handle(&self, event: Event<E>, cx: HandlerContext) -> Result<(), HandlerError> {
        self.handler.handle(event.clone(), anew(&cx)).await?;
        self.handler.handle(event, anew(&cx)).await
    }
}

/// The same context, with nothing published through it yet: a clone would go on counting, and so
/// derive other ids.
fn anew(cx: &HandlerContext) -> HandlerContext {
    let (envelope, cancellation) = (Arc::clone(cx.envelope()), cx.cancellation().clone());
    let through = Arc::new(Through(cx.clone()));
    HandlerContext::new(envelope, cx.info().clone(), cancellation, through)
}

/// Publishes through another context, which leaves ids that are given as they are.
struct Through(HandlerContext);

impl HandlerPublisher for Through {
    fn publish_from_handler(
        &self,
        events: Vec<NewEvent>,
    ) -> BoxFuture<'static, Result<Vec<Receipt>, PublishError>> {
        let cx = self.0.clone();
        Box::pin(async move { cx.publish_all(events).await })
    }
}

/// See [`handler_fn`].
#[derive(Debug)]
pub struct HandlerFn<F>(F);

impl<E, F, Fut> EventHandler<E> for HandlerFn<F>
where
    E: DomainEvent,
    F: Fn(Event<E>, HandlerContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    async fn handle(&self, event: Event<E>, cx: HandlerContext) -> Result<(), HandlerError> {
        (self.0)(event, cx).await
    }
}
