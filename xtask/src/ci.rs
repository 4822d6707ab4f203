//! `cargo xtask ci`: everything that is checked before a change is accepted.

mod killed_demo;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{arch, crash, examples, lint, simulate, step, test};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("lint", lint::run),
    ("arch", arch::run),
    ("test", test::run),
    ("examples", examples::run),
    ("simulate", simulate::run),
    ("crash", crash::some),
    ("demo", killed_demo::run),
];

/// Runs all checks, the later ones also after one that failed, and says how each went.
pub(crate) fn run() -> Result<()> {
    let results: Vec<_> = CHECKS.iter().map(timed).collect();
    for ((name, _), (result, time)) in CHECKS.iter().zip(&results) {
        let mark = if result.is_ok() { "✓" } else { "✗" };
        eprintln!("{mark} {name:<8} {:>4} s", time.as_secs());
    }
    let failed = CHECKS
        .iter()
        .zip(&results)
        .filter(|(_, (result, _))| result.is_err());
    let failed: Vec<_> = failed.map(|((name, _), _)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn timed((name, check): &Check) -> (Result<()>, Duration) {
    step::say(&format!("[{name}]"));
    let start = Instant::now();
    let result = check();
    if let Err(error) = &result {
        eprintln!("✗ {name}: {error:#}");
    }
    (result, start.elapsed())
}
