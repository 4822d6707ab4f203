//! The order in which subscriptions saw events, in a file that survives a kill.
//!
//! One line a run (`run`) and one a sighting (`subscription aggregate-type aggregate-id position
//! attempt`), separated by tabs. Each line is one unbuffered append: what was written before a
//! SIGKILL is there after it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// The beginning of an attempt, as its handler saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting<'a> {
    pub(crate) subscription: &'a str,
    pub(crate) aggregate_type: &'a str,
    pub(crate) aggregate_id: &'a str,
    pub(crate) position: u64,
    pub(crate) attempt: u32,
}

/// The trace, open for writing.
#[derive(Debug)]
pub(crate) struct Trace(File);

impl Trace {
    /// Opens the trace at `path`, creates it where there is none, and begins a run.
    ///
    /// # Errors
    /// When the file cannot be opened or written.
    pub(crate) fn begin_run(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(b"run\n")?;
        Ok(Self(file))
    }

    /// Appends a sighting.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn note(&self, sighting: &Sighting<'_>) -> io::Result<()> {
        let Sighting {
            subscription,
            aggregate_type,
            aggregate_id,
            position,
            attempt,
        } = sighting;
        let line =
            format!("{subscription}\t{aggregate_type}\t{aggregate_id}\t{position}\t{attempt}\n");
        // One call a line: appends of several threads do not mix.
        (&self.0).write_all(line.as_bytes())
    }
}

/// The number of the last run in the text of a trace; it may have seen nothing.
pub(crate) fn runs(text: &str) -> usize {
    text.lines().filter(|line| *line == "run").count()
}

/// The sightings in the text of a trace, each with the number of its run, in order.
pub(crate) fn sightings(text: &str) -> impl Iterator<Item = (u32, Option<Sighting<'_>>)> {
    let lines = text.lines().scan(0, |run, line| {
        *run += u32::from(line == "run");
        Some((*run, line))
    });
    lines
        .filter(|(_, line)| *line != "run")
        .map(|(run, line)| (run, sighting(line)))
}

fn sighting(line: &str) -> Option<Sighting<'_>> {
    let mut fields = line.split('\t');
    let sighting = Sighting {
        subscription: fields.next()?,
        aggregate_type: fields.next()?,
        aggregate_id: fields.next()?,
        position: fields.next()?.parse().ok()?,
        attempt: fields.next()?.parse().ok()?,
    };
    fields.next().is_none().then_some(sighting)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Sighting<'static> = Sighting {
        subscription: "risk",
        aggregate_type: "book",
        aggregate_id: "KRW-BTC",
        position: 7,
        attempt: 2,
    };

    #[test]
    fn runs_follow_one_another_in_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        for _ in 0..2 {
            Trace::begin_run(&path).unwrap().note(&SEEN).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let seen: Vec<_> = sightings(&text).collect();
        assert_eq!(seen, [(1, Some(SEEN)), (2, Some(SEEN))]);
        drop(Trace::begin_run(&path).unwrap());
        assert_eq!(runs(&std::fs::read_to_string(&path).unwrap()), 3);
    }

    #[test]
    fn a_line_that_is_not_a_sighting_is_not_passed_over() {
        let seen: Vec<_> = sightings("run\nrisk\tbook\n").collect();
        assert_eq!(seen, [(1, None)]);
    }
}
