#![doc = include_str!("../README.md")]

mod store;
pub use store::SqliteEventStore;

mod ports;

mod outbox;
pub use outbox::{AppendInError, append_in, prepare_connection};

mod options;
pub use options::{Durability, SqliteOptions};

mod error;
pub use error::{BackupError, Holder, OpenError};

mod verification;
pub use verification::{Finding, Row, Rule, Standing, Verification};

mod samples;
pub use samples::{TypeFault, TypeFinding};

mod place;

mod ownership;

mod lock;

mod database;

mod migrations;

mod backup;

mod size;

mod threads;

mod queue;

mod writer;

mod answering;

mod refused;

mod transaction;

mod known;

mod pending;

mod append;

mod identity;

mod deliveries;

mod registrations;

mod handlers;

mod transactional;

mod retention;

mod positions;

mod reader;

mod session;

mod selection;

mod history;

mod names;

mod verify;

mod rows;

mod checksum;

mod queries;

mod schema;

mod failure;

#[cfg(test)]
mod second_process;
