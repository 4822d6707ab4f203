//! The events of programs: three types, whose aggregates they share.

use std::sync::Arc;

use domain_events::{DomainEvent, EventEnvelope, NewEvent};
use serde::{Deserialize, Serialize};

use super::program::{Kind, Raised};

/// What an event of any of the types holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Content {
    aggregate: String,
    pub(super) number: usize,
    /// Whether a handler published it.
    pub(super) follows: bool,
}

macro_rules! event {
    ($name:ident, $event_type:literal) => {
        #[derive(Serialize, Deserialize)]
        pub(super) struct $name(pub(super) Content);

        impl DomainEvent for $name {
            const EVENT_TYPE: &'static str = $event_type;
            const AGGREGATE_TYPE: &'static str = "model";

            fn aggregate_id(&self) -> std::borrow::Cow<'_, str> {
                (&*self.0.aggregate).into()
            }
        }
    };
}

event!(Opened, "model.opened");
event!(Moved, "model.moved");
event!(Closed, "model.closed");

/// The `number`th event of a run.
pub(super) fn new_event(raised: Raised, number: usize, follows: bool) -> NewEvent {
    let content = Content {
        aggregate: raised.aggregate.to_string(),
        number,
        follows,
    };
    let event = match raised.kind {
        Kind::Opened => NewEvent::new(Opened(content)),
        Kind::Moved => NewEvent::new(Moved(content)),
        Kind::Closed => NewEvent::new(Closed(content)),
    };
    event.urgency(raised.urgency)
}

/// The content of an event of any of the types.
pub(super) fn content(envelope: &Arc<EventEnvelope>) -> Option<Content> {
    let opened = envelope.typed::<Opened>().map(|event| event.0.clone());
    opened
        .or_else(|_| envelope.typed::<Moved>().map(|event| event.0.clone()))
        .or_else(|_| envelope.typed::<Closed>().map(|event| event.0.clone()))
        .ok()
}
