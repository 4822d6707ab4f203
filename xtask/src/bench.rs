//! `cargo xtask bench`: the performance goals.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::step;

/// Measures what the arguments name, or with `--peers` the peers; the measuring program says whether
/// the goals are met.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (peers, arguments): (Vec<_>, Vec<_>) = arguments
        .iter()
        .partition(|argument| *argument == "--peers");
    let mut command = if peers.is_empty() {
        goals()
    } else {
        against_peers()
    };
    let status = step::status(command.args(arguments))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn goals() -> Command {
    step::cargo([
        "bench",
        "--package",
        "event-system",
        "--bench",
        "goals",
        "--",
    ])
}

/// Peers are built in a workspace of their own: nothing of the project depends on them.
fn against_peers() -> Command {
    step::cargo([
        "run",
        "--release",
        "--manifest-path",
        "xtask/peers/Cargo.toml",
        "--target-dir",
        "target/peers",
        "--",
    ])
}
