//! The demo, once in peace and once killed again and again: both must end with the same portfolio.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::MetadataCommand;
use serde_json::Value;

use crate::step;

const CANDLES: &str = "5000";
const DELIVERIES_A_LIFE: &str = "2000";
/// Far more than one life takes.
const LIFETIME: Duration = Duration::from_secs(300);
/// Far more lives than the candles need.
const LIVES: u32 = 100;

/// Runs the demo both ways and compares.
pub(super) fn run() -> Result<()> {
    step::run(&mut step::cargo([
        "build",
        "--release",
        "--package",
        "event-system",
        "--example",
        "trading",
    ]))?;
    let target = MetadataCommand::new()
        .no_deps()
        .exec()?
        .target_directory
        .into_std_path_buf();
    let folder = target.join("ci");
    fs::create_dir_all(&folder).context("no folder for the databases could be made")?;
    let demo = Demo {
        program: target.join("release/examples/trading"),
    };

    let peaceful = demo.in_peace(&folder.join("demo.db"))?;
    let (killed, kills) = demo.killed(&folder.join("demo-killed.db"))?;
    ensure!(
        kills > 0,
        "the demo was never killed: --crash-after {DELIVERIES_A_LIFE} did nothing"
    );
    let (expected, actual) = (checksum(&peaceful)?, checksum(&killed)?);
    ensure!(
        expected == actual,
        "the portfolio after {kills} kills is {actual}, without one it is {expected}"
    );
    step::say(&format!("the same portfolio after {kills} kills: {actual}"));
    Ok(())
}

struct Demo {
    program: PathBuf,
}

impl Demo {
    fn in_peace(&self, db: &Path) -> Result<Value> {
        match self.life(db, &["--fresh"])? {
            Some(report) => Ok(report),
            None => bail!("the demo was killed, though nobody asked for it"),
        }
    }

    /// The report of the life that came to its end, and how many did not.
    fn killed(&self, db: &Path) -> Result<(Value, u32)> {
        let mut fresh = Some("--fresh");
        for kills in 0..LIVES {
            let arguments = ["--crash-after", DELIVERIES_A_LIFE]
                .into_iter()
                .chain(fresh.take());
            if let Some(report) = self.life(db, &arguments.collect::<Vec<_>>())? {
                return Ok((report, kills));
            }
        }
        bail!("the demo did not finish in {LIVES} lives")
    }

    /// One life of the process: its report if it came to its end, nothing if it was killed.
    fn life(&self, db: &Path, arguments: &[&str]) -> Result<Option<Value>> {
        let mut command = Command::new(&self.program);
        command
            .args(["--candles", CANDLES, "--json", "--db"])
            .arg(db)
            .args(arguments);
        let output = step::output_within(&mut command, LIFETIME)?;
        match output.status.code() {
            None => Ok(None),
            Some(0) => {
                let report =
                    serde_json::from_slice(&output.stdout).context("the demo printed no JSON")?;
                clean(&report)?;
                Ok(Some(report))
            }
            Some(code) => bail!("the demo failed (exit code {code})"),
        }
    }
}

/// Checks that nothing was lost and nothing was out of order.
fn clean(report: &Value) -> Result<()> {
    for field in ["lost", "order_violations"] {
        let count = report[field]
            .as_u64()
            .with_context(|| format!("the report has no `{field}`"))?;
        ensure!(count == 0, "the demo reports `{field}`: {count}");
    }
    Ok(())
}

fn checksum(report: &Value) -> Result<&Value> {
    let checksum = &report["portfolio_checksum"];
    ensure!(
        !checksum.is_null(),
        "the report has no `portfolio_checksum`"
    );
    Ok(checksum)
}
