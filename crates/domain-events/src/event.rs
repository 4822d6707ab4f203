//! What happened in the domain, and the typed view of it that handlers receive.

use std::{borrow::Cow, fmt, ops::Deref, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{AggregateRef, EventEnvelope, EventId, Position, Urgency};

/// A fact of the domain, named in the past tense, that belongs to one aggregate.
///
/// The associated constants are the event's identity in the log and must never change once events
/// of the type are stored; the Rust name of the type may. `#[derive(DomainEvent)]` writes the
/// implementation.
///
/// ```
/// use std::borrow::Cow;
/// use domain_events::DomainEvent;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// struct OrderPlaced { order_id: String }
///
/// impl DomainEvent for OrderPlaced {
///     const EVENT_TYPE: &'static str = "shop.order-placed";
///     const AGGREGATE_TYPE: &'static str = "order";
///     fn aggregate_id(&self) -> Cow<'_, str> { Cow::Borrowed(&self.order_id) }
/// }
/// ```
pub trait DomainEvent: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The stable name of the event type, 1 to 255 bytes, unique in the application.
    const EVENT_TYPE: &'static str;

    /// The stable name of the aggregate type, 1 to 255 bytes.
    const AGGREGATE_TYPE: &'static str;

    /// The version of the payload's schema, from 1.
    const SCHEMA_VERSION: u32 = 1;

    /// How urgent events of this type are (D5).
    const URGENCY: Urgency = Urgency::Normal;

    /// The id of the aggregate that raised the event.
    fn aggregate_id(&self) -> Cow<'_, str>;

    /// Brings the JSON of schema version `from` to that of the version after it; called once for each
    /// version between that of the stored event and [`SCHEMA_VERSION`](Self::SCHEMA_VERSION).
    ///
    /// Unless implemented it changes nothing, which is right where serde's defaults read the older
    /// JSON.
    ///
    /// ```
    /// # use std::borrow::Cow;
    /// # use domain_events::{DomainEvent, UpcastError};
    /// # use serde::{Deserialize, Serialize};
    /// use serde_json::{Value, json};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct OrderPlaced { order_id: String, currency: String }
    ///
    /// impl DomainEvent for OrderPlaced {
    ///     const EVENT_TYPE: &'static str = "shop.order-placed";
    ///     const AGGREGATE_TYPE: &'static str = "order";
    ///     const SCHEMA_VERSION: u32 = 2;
    ///     fn aggregate_id(&self) -> Cow<'_, str> { Cow::Borrowed(&self.order_id) }
    ///
    ///     fn upcast(from: u32, mut payload: Value) -> Result<Value, UpcastError> {
    ///         if from == 1 {
    ///             payload["currency"] = json!("KRW");
    ///         }
    ///         Ok(payload)
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// Any, where the payload cannot be brought to the next version: the event is unreadable then
    /// (F7). Its text is kept in a dead letter, and so is not to quote the payload.
    fn upcast(from: u32, payload: Value) -> Result<Value, UpcastError> {
        let _ = from;
        Ok(payload)
    }
}

/// Why an [upcast](DomainEvent::upcast) failed: any error.
pub type UpcastError = Box<dyn std::error::Error + Send + Sync>;

/// A typed event with its envelope: a cheap clone that derefs to `E`.
pub struct Event<E> {
    payload: Arc<E>,
    envelope: Arc<EventEnvelope>,
}

impl<E> Event<E> {
    pub(crate) fn new(payload: Arc<E>, envelope: Arc<EventEnvelope>) -> Self {
        Self { payload, envelope }
    }

    /// Everything known about the event besides its payload.
    pub fn envelope(&self) -> &Arc<EventEnvelope> {
        &self.envelope
    }

    /// The id of the event.
    pub fn id(&self) -> EventId {
        self.envelope.id()
    }

    /// The aggregate that raised the event.
    pub fn aggregate(&self) -> &AggregateRef {
        self.envelope.aggregate()
    }

    /// The event's place in the log; `None` on a volatile bus.
    pub fn position(&self) -> Option<Position> {
        self.envelope.position()
    }
}

impl<E> Deref for Event<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.payload
    }
}

impl<E> Clone for Event<E> {
    fn clone(&self) -> Self {
        Self {
            payload: Arc::clone(&self.payload),
            envelope: Arc::clone(&self.envelope),
        }
    }
}

impl<E> fmt::Debug for Event<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads never appear in logs.
        f.debug_tuple("Event").field(&self.envelope).finish()
    }
}
