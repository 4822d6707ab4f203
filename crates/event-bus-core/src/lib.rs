//! event-bus-core
