//! What a handler knows of the attempt it is in, and how it publishes.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use crate::{
    BoxFuture, CallAgain, Cancellation, EventEnvelope, EventId, EventMetadata, NewEvent,
    PublishError, Receipt, blocking::block_on,
};

/// What is known about one attempt (R5).
#[derive(Clone, Debug)]
pub struct AttemptInfo {
    /// The name of the subscription.
    pub subscription: Arc<str>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Whether an earlier run of the program may have handled the event already: it ended
    /// uncleanly, and had seen the event.
    pub may_be_repeat: bool,
    /// Whether the attempt replays a dead letter.
    pub is_replay: bool,
    /// When the attempt counts as failed if it has not ended (F1); `None` where that is too far off
    /// to be told.
    pub deadline: Option<Instant>,
}

/// The way by which a handler's events go to its bus; implemented by buses.
pub trait HandlerPublisher: Send + Sync {
    /// Publishes `events` atomically, never waiting for room that only the handler could free (P5).
    fn publish_from_handler(
        &self,
        events: Vec<NewEvent>,
    ) -> BoxFuture<'static, Result<Vec<Receipt>, PublishError>>;
}

/// What a handler knows of its attempt, and its way to publish: a cheap clone.
pub struct HandlerContext {
    envelope: Arc<EventEnvelope>,
    info: AttemptInfo,
    cancellation: Cancellation,
    /// How many events were published; made when there are clones to share it, or some to count.
    published: OnceLock<Arc<AtomicU32>>,
    publisher: Arc<dyn HandlerPublisher>,
}

impl Clone for HandlerContext {
    fn clone(&self) -> Self {
        Self {
            envelope: Arc::clone(&self.envelope),
            info: self.info.clone(),
            cancellation: self.cancellation.clone(),
            published: OnceLock::from(Arc::clone(self.published())),
            publisher: Arc::clone(&self.publisher),
        }
    }
}

impl HandlerContext {
    /// The context of an attempt; made by buses.
    pub fn new(
        envelope: Arc<EventEnvelope>,
        info: AttemptInfo,
        cancellation: Cancellation,
        publisher: Arc<dyn HandlerPublisher>,
    ) -> Self {
        Self {
            envelope,
            info,
            cancellation,
            published: OnceLock::new(),
            publisher,
        }
    }

    fn published(&self) -> &Arc<AtomicU32> {
        self.published.get_or_init(Arc::default)
    }

    /// The handled event's envelope.
    pub fn envelope(&self) -> &Arc<EventEnvelope> {
        &self.envelope
    }

    /// Correlation, causation and free entries of the handled event.
    pub fn metadata(&self) -> &EventMetadata {
        self.envelope.metadata()
    }

    /// Attempt number, subscription, deadline, and whether this may be a repeat or is a replay.
    pub fn info(&self) -> &AttemptInfo {
        &self.info
    }

    /// The number of the attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.info.attempt
    }

    /// When the attempt counts as failed if it has not ended (F1); `None` where that is too far off
    /// to be told.
    pub fn deadline(&self) -> Option<Instant> {
        self.info.deadline
    }

    /// Whether the attempt is given up: for blocking handlers, and for tasks that outlive it.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// The context once more, for the same attempt that is made again: what it publishes is numbered
    /// anew.
    pub(crate) fn again(&self, call: CallAgain) -> Self {
        let mut again = Self {
            published: OnceLock::new(),
            cancellation: call.cancellation,
            ..self.clone()
        };
        again.info.deadline = call.deadline;
        again
    }

    /// The event as one that follows from the handled one, with the correlation, causation and id that
    /// [`publish`](Self::publish) would give it (P9): for those who publish in another way, as in a
    /// transaction of their own.
    pub fn caused(&self, event: impl Into<NewEvent>) -> NewEvent {
        let number = self.published().fetch_add(1, Ordering::Relaxed) + 1;
        self.caused_as(event.into(), number)
    }

    fn caused_as(&self, event: NewEvent, number: u32) -> NewEvent {
        let id = EventId::derived(self.envelope.id(), &self.info.subscription, number);
        event.caused_by(&self.envelope, id)
    }

    /// Publishes an event that follows from the handled one (P9).
    ///
    /// Correlation and causation are those of the handled event, and the id is derived from it,
    /// unless given; so on a bus with a store a repeated attempt finds its event already there, unless
    /// it was pruned (R8), and without one it publishes it again, under the same id. Never waits for room
    /// that only the handler could free (P5).
    ///
    /// # Errors
    /// As [`EventBus::publish`](crate::EventBus::publish).
    ///
    /// # Cancellation
    /// A dropped future has either published the event or touched nothing.
    pub async fn publish(&self, event: impl Into<NewEvent>) -> Result<Receipt, PublishError> {
        let events = vec![event.into()];
        let mut receipts = self.publish_all(events).await?;
        Ok(receipts.swap_remove(0))
    }

    /// As [`publish`](Self::publish), for plain closures: blocks the thread until the event is accepted,
    /// and committed where the bus is durable. Async code awaits `publish` instead.
    ///
    /// # Errors
    /// As [`EventBus::publish`](crate::EventBus::publish).
    pub fn publish_blocking(&self, event: impl Into<NewEvent>) -> Result<Receipt, PublishError> {
        block_on(self.publish(event))
    }

    /// Publishes events that follow from the handled one, all or none, and consecutive (P3, P9).
    ///
    /// # Errors
    /// As [`EventBus::publish_all`](crate::EventBus::publish_all).
    ///
    /// # Cancellation
    /// A dropped future has either published the events or touched nothing.
    pub async fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        let published = self.published();
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let first = published.fetch_add(count, Ordering::Relaxed);
        let events = events.into_iter().zip(first + 1..);
        let events = events.map(|(event, number)| self.caused_as(event, number));
        let result = self.publisher.publish_from_handler(events.collect()).await;
        if result.is_err() {
            // Publishing again in the same attempt is to derive the same ids.
            let (used, unused) = (first + count, first);
            let _ = published.compare_exchange(used, unused, Ordering::Relaxed, Ordering::Relaxed);
        }
        result
    }
}

impl fmt::Debug for HandlerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerContext")
            .field("event", &self.envelope.id())
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}
