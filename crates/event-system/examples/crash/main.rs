//! A system that is killed again and again, and a judge who knows what it had promised.
//!
//! A *run* is one store file and several *lives* of a process that publishes to it and handles what is
//! published. Most lives end by SIGKILL: at a random moment, or at a point where it hurts. After each
//! the file is copied and checked, and what it says is held against the journal of the process, which
//! has a line for every promise. Run by `cargo xtask crash`.

#[cfg(unix)]
mod events;
#[cfg(unix)]
mod handlers;
#[cfg(unix)]
mod journal;
#[cfg(unix)]
mod judge;
#[cfg(unix)]
mod life;
#[cfg(unix)]
mod load;
#[cfg(unix)]
mod older;
#[cfg(unix)]
mod own;
#[cfg(unix)]
mod plan;
#[cfg(unix)]
mod run;
#[cfg(unix)]
mod runs;
#[cfg(unix)]
mod snapshot;
#[cfg(unix)]
mod watched;

#[cfg(unix)]
fn main() -> anyhow::Result<std::process::ExitCode> {
    use clap::Parser;
    match plan::Command::parse() {
        plan::Command::Runs(runs) => runs::all(&runs),
        plan::Command::Live(life) => life::live(&life),
    }
}

/// Elsewhere no process can be killed in this way.
#[cfg(not(unix))]
fn main() {}
