#![doc = include_str!("../README.md")]

pub mod event_bus;
pub mod event_store;
pub mod interceptor;
pub mod memory_store;
pub mod model;

// For tests of applications.

pub mod recording_bus;

pub mod handlers;
