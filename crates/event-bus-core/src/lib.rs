#![doc = include_str!("../README.md")]

mod bus;
pub use bus::InMemoryEventBus;

mod config;
pub use config::BusConfig;

// The way of an event, in its order.
mod admission;
mod attempt;
mod backlog;
mod catch_up;
mod cursor;
mod dead_letters;
mod lanes;
mod mailboxes;
mod pipeline;
mod progress;
mod publish;
mod record;
mod subscriptions;
mod timers;
mod worker;

// What all of them share.
mod engine;
mod inside;
mod lifecycle;
mod meters;
