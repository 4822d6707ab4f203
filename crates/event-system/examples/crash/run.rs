//! One run: the lives of a process over one file, judged one after the other.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use event_store_diesel::{SqliteEventStore, SqliteOptions};

use crate::{
    journal::{self, Fact},
    judge::{Figures, Judge},
    older,
    plan::{self, End, Life},
    snapshot::Snapshot,
};

/// How long a life may last.
const LIFETIME: Duration = Duration::from_secs(90);

/// SIGABRT and SIGKILL, as the kernel numbers them.
const KILLED: [i32; 2] = [6, 9];

/// What came of a run.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Figures,
    /// How many lives met each end; `None` where it did not come, and they were killed all the same.
    pub(crate) ends: BTreeMap<Option<End>, u64>,
    /// What went wrong, and in which life.
    pub(crate) fault: Option<String>,
}

/// Makes the run with this seed, in this folder.
pub(crate) fn make(program: &Path, folder: &Path, seed: u64) -> Outcome {
    let mut outcome = Outcome::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let mut judge = Judge::default();
    for life in plan::lives(folder, seed) {
        let lived = runtime
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
            .and_then(|runtime| runtime.block_on(judged(program, &life, &mut judge)));
        match lived {
            Ok(end) => *outcome.ends.entry(end).or_default() += 1,
            Err(error) => judge.faults.push(format!("{error:?}")),
        }
        let faults = std::mem::take(&mut judge.faults);
        if !faults.is_empty() {
            outcome.fault = Some(told(&life, &faults));
            break;
        }
    }
    outcome.figures = judge.figures;
    outcome
}

fn told(life: &Life, faults: &[String]) -> String {
    let shown = faults.iter().take(8).map(|fault| format!("\n  {fault}"));
    let shown: String = shown.collect();
    let Life {
        number, end, nth, ..
    } = life;
    let count = faults.len();
    format!("life {number} ({end:?} {nth}): {count} faults{shown}")
}

/// Has a life lived and judged. Returns the end that it met.
async fn judged(program: &Path, life: &Life, judge: &mut Judge) -> Result<Option<End>> {
    let folder = &life.folder;
    let journal = folder.join("journal");
    let status = lived(program, life)?;
    let facts = journal::read(&journal)?;
    fs::rename(&journal, folder.join(format!("journal-{}", life.number))).ok();
    check_status(life, status)?;
    let after = Snapshot::take(folder, &judge.before).await?;
    judge.life(&facts, after);
    if life.end == End::Settled {
        judge.check_settled();
        let file = folder.join("events.db");
        let reader = SqliteEventStore::open_to_read(file, SqliteOptions::default())?;
        let found = reader.verify().await?;
        reader.close().await;
        judge
            .faults
            .extend(found.findings.iter().map(ToString::to_string));
    }
    if life.peaceful {
        older::take_back(&folder.join("events.db"))?;
        judge.before = Snapshot::take(folder, &judge.before).await?;
    }
    let is_met = match life.end {
        End::Random | End::Clean | End::Settled => true,
        _ => facts.contains(&Fact::Met),
    };
    if is_met && life.end == End::Aborted {
        judge.aborted();
    }
    Ok(is_met.then_some(life.end))
}

/// Has a life lived, and ends it where nothing else does.
fn lived(program: &Path, life: &Life) -> Result<ExitStatus> {
    let said = File::create(life.folder.join(format!("stderr-{}", life.number)))?;
    let mut child = Command::new(program)
        .args(arguments(life))
        .current_dir(&life.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .spawn()?;
    if life.end == End::Random {
        thread::sleep(Duration::from_millis(life.nth));
        child.kill()?;
        return Ok(child.wait()?);
    }
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > LIFETIME {
            child.kill()?;
            child.wait()?;
            bail!("it did not end within {} s", LIFETIME.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn arguments(life: &Life) -> Vec<String> {
    let text = |it: Option<clap::builder::PossibleValue>| {
        it.map(|it| it.get_name().to_owned()).unwrap_or_default()
    };
    let mut arguments = vec![
        "live".to_owned(),
        format!("--folder={}", life.folder.display()),
        format!("--seed={}", life.seed),
        format!("--number={}", life.number),
        format!("--end={}", text(life.end.to_possible_value())),
        format!("--nth={}", life.nth),
        format!("--saves={}", text(life.saves.to_possible_value())),
    ];
    arguments.extend(life.deadly.map(|who| format!("--deadly={who}")));
    arguments.extend(life.peaceful.then(|| "--peaceful".to_owned()));
    arguments
}

fn check_status(life: &Life, status: ExitStatus) -> Result<()> {
    let as_meant = match life.end {
        End::Clean | End::Settled => status.success(),
        _ => status.signal().is_some_and(|it| KILLED.contains(&it)),
    };
    if as_meant {
        return Ok(());
    }
    let said = life.folder.join(format!("stderr-{}", life.number));
    let said = fs::read_to_string(said).context("it said nothing")?;
    bail!("it ended with {status}: {}", said.trim())
}
