//! The performance goals, measured: `cargo xtask bench [names…] [--quick] [--json]`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring program prints figures"
)]

mod crowd;
mod durable;
mod events;
mod measure;
mod memory;
mod process;
mod read;
mod reference;
mod report;
mod rest;
mod transaction;

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use measure::{Figure, Scale};

type Measure = fn(Scale) -> Result<Vec<Figure>>;

const GOALS: &[(&str, Measure)] = &[
    ("memory/throughput", memory::throughput),
    ("memory/single", memory::single),
    ("memory/fanout", crowd::fanout),
    ("memory/hot-aggregate", memory::hot_aggregate),
    ("memory/aggregates", crowd::aggregates),
    ("memory/waiting", crowd::waiting),
    ("memory/latency", crowd::latency),
    ("memory/slow-neighbour", memory::slow_neighbour),
    ("memory/bound", memory::bound),
    ("durable/one", durable::one),
    ("durable/concurrent", durable::concurrent),
    ("durable/batch", durable::batch),
    ("durable/transaction", transaction::transaction),
    ("durable/subscriptions", durable::subscriptions),
    ("durable/failing", durable::failing),
    ("read/history", read::history),
    ("read/scan", read::scan),
    ("recovery/backlog", durable::backlog),
    ("reference/1000", durable::reference_1000),
    ("start/empty", rest::start_empty),
    ("idle/cpu", rest::idle_cpu),
];

/// Measures the goals whose names begin with one of the given ones, or all.
#[derive(Parser)]
struct Options {
    /// Names, or their beginnings.
    names: Vec<String>,
    /// A tenth of the work and three runs; the verdict is provisional.
    #[arg(long)]
    quick: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Measures this goal in this process.
    #[arg(long, hide = true)]
    alone: Option<String>,
    /// Fills a store with events that nobody has handled.
    #[arg(long, hide = true, num_args = 2, value_names = ["FILE", "EVENTS"])]
    fill: Option<Vec<String>>,
    /// What cargo gives to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(name) = &options.alone {
        println!("{}", serde_json::to_string(&options.measure_here(name)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some([file, events]) = options.fill.as_deref() {
        durable::fill(&PathBuf::from(file), events.parse()?, durable::AGGREGATES)?;
        return Ok(ExitCode::SUCCESS);
    }
    measure_and_report(&options)
}

fn measure_and_report(options: &Options) -> Result<ExitCode> {
    let chosen: Vec<_> = GOALS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| options.chose(name))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no goal begins with {}",
        options.names.join(" or ")
    );
    let mut figures = Vec::new();
    for name in chosen {
        eprintln!("measuring {name}");
        figures.extend(options.measure(name)?);
    }
    if options.json {
        println!("{}", report::json(&figures)?);
    } else {
        println!("{}", report::table(&figures));
    }
    // Quick figures are too rough to fail for, wrong answers never are.
    let wrong = figures.iter().any(|figure| figure.error.is_some());
    let missed = !options.quick && figures.iter().any(|figure| !figure.ok());
    Ok(if wrong || missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Options {
    fn chose(&self, name: &str) -> bool {
        self.names.is_empty()
            || self
                .names
                .iter()
                .any(|chosen| name.starts_with(chosen.as_str()))
    }

    /// The figures of one goal, or what went wrong in its place.
    fn measure_here(&self, name: &str) -> Result<Vec<Figure>> {
        let (_, measure) = GOALS
            .iter()
            .find(|(known, _)| *known == name)
            .context("no such goal")?;
        let measured = measure(Scale { quick: self.quick });
        Ok(measured.unwrap_or_else(|error| vec![Figure::wrong(name, &format!("{error:#}"))]))
    }

    /// Measures one goal in a process of its own, so that none finds the memory of another.
    fn measure(&self, name: &str) -> Result<Vec<Figure>> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--alone", name]);
        if self.quick {
            command.arg("--quick");
        }
        let output = command.stderr(std::process::Stdio::inherit()).output()?;
        ensure!(
            output.status.success(),
            "{name} was not measured ({})",
            output.status
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("{name} gave no figures"))
    }
}
