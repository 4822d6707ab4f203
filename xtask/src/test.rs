//! `cargo xtask test`: every test of the workspace, and the bus under a checker of interleavings.

use anyhow::Result;

use crate::step;

/// Runs unit, integration and documentation tests of all crates, then the schedules of the bus.
pub(crate) fn run() -> Result<()> {
    // All failures of a run are worth more than a quick end.
    let tests = step::run(&mut step::cargo([
        "test",
        "--workspace",
        "--all-features",
        "--no-fail-fast",
    ]));
    let schedules = schedules();
    tests.and(schedules)
}

/// The production code of the bus with the locks and atomics of a checker; built beside the rest, as
/// its flags would have everything built anew.
fn schedules() -> Result<()> {
    let mut cargo = step::cargo([
        "test",
        "--package",
        "event-bus-core",
        "--lib",
        "--target-dir",
        "target/shuttle",
        "schedules::",
    ]);
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    step::run(cargo.env("RUSTFLAGS", format!("{flags} --cfg shuttle")))
}
