//! Which Rust type stands behind the name of an event type.

use std::{any::TypeId, collections::HashMap, sync::Arc};

use crate::{ConfigError, DecodeError, DomainEvent, EventEnvelope, config::check_name};

/// Two Rust types that claim one event type name, or a name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two types, one name.
    #[error("the event type name {event_type:?} was not registered for {second}: {first} has it")]
    Duplicate {
        /// The name.
        event_type: &'static str,
        /// The Rust type that has the name.
        first: &'static str,
        /// The Rust type that was refused.
        second: &'static str,
    },
    /// A name that is empty or too long.
    #[error(transparent)]
    Name(#[from] ConfigError),
}

struct Entry {
    type_id: TypeId,
    rust_name: &'static str,
    decode: fn(&Arc<EventEnvelope>) -> Result<(), DecodeError>,
}

/// The event types an application knows, by name; filled explicitly, before the start.
#[derive(Default)]
pub struct EventRegistry {
    entries: HashMap<&'static str, Entry>,
}

impl EventRegistry {
    /// A registry that knows no type.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `E` known; again is harmless.
    ///
    /// # Errors
    /// When another type has `E`'s name, or a name of `E` is empty or over 255 bytes.
    pub fn register<E: DomainEvent>(&mut self) -> Result<(), RegistryError> {
        check_name("EVENT_TYPE", E::EVENT_TYPE)?;
        check_name("AGGREGATE_TYPE", E::AGGREGATE_TYPE)?;
        let entry = self.entries.entry(E::EVENT_TYPE).or_insert(Entry {
            type_id: TypeId::of::<E>(),
            rust_name: std::any::type_name::<E>(),
            decode: |envelope| envelope.typed::<E>().map(drop),
        });
        if entry.type_id == TypeId::of::<E>() {
            return Ok(());
        }
        Err(RegistryError::Duplicate {
            event_type: E::EVENT_TYPE,
            first: entry.rust_name,
            second: std::any::type_name::<E>(),
        })
    }

    /// Decodes `envelope` as the type registered under its name, so that handlers find it typed.
    ///
    /// # Errors
    /// When the type is unknown, or the event cannot be read as it.
    pub fn decode(&self, envelope: &Arc<EventEnvelope>) -> Result<(), DecodeError> {
        match self.entries.get(envelope.event_type()) {
            Some(entry) => (entry.decode)(envelope),
            None => Err(DecodeError::UnknownType {
                event_type: envelope.event_type().to_owned(),
            }),
        }
    }

    /// The names of all known event types.
    pub fn event_types(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.entries.keys().copied()
    }
}

impl std::fmt::Debug for EventRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.event_types()).finish()
    }
}
