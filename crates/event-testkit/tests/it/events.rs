//! Events to publish and to handle.

use std::sync::Arc;

use domain_events::{
    AttemptInfo, Cancellation, DomainEvent, Event, HandlerContext, HandlerPublisher, NewEvent,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.ordered", aggregate = "order", id = order)]
pub(crate) struct Ordered {
    pub(crate) order: String,
    pub(crate) number: u64,
}

/// An event that follows from [`Ordered`].
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.paid", aggregate = "order", id = order)]
pub(crate) struct Paid {
    pub(crate) order: String,
}

pub(crate) fn ordered(order: &str, number: u64) -> NewEvent {
    let order = order.to_owned();
    NewEvent::new(Ordered { order, number })
}

pub(crate) fn paid(order: &str) -> NewEvent {
    let order = order.to_owned();
    NewEvent::new(Paid { order })
}

/// An event on its way to a handler.
pub(crate) fn delivered(order: &str, number: u64) -> Event<Ordered> {
    ordered(order, number).seal().typed().unwrap()
}

/// The context of an attempt on `event`, publishing to `publisher`.
pub(crate) fn context(
    event: &Event<Ordered>,
    attempt: u32,
    publisher: impl HandlerPublisher + 'static,
) -> HandlerContext {
    let info = AttemptInfo {
        subscription: "subscription".into(),
        attempt,
        may_be_repeat: false,
        is_replay: false,
        deadline: None,
    };
    let envelope = Arc::clone(event.envelope());
    HandlerContext::new(envelope, info, Cancellation::default(), Arc::new(publisher))
}
