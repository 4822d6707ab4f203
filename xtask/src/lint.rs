//! `cargo xtask lint`: formatting, clippy and rustdoc, with warnings denied.

use anyhow::Result;

use crate::step;

/// Runs the three, the quickest first.
pub(crate) fn run() -> Result<()> {
    step::run(&mut step::cargo(["fmt", "--all", "--check"]))?;
    step::run(&mut step::cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    let mut doc = step::cargo(["doc", "--workspace", "--no-deps", "--all-features"]);
    step::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}
