//! The bus without a store, checked from outside.

mod conformance;
mod edges;
mod retry;
