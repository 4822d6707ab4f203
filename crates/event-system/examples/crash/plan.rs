//! What is to happen: how many runs, and in each life of one, when it ends and what it meets.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use domain_events::DeliveryChange;

/// What this program does.
#[derive(Parser)]
pub(crate) enum Command {
    /// Runs, each judged.
    Runs(Runs),
    /// One life of a process; started by a run.
    Live(Life),
}

/// How many runs.
#[derive(Args)]
pub(crate) struct Runs {
    /// How many runs to make.
    #[arg(long, default_value_t = 200)]
    pub(crate) runs: u64,
    /// The seed of the first run; each next one has the next.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// How many runs to make at a time; two for each processor unless set.
    #[arg(long)]
    pub(crate) jobs: Option<usize>,
}

/// One life of a process.
#[derive(Args, Clone, Debug)]
pub(crate) struct Life {
    /// The folder of the run.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// Decides everything that is left to chance.
    #[arg(long)]
    pub(crate) seed: u64,
    /// The number of the life in its run, from 0.
    #[arg(long)]
    pub(crate) number: u64,
    /// How the life ends.
    #[arg(long, value_enum)]
    pub(crate) end: End,
    /// At which of the moments that fit.
    #[arg(long, default_value_t = 0)]
    pub(crate) nth: u64,
    /// Which saves count.
    #[arg(long, value_enum, default_value_t = Saves::All)]
    pub(crate) saves: Saves,
    /// The subscription whose handler ends the process, as a number.
    #[arg(long)]
    pub(crate) deadly: Option<usize>,
    /// Whether every handler succeeds and nobody intervenes.
    #[arg(long)]
    pub(crate) peaceful: bool,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum End {
    /// Killed by whoever started it, whatever it is doing.
    Random,
    /// Killed before events are handed to the store.
    BeforeAppend,
    /// Killed once events are committed, before anybody knows.
    AfterAppend,
    /// Killed before a save is handed to the store.
    BeforeSave,
    /// Killed once a save is committed, before the bus knows.
    AfterSave,
    /// Killed in the middle of a handler.
    InHandler,
    /// Killed when a handler is done, before the bus knows.
    AfterHandler,
    /// Killed in the middle of a handler that is in a transaction of the store.
    InTransaction,
    /// Killed once the application has committed an event itself, before the bus is told.
    BeforeWake,
    /// Killed while the tables of an older format are brought to this one.
    InMigration,
    /// Killed while the bus stops and the store closes.
    InClose,
    /// Ended by a handler that aborts the process.
    Aborted,
    /// Stopped and closed.
    Clean,
    /// Everything delivered, replayed or discarded, stopped and closed.
    Settled,
}

/// Saves by what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Saves {
    All,
    Waiting,
    Dead,
    Blocked,
    Unblocked,
    Replayed,
    Discarded,
    Paused,
    Started,
    RunEnded,
}

impl Saves {
    /// Whether a save with such changes counts.
    pub(crate) fn count(self, changes: &[DeliveryChange]) -> bool {
        let is_one = |change: &DeliveryChange| match self {
            Self::All => true,
            Self::Waiting => matches!(change, DeliveryChange::Waiting(..)),
            Self::Dead => matches!(change, DeliveryChange::Dead(..)),
            Self::Blocked => matches!(change, DeliveryChange::Blocked(..)),
            Self::Unblocked => matches!(change, DeliveryChange::Unblocked(..)),
            Self::Replayed => matches!(change, DeliveryChange::Replayed(..)),
            Self::Discarded => matches!(change, DeliveryChange::Discarded { .. }),
            Self::Paused => matches!(change, DeliveryChange::Paused(..)),
            Self::Started => matches!(change, DeliveryChange::Started(..)),
            Self::RunEnded => matches!(change, DeliveryChange::RunEnded),
        };
        changes.iter().any(is_one)
    }
}

/// The plans of the lives of a run.
pub(crate) fn lives(folder: &std::path::Path, seed: u64) -> Vec<Life> {
    let mut random = fastrand::Rng::with_seed(seed);
    let kind = random.u8(..100);
    let deadly = (kind < 12).then(|| random.usize(..3));
    let is_old = (12..22).contains(&kind);
    let ends: Vec<End> = if deadly.is_some() {
        // Recorded from the second life on, found at three ends, and given up in the fifth.
        let mut ends = vec![End::Aborted; 5];
        ends.extend((0..random.usize(..3)).map(|_| end(&mut random)));
        ends
    } else if is_old {
        let mut ends = vec![End::Random, End::InMigration, End::InMigration];
        ends.extend((0..random.usize(1..3)).map(|_| end(&mut random)));
        ends
    } else {
        (0..random.usize(2..6)).map(|_| end(&mut random)).collect()
    };
    let ends = ends.into_iter().chain([End::Settled]);
    let life = |(number, end): (u64, End)| {
        let kinds = Saves::value_variants();
        let saves = match random.bool() {
            true => Saves::All,
            false => kinds[random.usize(..kinds.len())],
        };
        Life {
            folder: folder.to_owned(),
            seed: random.u64(..),
            number,
            end,
            nth: nth(end, saves, &mut random),
            saves,
            deadly,
            peaceful: is_old && number == 0,
        }
    };
    (0..).zip(ends).map(life).collect()
}

fn end(random: &mut fastrand::Rng) -> End {
    let ends = [
        End::Random,
        End::Random,
        End::BeforeAppend,
        End::AfterAppend,
        End::BeforeSave,
        End::BeforeSave,
        End::AfterSave,
        End::AfterSave,
        End::InHandler,
        End::AfterHandler,
        End::AfterHandler,
        End::InTransaction,
        End::InTransaction,
        End::BeforeWake,
        End::InClose,
        End::InClose,
        End::Clean,
    ];
    ends[random.usize(..ends.len())]
}

fn nth(end: End, saves: Saves, random: &mut fastrand::Rng) -> u64 {
    match end {
        End::BeforeAppend | End::AfterAppend => random.u64(..30),
        // What a save may hold is seldom in it.
        End::BeforeSave | End::AfterSave if saves != Saves::All => random.u64(..2),
        End::BeforeSave | End::AfterSave => random.u64(..8),
        End::InHandler | End::AfterHandler => random.u64(..100),
        End::InTransaction => random.u64(..40),
        End::BeforeWake => random.u64(..8),
        // Milliseconds, and below these are some of a millisecond's hundredths.
        End::Random => random.u64(..200),
        End::InMigration | End::InClose => random.u64(..400),
        End::Aborted | End::Clean | End::Settled => 0,
    }
}
