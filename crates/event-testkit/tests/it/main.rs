//! The store in memory, held to what every store has to do.

use std::sync::Arc;

use event_testkit::{event_store_conformance, memory_store::MemoryStore};

mod simulation;

event_store_conformance!(memory_store, (Arc::new(MemoryStore::new()), ()));
