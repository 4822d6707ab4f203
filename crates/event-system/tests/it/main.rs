//! The assembled system, checked from outside.

mod conformance;
mod recovery;
mod system;
mod trading_demo;
