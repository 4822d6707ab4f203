//! What every store has to do, in a file and in memory.

use std::sync::Arc;

use crate::support;

event_testkit::event_store_conformance!(in_a_file, support::fresh());
event_testkit::event_store_conformance!(in_memory, (Arc::new(support::in_memory()), ()));
