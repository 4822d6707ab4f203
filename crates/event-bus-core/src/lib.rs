#![doc = include_str!("../README.md")]

mod bus;
pub use bus::InMemoryEventBus;

mod config;
pub use config::BusConfig;

// The way of an event, in its order.

mod publish;

mod admission;

mod record;

mod pipeline;

mod mailboxes;

mod lanes;

mod worker;

mod attempt;

mod backlog;

mod timers;

mod dead_letters;

// What a log behind the bus adds to it.

mod cursor;

mod progress;

mod catch_up;

// What all of them share.

mod engine;

mod lifecycle;

mod subscriptions;

mod aboard;

mod inside;

mod meters;
