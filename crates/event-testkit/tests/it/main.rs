//! The store in memory, held to what every store has to do; what the kit has for tests of applications.

use std::sync::Arc;

use event_testkit::{event_store_conformance, memory_store::MemoryStore};

mod events;
mod handlers;
mod recording_bus;
mod simulation;

event_store_conformance!(memory_store, (Arc::new(MemoryStore::new()), ()));
