//! An event's content: typed, encoded, or both, each made from the other when first asked for.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use crate::DomainEvent;

type Typed = Arc<dyn Any + Send + Sync>;

/// An event that could not be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the event of type {event_type:?} was not encoded")]
pub struct EncodeError {
    /// The event type whose `Serialize` failed or panicked.
    pub event_type: String,
    source: serde_json::Error,
}

/// An event that could not be read as the type asked for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The event is of another type.
    #[error("the event of type {actual:?} was not decoded as {expected:?}")]
    OtherType {
        /// The type asked for.
        expected: String,
        /// The type of the event.
        actual: String,
    },
    /// Nobody registered the event's type.
    #[error("the event type {event_type:?} is not registered")]
    UnknownType {
        /// The type of the event.
        event_type: String,
    },
    /// The payload is not JSON of the type.
    #[error(
        "the payload of the event of type {event_type:?} was not decoded, at line {line} column {column}"
    )]
    Payload {
        /// The type of the event.
        event_type: String,
        /// The line of the payload, from 1.
        line: usize,
        /// The column of the payload, from 1.
        column: usize,
    },
    /// The stored event differs from what its checksum says was stored.
    #[error("the stored event is damaged: its checksum does not match")]
    Damaged,
}

/// Content of an event.
pub(crate) struct Payload {
    typed: OnceLock<Typed>,
    json: OnceLock<Box<[u8]>>,
    encode: fn(&dyn Any) -> Result<Vec<u8>, serde_json::Error>,
}

impl Payload {
    pub(crate) fn typed<E: DomainEvent>(event: Arc<E>) -> Self {
        Self {
            typed: OnceLock::from(event as Typed),
            json: OnceLock::new(),
            encode: encode::<E>,
        }
    }

    pub(crate) fn json(json: Box<[u8]>) -> Self {
        Self {
            typed: OnceLock::new(),
            json: OnceLock::from(json),
            encode: |_| Ok(Vec::new()),
        }
    }

    /// The content as JSON, encoded when first asked for.
    pub(crate) fn encoded(&self, event_type: &str) -> Result<&[u8], EncodeError> {
        if let Some(json) = self.json.get() {
            return Ok(json);
        }
        // A payload has at least one of the two forms from the start.
        let event: &dyn Any = self.typed.get().map_or(&(), |event| &**event);
        let encode = || (self.encode)(event);
        let panicked = |_| Err(serde::ser::Error::custom("its `Serialize` panicked"));
        let json = catch_unwind(AssertUnwindSafe(encode))
            .unwrap_or_else(panicked)
            .map_err(|source| EncodeError {
                event_type: event_type.to_owned(),
                source,
            })?;
        Ok(self.json.get_or_init(|| json.into_boxed_slice()))
    }

    /// The content as an `E`, decoded when first asked for.
    pub(crate) fn decoded<E: DomainEvent>(&self) -> Result<Arc<E>, DecodeError> {
        if let Some(event) = self.typed.get() {
            return Arc::clone(event)
                .downcast()
                .map_err(|_| DecodeError::OtherType {
                    expected: std::any::type_name::<E>().to_owned(),
                    actual: E::EVENT_TYPE.to_owned(),
                });
        }
        let json = self.json.get().map_or(&[][..], |json| json);
        // The error keeps the place and not the message, which may quote the payload.
        let event: Arc<E> = serde_json::from_slice(json)
            .map(Arc::new)
            .map_err(|error| DecodeError::Payload {
                event_type: E::EVENT_TYPE.to_owned(),
                line: error.line(),
                column: error.column(),
            })?;
        let _ = self.typed.set(Arc::clone(&event) as Typed);
        Ok(event)
    }
}

fn encode<E: DomainEvent>(event: &dyn Any) -> Result<Vec<u8>, serde_json::Error> {
    match event.downcast_ref::<E>() {
        Some(event) => serde_json::to_vec(event),
        None => Ok(Vec::new()),
    }
}
