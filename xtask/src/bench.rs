//! `cargo xtask bench`: the performance goals.

use std::process::ExitCode;

use anyhow::Result;

use crate::step;

/// Measures what the arguments name; the measuring program says whether the goals are met.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let goals = [
        "bench",
        "--package",
        "event-system",
        "--bench",
        "goals",
        "--",
    ];
    let mut command = step::cargo(goals);
    let status = step::status(command.args(arguments))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
