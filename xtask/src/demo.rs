//! `cargo xtask demo`: the trading example, in release.

use std::process::ExitCode;

use anyhow::Result;

use crate::step;

/// Runs the example with these arguments; its exit code is the answer.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let example = [
        "run",
        "--release",
        "--package",
        "event-system",
        "--example",
        "trading",
        "--",
    ];
    let mut command = step::cargo(example);
    let status = step::status(command.args(arguments))?;
    // Killed by a signal, a process has no exit code.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
