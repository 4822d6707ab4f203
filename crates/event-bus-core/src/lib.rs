#![doc = include_str!("../README.md")]

mod bus;
pub use bus::InMemoryEventBus;

mod config;
pub use config::BusConfig;

#[cfg(feature = "metrics")]
pub mod metrics;

// The way of an event, in its order.

mod publish;

mod admission;

mod waiters;

mod waiting;

mod entry;

mod append;

mod record;

mod followed;

mod mailboxes;

mod blocked;

mod blocking;

mod run;

mod lanes;

mod turns;

mod worker;

mod batches;

mod attempt;

mod guarded;

mod off_worker;

mod backlog;

mod timers;

mod dead_letters;

mod stored_letters;

mod settling;

mod pausing;

mod breaker;

// What a log behind the bus adds to it.

mod cursor;

mod unsaved;

mod starts;

mod progress;

mod catch_up;

mod watch;

mod transactional;

// What all of them share.

mod engine;

mod state;

mod after;

mod figures;

mod statistics;

mod pipeline;

mod lifecycle;

mod stopping;

mod subscriptions;

mod subscribed;

mod seat;

mod aboard;

mod ashore;

mod places;

mod claims;

mod inside;

mod say;

mod meters;

mod processing;

mod process;

mod sync;

#[cfg(all(test, shuttle))]
mod schedules;

#[cfg(all(test, not(shuttle)))]
mod beside;
