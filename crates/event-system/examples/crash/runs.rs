//! Many runs, some at a time, and what came of them.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::Result;

use crate::{
    plan::{End, Runs},
    run::{self, Outcome},
};

/// What came of all runs.
#[derive(Default)]
struct Sum {
    runs: u64,
    failed: u64,
    events: u64,
    attempts: u64,
    repeats: u64,
    lost: u64,
    crashed: u64,
    pruned: u64,
    ends: BTreeMap<Option<End>, u64>,
}

/// Makes all runs; says which of them failed, and in the last line what came of all.
#[expect(clippy::print_stdout, reason = "a person reads it")]
pub(crate) fn all(runs: &Runs) -> Result<ExitCode> {
    let program = env::current_exe()?;
    let root = tempfile::tempdir()?;
    let first = runs.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    // Half of the time a life waits for what is to end it.
    let jobs = runs.jobs.unwrap_or(2 * processors).max(1);
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= runs.runs {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    let outcome = in_folder(&program, root.path(), seed);
                    if let Some(fault) = &outcome.fault {
                        println!("✗ seed {seed}, {fault}");
                    }
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.add(&outcome);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{}, {} s (seed {first})",
        sum.told(),
        begun.elapsed().as_secs()
    );
    Ok(match sum.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Makes a run in a folder of its own. That of one that failed is kept.
fn in_folder(program: &Path, root: &Path, seed: u64) -> Outcome {
    let folder = root.join(format!("crash-{seed}"));
    if let Err(error) = fs::create_dir(&folder) {
        return Outcome {
            fault: Some(format!("no folder: {error}")),
            ..Outcome::default()
        };
    }
    let mut outcome = run::make(program, &folder, seed);
    if let Some(fault) = &mut outcome.fault {
        let kept = env::temp_dir().join(format!("crash-{seed}"));
        let _ = fs::remove_dir_all(&kept);
        if fs::rename(&folder, &kept).is_ok() {
            fault.push_str(&format!("\n  its files are in {}", kept.display()));
        }
    } else {
        let _ = fs::remove_dir_all(&folder);
    }
    outcome
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        let figures = outcome.figures;
        self.runs += 1;
        self.failed += u64::from(outcome.fault.is_some());
        self.events += figures.events;
        self.attempts += figures.attempts;
        self.repeats += figures.repeats;
        self.lost += figures.lost;
        self.crashed += figures.crashed;
        self.pruned += figures.pruned;
        for (end, count) in &outcome.ends {
            *self.ends.entry(*end).or_default() += count;
        }
    }

    fn told(&self) -> String {
        let is_kill = |end: Option<End>| !matches!(end, Some(End::Clean | End::Settled));
        let kills = self.ends.iter().filter(|(end, _)| is_kill(**end));
        let total: u64 = kills.clone().map(|(_, count)| count).sum();
        let named = kills.map(|(end, count)| match end {
            Some(end) => format!("{end:?} {count}"),
            None => format!("late {count}"),
        });
        let named: Vec<_> = named.collect();
        format!(
            "{} runs, {} failed; {total} kills ({}); {} events, {} of them pruned, {} attempts, {} repeats, {} lost, \
             {} given up as crashed",
            self.runs,
            self.failed,
            named.join(", "),
            self.events,
            self.pruned,
            self.attempts,
            self.repeats,
            self.lost,
            self.crashed
        )
    }
}
