//! The events of a run, and who subscribes to them.

use domain_events::{AggregateRef, DomainEvent};
use serde::{Deserialize, Serialize};

/// An event with a number that no other one has.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "crash.counted", aggregate = "counter", id = counter)]
pub(crate) struct Counted {
    pub(crate) counter: String,
    pub(crate) number: u64,
}

/// What a handler publishes when it has handled the event with this number.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "crash.echoed", aggregate = "echo", id = counter)]
pub(crate) struct Echoed {
    pub(crate) counter: String,
    pub(crate) number: u64,
}

/// The numbers whose events are echoed.
pub(crate) fn is_echoed(number: u64) -> bool {
    number.is_multiple_of(8)
}

/// The number of the event that the handler of a deadly subscription cannot bear.
pub(crate) const DEADLY: u64 = 5;

/// A subscription, by its number.
pub(crate) type Who = usize;

/// Goes on behind a dead letter, and echoes.
pub(crate) const SKIP: Who = 0;
/// Parks the aggregate behind a dead letter.
pub(crate) const PARK: Who = 1;
/// Has a pipeline of its own, and gets everything.
pub(crate) const ALL: Who = 2;
/// Pauses at a dead letter.
pub(crate) const PAUSE: Who = 3;
/// Handles several at a time.
pub(crate) const BATCH: Who = 4;

/// Has one order of all events.
pub(crate) const TOTAL: Who = 5;
/// Has no order.
pub(crate) const NONE: Who = 6;

/// The names of the subscriptions.
pub(crate) const NAMES: [&str; 7] = ["skip", "park", "all", "pause", "batch", "total", "none"];

/// A subscription, and those of its events that keep their order.
pub(crate) type Lane = (Who, AggregateRef);

/// The lane of a delivery.
pub(crate) fn lane((who, position): (Who, u64), aggregate: &AggregateRef) -> Lane {
    let lane = match who {
        TOTAL => AggregateRef::new("order", "of all"),
        NONE => AggregateRef::new("position", &position.to_string()),
        _ => aggregate.clone(),
    };
    (who, lane)
}

/// So many attempts are made of a delivery.
pub(crate) const ATTEMPTS: u32 = 3;

/// Who has this name.
pub(crate) fn who(name: &str) -> Option<Who> {
    NAMES.iter().position(|it| *it == name)
}

/// Whether a subscription gets events of a type.
pub(crate) fn wants(who: Who, event_type: &str) -> bool {
    who == ALL || event_type == Counted::EVENT_TYPE
}
