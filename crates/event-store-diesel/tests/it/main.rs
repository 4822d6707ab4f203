//! The store on real files: the promises of every store, and those of this one.

mod concurrency;
mod conformance;
mod crash;
mod damage;
mod faults;
mod life_cycle;
mod refusal;
mod support;
