//! A small trading desk on domain events.
//!
//! Candles become events of their market; a strategy, risk, a broker and a portfolio answer one
//! another by events; an audit sees everything. The desk may be killed at any moment and goes on
//! where it was; at the end an independent pass over the closed files says whether anything was
//! lost or out of order.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the command line talks there"
)]

use std::process::ExitCode;

use clap::Parser;

// The domain.
mod decimal;
mod events;

// Where candles come from.
mod feed;
mod input;
mod random;
mod simulation;

// Who answers events.
mod agreement;
mod audit;
mod broker;
mod desk;
mod exchange;
mod portfolio;
mod risk;
mod strategy;

// The run, and what is said of it.
mod console;
mod files;
mod inspection;
mod options;
mod report;
mod run;
mod summary;
mod trace;
mod watch;

fn main() -> ExitCode {
    env_logger::init();
    match run::run(&options::Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(run::Failure::Refused(error)) => told(&error, 2),
        Err(run::Failure::Broken(error)) => told(&error, 1),
    }
}

/// An error with its causes, in one line.
fn told(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("trading: {error:#}");
    ExitCode::from(code)
}
