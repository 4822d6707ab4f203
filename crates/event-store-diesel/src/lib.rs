//! event-store-diesel
