//! An event's content: typed, encoded, or both, each made from the other when first asked for.

use std::{
    any::Any,
    cmp::Ordering,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::DomainEvent;

/// A typed event that knows which Rust type it is.
trait Typed: Any + Send + Sync {
    fn rust_name(&self) -> &'static str;
}

impl<E: DomainEvent> Typed for E {
    fn rust_name(&self) -> &'static str {
        std::any::type_name::<E>()
    }
}

/// An event that could not be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the event of type {event_type:?} was not encoded")]
pub struct EncodeError {
    /// The event type whose `Serialize` failed or panicked.
    pub event_type: String,
    source: serde_json::Error,
}

/// An event that its JSON does not give back as it was (D11): what a handler is given live would not
/// be what it is given after a restart.
#[derive(Debug, thiserror::Error)]
pub enum UnfaithfulError {
    /// The event could not be written as JSON.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The event's own JSON could not be read as its type.
    #[error(
        "the event of type {event_type:?} was not read back from its JSON, at line {line} column {column}"
    )]
    Decode {
        /// The event type whose `Deserialize` failed or panicked.
        event_type: String,
        /// The line of the JSON, from 1; 0 where it panicked.
        line: usize,
        /// The column of the JSON, from 1; 0 where it panicked.
        column: usize,
    },
    /// Written, read and written again, the event has another JSON.
    #[error("the event of type {event_type:?} is another one once it is read back from its JSON")]
    Differs {
        /// The event type whose `Serialize` and `Deserialize` do not fit together.
        event_type: String,
    },
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
    /// The event was published as another Rust type, of which the event type has the same name.
    #[error(
        "the event of type {event_type:?} was not decoded as {expected}: it was published as {actual}"
    )]
    OtherRustType {
        /// The type of the event.
        event_type: String,
        /// The Rust type asked for.
        expected: &'static str,
        /// The Rust type of the event.
        actual: &'static str,
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
    /// The event has a newer schema than this program knows, as after a rollback of a deployment: a
    /// bus pauses the subscription instead of giving the event up (F7).
    #[error(
        "the event of type {event_type:?} was not decoded: it has schema version {version}, and {known} is the newest known"
    )]
    Newer {
        /// The type of the event.
        event_type: String,
        /// The schema version of the event.
        version: u32,
        /// The schema version of the type asked for.
        known: u32,
    },
    /// The event's older JSON was not brought to the schema of the type asked for.
    #[error(
        "the event of type {event_type:?} was not brought from schema version {from} to the next: {error}"
    )]
    Upcast {
        /// The type of the event.
        event_type: String,
        /// The schema version at which it failed.
        from: u32,
        /// What the type's [`upcast`](crate::DomainEvent::upcast) said.
        error: String,
    },
    /// The stored event differs from what its checksum says was stored.
    #[error("the stored event is damaged: its checksum does not match")]
    Damaged,
}

/// Content of an event.
#[derive(Clone)]
pub(crate) struct Payload {
    typed: OnceLock<Arc<dyn Typed>>,
    json: OnceLock<Box<[u8]>>,
    codec: &'static Codec,
}

/// How events of one type are written as JSON, and written again once they are read back.
struct Codec {
    encode: fn(&dyn Any) -> Result<Vec<u8>, serde_json::Error>,
    encode_again: fn(&[u8]) -> Result<Vec<u8>, serde_json::Error>,
}

impl Payload {
    pub(crate) fn typed<E: DomainEvent>(event: Arc<E>) -> Self {
        Self {
            typed: OnceLock::from(event as Arc<dyn Typed>),
            json: OnceLock::new(),
            codec: const {
                &Codec {
                    encode: encode::<E>,
                    encode_again: encode_again::<E>,
                }
            },
        }
    }

    pub(crate) fn json(json: Box<[u8]>) -> Self {
        Self {
            typed: OnceLock::new(),
            json: OnceLock::from(json),
            // What came from a log is neither encoded nor published.
            codec: &Codec {
                encode: |_| Ok(Vec::new()),
                encode_again: |json| Ok(json.to_vec()),
            },
        }
    }

    /// The content as JSON, encoded when first asked for.
    pub(crate) fn encoded(&self, event_type: &str) -> Result<&[u8], EncodeError> {
        if let Some(json) = self.json.get() {
            return Ok(json);
        }
        // A payload has at least one of the two forms from the start.
        let event: &dyn Any = self.typed.get().map_or(&(), |event| &**event);
        let encode = || (self.codec.encode)(event);
        let panicked = |_| Err(serde::ser::Error::custom("its `Serialize` panicked"));
        let json = catch_unwind(AssertUnwindSafe(encode))
            .unwrap_or_else(panicked)
            .map_err(|source| EncodeError {
                event_type: event_type.to_owned(),
                source,
            })?;
        Ok(self.json.get_or_init(|| json.into_boxed_slice()))
    }

    /// Checks that the content, read back from its JSON, is what it was (D11).
    pub(crate) fn check_faithful(&self, event_type: &str) -> Result<(), UnfaithfulError> {
        let json = self.encoded(event_type)?;
        let unread = |line, column| UnfaithfulError::Decode {
            event_type: event_type.to_owned(),
            line,
            column,
        };
        let again = catch_unwind(AssertUnwindSafe(|| (self.codec.encode_again)(json)))
            .map_err(|_| unread(0, 0))?
            .map_err(|error| unread(error.line(), error.column()))?;
        // The members of a hash map come in another order each time.
        let parsed = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).ok();
        if json == again || parsed(json) == parsed(&again) {
            return Ok(());
        }
        Err(UnfaithfulError::Differs {
            event_type: event_type.to_owned(),
        })
    }

    /// The content as an `E`, decoded when first asked for; its JSON is of this schema version.
    pub(crate) fn decoded<E: DomainEvent>(&self, version: u32) -> Result<Arc<E>, DecodeError> {
        if let Some(event) = self.typed.get() {
            let any: Arc<dyn Any + Send + Sync> = Arc::<dyn Typed>::clone(event);
            return any.downcast().map_err(|_| DecodeError::OtherRustType {
                event_type: E::EVENT_TYPE.to_owned(),
                expected: std::any::type_name::<E>(),
                actual: event.rust_name(),
            });
        }
        let json = self.json.get().map_or(&[][..], |json| json);
        let event = Arc::new(match version.cmp(&E::SCHEMA_VERSION) {
            Ordering::Equal => decode::<E>(E::EVENT_TYPE, json),
            Ordering::Less => decode::<E>(E::EVENT_TYPE, &upcast::<E>(json, version)?),
            Ordering::Greater => Err(DecodeError::Newer {
                event_type: E::EVENT_TYPE.to_owned(),
                version,
                known: E::SCHEMA_VERSION,
            }),
        }?);
        let _ = self.typed.set(Arc::clone(&event) as Arc<dyn Typed>);
        Ok(event)
    }
}

fn decode<T: DeserializeOwned>(event_type: &str, json: &[u8]) -> Result<T, DecodeError> {
    // The error keeps the place and not the message, which may quote the payload.
    serde_json::from_slice(json).map_err(|error| DecodeError::Payload {
        event_type: event_type.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

/// The JSON of an older schema version, brought to that of `E`.
fn upcast<E: DomainEvent>(json: &[u8], version: u32) -> Result<Vec<u8>, DecodeError> {
    let mut value: Value = decode(E::EVENT_TYPE, json)?;
    for from in version..E::SCHEMA_VERSION {
        let cast = catch_unwind(AssertUnwindSafe(|| E::upcast(from, value)));
        let cast = cast.unwrap_or_else(|_| Err("it panicked".into()));
        value = cast.map_err(|error| DecodeError::Upcast {
            event_type: E::EVENT_TYPE.to_owned(),
            from,
            error: error.to_string(),
        })?;
    }
    Ok(value.to_string().into_bytes())
}

fn encode_again<E: DomainEvent>(json: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let event: E = serde_json::from_slice(json)?;
    let again = serde_json::to_vec(&event);
    // How the copy is dropped says nothing of the event.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(event)));
    again
}

fn encode<E: DomainEvent>(event: &dyn Any) -> Result<Vec<u8>, serde_json::Error> {
    match event.downcast_ref::<E>() {
        Some(event) => serde_json::to_vec(event),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::HashMap};

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Measured {
        by_place: HashMap<String, f64>,
        #[serde(skip_deserializing)]
        note: String,
    }

    impl DomainEvent for Measured {
        const EVENT_TYPE: &'static str = "test.measured";
        const AGGREGATE_TYPE: &'static str = "test";

        fn aggregate_id(&self) -> Cow<'_, str> {
            Cow::Borrowed("a")
        }
    }

    fn check(places: usize, note: &str) -> Result<(), UnfaithfulError> {
        let number = |place: usize| 0.1 + 1.0 / (place as f64 + 3.0);
        let by_place = (0..places).map(|place| (place.to_string(), number(place)));
        let event = Measured {
            by_place: by_place.collect(),
            note: note.to_owned(),
        };
        Payload::typed(Arc::new(event)).check_faithful(Measured::EVENT_TYPE)
    }

    #[test]
    fn d11_order_of_members_and_fractions_are_no_difference() {
        check(1_000, "").unwrap();
    }

    #[test]
    fn d11_what_is_not_read_back_is_a_difference() {
        let error = check(1, "lost").unwrap_err();
        assert!(matches!(error, UnfaithfulError::Differs { .. }), "{error}");
    }
    /// Another type that claims the name of [`Measured`].
    #[derive(Serialize, Deserialize)]
    struct Weighed;

    impl DomainEvent for Weighed {
        const EVENT_TYPE: &'static str = Measured::EVENT_TYPE;
        const AGGREGATE_TYPE: &'static str = "test";

        fn aggregate_id(&self) -> Cow<'_, str> {
            Cow::Borrowed("a")
        }
    }

    #[test]
    fn an_event_of_another_rust_type_names_both() {
        let payload = Payload::typed(Arc::new(Weighed));
        let error = payload.decoded::<Measured>(1).map(drop).unwrap_err();
        let place = std::any::type_name::<Weighed>().trim_end_matches("Weighed");
        let expected = format!(
            "the event of type \"test.measured\" was not decoded as {place}Measured: it was \
             published as {place}Weighed"
        );
        assert_eq!(error.to_string(), expected);
    }
}
