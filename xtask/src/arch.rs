//! `cargo xtask arch`: what the architecture forbids, looked for.

mod arrows;
mod graph;
mod migrations;
mod packages;
mod sources;
mod tree;

use anyhow::{Result, bail};
use cargo_metadata::{CargoOpt, MetadataCommand};

use crate::step;

/// Checks everything, the cheapest first.
pub(crate) fn run() -> Result<()> {
    step::say("cargo metadata --all-features");
    let metadata = MetadataCommand::new()
        .features(CargoOpt::AllFeatures)
        .exec()?;
    let root = metadata.workspace_root.as_std_path();

    step::say("arrows between the crates");
    forbid(&arrows::violations(
        &graph::libraries(&metadata),
        &graph::edges(&metadata),
    ))?;
    step::say("rules for source files");
    forbid(&sources::violations(root)?)?;
    step::say("migrations of the workspace");
    forbid(&migrations::violations(root)?)?;

    build_language_alone()?;
    packages::build(&metadata)?;
    migrations::build_without_symlinks(&metadata)
}

/// Fails with the last violation, after the others are printed.
fn forbid(violations: &[String]) -> Result<()> {
    let Some((last, others)) = violations.split_last() else {
        return Ok(());
    };
    for other in others {
        eprintln!("✗ {other}");
    }
    bail!("{last}")
}

/// `domain-events` without its features, and with them, and with nothing else of the workspace.
fn build_language_alone() -> Result<()> {
    step::run(&mut step::cargo([
        "check",
        "--package",
        "domain-events",
        "--no-default-features",
    ]))?;
    step::run(&mut step::cargo(["check", "--package", "domain-events"]))
}
