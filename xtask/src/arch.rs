//! `cargo xtask arch`: what the architecture forbids, looked for.

mod arrows;
mod graph;
mod migrations;
mod sources;
mod tree;

use std::path::Path;

use anyhow::{Result, bail};
use cargo_metadata::{CargoOpt, Metadata, MetadataCommand};

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
    build_from_packages(&metadata, root)?;
    migrations::build_without_symlinks(&metadata)
}

fn forbid(violations: &[String]) -> Result<()> {
    match violations {
        [] => Ok(()),
        [only] => bail!("{only}"),
        [first, others @ ..] => {
            for other in others {
                eprintln!("✗ {other}");
            }
            bail!("{first}")
        }
    }
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

/// The store and what it needs of ours, each from its own package.
fn build_from_packages(metadata: &Metadata, root: &Path) -> Result<()> {
    let mut package = step::cargo(["package", "--allow-dirty", "--target-dir"]);
    package.arg(&metadata.target_directory);
    for name in [
        "domain-events-derive",
        "domain-events",
        "event-testkit",
        migrations::STORE,
    ] {
        package.args(["--package", name]);
    }
    step::run(&mut package)?;

    let (_, files) = step::output(&mut step::cargo([
        "package",
        "--list",
        "--allow-dirty",
        "--package",
        migrations::STORE,
    ]))?;
    forbid(&migrations::missing_in_package(root, &files)?)
}
