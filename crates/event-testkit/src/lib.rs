//! Proof for domain-event systems: what every implementation of a port has to do.

pub mod event_bus;
pub mod event_store;
