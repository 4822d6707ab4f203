//! `cargo xtask test`: every test of the workspace.

use anyhow::Result;

use crate::step;

/// Runs unit, integration and documentation tests of all crates.
pub(crate) fn run() -> Result<()> {
    // All failures of a run are worth more than a quick end.
    step::run(&mut step::cargo([
        "test",
        "--workspace",
        "--all-features",
        "--no-fail-fast",
    ]))
}
