//! What a person sees while the desk runs.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::inspection::Findings;

/// How many examples of a fault are shown.
const EXAMPLES: usize = 3;

/// Where to talk: on stdout, or beside it where that is for JSON alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    json: bool,
}

impl Console {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn say(self, line: &str) {
        match self.json {
            true => eprintln!("{line}"),
            false => println!("{line}"),
        }
    }

    /// A bar on a terminal, a line every tenth of the way elsewhere.
    pub(crate) fn progress(self, total: usize) -> Progress {
        let bar = stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} candles, {eta}");
            let bar = ProgressBar::new(total as u64);
            style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
        });
        Progress {
            console: self,
            bar,
            total,
            done: 0,
        }
    }

    /// Shows what contradicts the checks; the report has it already where it is a person's.
    pub(crate) fn faults(self, findings: &Findings) {
        if !self.json {
            return;
        }
        for verdict in findings.verdicts.iter().filter(|it| !it.against.is_empty()) {
            eprintln!("✗ {}: {}", verdict.what, examples(&verdict.against));
        }
    }
}

/// How many there are, and the first of them.
pub(crate) fn examples(against: &[String]) -> String {
    let shown = against.iter().take(EXAMPLES).cloned().collect::<Vec<_>>();
    let more = if against.len() > EXAMPLES {
        ", …"
    } else {
        ""
    };
    format!("{} ({}{more})", against.len(), shown.join(", "))
}

/// How far the feeding has come.
#[derive(Debug)]
pub(crate) struct Progress {
    console: Console,
    bar: Option<ProgressBar>,
    total: usize,
    done: usize,
}

impl Progress {
    pub(crate) fn advance(&mut self, by: usize) {
        let tenth = |done: usize| done * 10 / self.total.max(1);
        let (before, now) = (tenth(self.done), tenth(self.done + by));
        self.done += by;
        match &self.bar {
            Some(bar) => bar.set_position(self.done as u64),
            None if now > before => {
                let Self { done, total, .. } = self;
                self.console
                    .say(&format!("{done} of {total} candles published"));
            }
            None => {}
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
