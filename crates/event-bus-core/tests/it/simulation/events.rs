//! The events of programs: two types, whose aggregates they share, each event with its own number.

use std::sync::Arc;

use domain_events::{DomainEvent, EventEnvelope, NewEvent};
use serde::{Deserialize, Serialize};

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Opened,
    Moved,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Raised {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) aggregate: u8,
}

macro_rules! event {
    ($name:ident, $event_type:literal) => {
        #[derive(Serialize, Deserialize)]
        pub(super) struct $name(Raised);

        impl DomainEvent for $name {
            const EVENT_TYPE: &'static str = $event_type;
            const AGGREGATE_TYPE: &'static str = "simulation";

            fn aggregate_id(&self) -> std::borrow::Cow<'_, str> {
                self.0.aggregate.to_string().into()
            }
        }
    };
}

event!(Opened, "simulation.opened");
event!(Moved, "simulation.moved");

impl Raised {
    pub(super) fn event(self) -> NewEvent {
        match self.kind {
            Kind::Opened => NewEvent::new(Opened(self)),
            Kind::Moved => NewEvent::new(Moved(self)),
        }
    }

    /// The event in an envelope.
    pub(super) fn of(envelope: &Arc<EventEnvelope>) -> Option<Self> {
        let opened = envelope.typed::<Opened>().map(|event| event.0);
        let moved = |_| envelope.typed::<Moved>().map(|event| event.0);
        opened.or_else(moved).ok()
    }
}
