//! event-system
