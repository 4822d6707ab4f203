//! event-testkit
