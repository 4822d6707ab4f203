//! The store on real files: the promises of every store, and those of this one.

mod backup;
mod broken_files;
mod concurrency;
mod conformance;
mod crash;
mod damage;
mod disk_faults;
mod durability;
mod faults;
mod life_cycle;
#[cfg(unix)]
mod permissions;
mod reading;
mod reading_tools;
mod refusal;
mod rows;
mod samples;
mod shared;
mod size;
mod support;
mod verify;
