//! The bus without a store, checked from outside.

mod blocking;
mod conformance;
mod dead_letters;
mod drops;
mod edges;
mod leftovers;
mod model;
mod simulation;
mod soon;
mod strangers;
mod warnings;
