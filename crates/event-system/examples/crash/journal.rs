//! What a process has promised, a line a fact: each is one append, which outlives a SIGKILL.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Signal, getpid, kill_process};

use crate::events::Who;

/// How a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Ok,
    Failed,
    Permanent,
}

/// A delivery: who, and the position of the event.
pub(crate) type Delivery = (Who, u64);

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// The event with this number was accepted at a position.
    Accepted(u64, u64),
    /// A delivery that may be a repeat is to be recorded as started.
    Starting(Delivery),
    /// A handler begins: attempt, whether it may be a repeat, whether it is a replay.
    Began(Delivery, u32, bool, bool),
    /// A handler is about to return.
    Ended(Delivery, u32, How, bool),
    /// A save with so many attempts of a delivery that waits is committed; whether it is a replay.
    Counted(Delivery, u32, bool),
    /// A save is committed.
    Saved,
    /// A dead letter is about to be discarded.
    Discarding(Delivery),
    /// The subscription is paused.
    Paused(Who),
    /// The subscription is about to be resumed.
    Resuming(Who),
    /// The subscription is resumed.
    Resumed(Who),
    /// The bus has stopped; whether nothing was cut off and all progress saved.
    Stopped(bool),
    /// The process has come to the end that was meant for it.
    Met,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Accepted(number, position) => write!(f, "accepted {number} {position}"),
            Self::Starting((who, at)) => write!(f, "starting {who} {at}"),
            Self::Began((who, at), attempt, repeat, replay) => {
                write!(f, "began {who} {at} {attempt} {repeat} {replay}")
            }
            Self::Ended((who, at), attempt, how, replay) => {
                write!(f, "ended {who} {at} {attempt} {how:?} {replay}")
            }
            Self::Counted((who, at), attempts, replay) => {
                write!(f, "counted {who} {at} {attempts} {replay}")
            }
            Self::Saved => f.write_str("saved"),
            Self::Discarding((who, at)) => write!(f, "discarding {who} {at}"),
            Self::Paused(who) => write!(f, "paused {who}"),
            Self::Resuming(who) => write!(f, "resuming {who}"),
            Self::Resumed(who) => write!(f, "resumed {who}"),
            Self::Stopped(clean) => write!(f, "stopped {clean}"),
            Self::Met => f.write_str("met"),
        }
    }
}

impl FromStr for Fact {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        let at = |place: usize| words.get(place).copied().context("a word is missing");
        let delivery = || Ok::<_, anyhow::Error>((at(0)?.parse()?, at(1)?.parse()?));
        Ok(match kind {
            "accepted" => Self::Accepted(at(0)?.parse()?, at(1)?.parse()?),
            "starting" => Self::Starting(delivery()?),
            "began" => {
                let (repeat, replay) = (at(3)?.parse()?, at(4)?.parse()?);
                Self::Began(delivery()?, at(2)?.parse()?, repeat, replay)
            }
            "ended" => {
                let how = match at(3)? {
                    "Ok" => How::Ok,
                    "Failed" => How::Failed,
                    _ => How::Permanent,
                };
                Self::Ended(delivery()?, at(2)?.parse()?, how, at(4)?.parse()?)
            }
            "counted" => Self::Counted(delivery()?, at(2)?.parse()?, at(3)?.parse()?),
            "saved" => Self::Saved,
            "discarding" => Self::Discarding(delivery()?),
            "paused" => Self::Paused(at(0)?.parse()?),
            "resuming" => Self::Resuming(at(0)?.parse()?),
            "resumed" => Self::Resumed(at(0)?.parse()?),
            "stopped" => Self::Stopped(at(0)?.parse()?),
            "met" => Self::Met,
            _ => anyhow::bail!("no fact begins with {kind:?}"),
        })
    }
}

/// The journal, open for writing.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(file.context("the journal was not opened")?))
    }

    /// Writes a fact down, or ends the process: what is not in the journal must not happen.
    pub(crate) fn note(&self, fact: &Fact) {
        let line = format!("{fact}\n");
        // One call a line: appends of several threads do not mix.
        if (&self.0).write_all(line.as_bytes()).is_err() {
            std::process::exit(4);
        }
    }

    /// Kills this process, as it was meant to end here.
    pub(crate) fn die(&self) -> ! {
        self.note(&Fact::Met);
        loop {
            // Nothing but the operating system is asked, and nobody is told.
            let _ = kill_process(getpid(), Signal::KILL);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The facts of a journal; of the last line, some may be missing.
pub(crate) fn read(path: &Path) -> Result<Vec<Fact>> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(Vec::new());
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().map(str::parse).collect()
}
