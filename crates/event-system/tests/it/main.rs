//! The assembled system, checked from outside.

mod conformance;
mod faults;
mod letters;
mod outbox;
mod places;
mod predecessor;
mod publisher;
mod recovery;
mod retention;
mod system;
mod trading_demo;
mod transactional;
mod unit_of_work;
