//! The store on real files: the promises of every store, and those of this one.

mod backup;
mod concurrency;
mod conformance;
mod crash;
mod damage;
mod disk_faults;
mod durability;
mod faults;
mod life_cycle;
mod reading;
mod reading_tools;
mod refusal;
mod support;
