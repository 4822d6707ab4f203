//! The assembled system, checked from outside.

mod conformance;
mod recovery;
