//! `cargo xtask crash`: a system that is killed again and again, and held to what it had promised.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::step;

/// How many runs are made before a change is accepted.
const RUNS: [&str; 2] = ["--runs", "200"];

/// Makes the runs that the arguments ask for; the exit code says whether all promises were kept.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let example = [
        "run",
        "--quiet",
        "--package",
        "event-system",
        "--example",
        "crash",
        "--",
        "runs",
    ];
    let mut command = step::cargo(example);
    let status = step::status(command.args(arguments))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes the runs that belong to every change.
pub(crate) fn some() -> Result<()> {
    match run(&RUNS.map(str::to_owned))? {
        ExitCode::SUCCESS => Ok(()),
        _ => bail!("a promise was not kept"),
    }
}
