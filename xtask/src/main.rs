//! The tasks of this workspace: `cargo xtask --help` names them.

#![expect(clippy::print_stderr, reason = "a task says what it does")]

mod arch;
mod bench;
mod ci;
mod crash;
mod demo;
mod examples;
mod lint;
mod simulate;
mod step;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// The tasks of this workspace. Each prints the commands it runs, and fails with one line.
#[derive(Parser)]
enum Task {
    /// Runs every test of the workspace: unit, integration and documentation tests.
    Test,
    /// Checks formatting, clippy and rustdoc; every warning is an error.
    Lint,
    /// Checks which crate depends on which, and that migrations are found wherever a crate is built.
    Arch,
    /// Runs the trading example in release; exits with its exit code.
    Demo {
        /// What the example takes: `--help` after `--` lists it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures the performance goals whose names begin with one of the given ones, or all.
    Bench {
        /// Names or their beginnings, `--quick`, `--json`; or `--peers`, for what others reach.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Kills a system again and again, and holds it to what it had promised.
    Crash {
        /// `--runs 200`, `--seed` of the first one, `--jobs`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plays a thousand random programs in memory, and crashes each at every call of its store.
    Simulate,
    /// Runs the short programs of the documentation.
    Examples,
    /// Runs lint, arch, test, examples, simulate, some of the runs of crash, and a short demo that is killed
    /// again and again.
    Ci,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("✗ {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Test => test::run()?,
        Task::Lint => lint::run()?,
        Task::Arch => arch::run()?,
        Task::Demo { arguments } => return demo::run(&arguments),
        Task::Bench { arguments } => return bench::run(&arguments),
        Task::Crash { arguments } => return crash::run(&arguments),
        Task::Simulate => simulate::run()?,
        Task::Examples => examples::run()?,
        Task::Ci => ci::run()?,
    }
    Ok(ExitCode::SUCCESS)
}
