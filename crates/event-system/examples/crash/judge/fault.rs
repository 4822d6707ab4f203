//! What a judge finds, and what of it is known of the bus and let pass unless a run is to be strict.

use std::fmt;

use event_store_diesel::{Finding, Rule, Standing};

/// A promise that was not kept.
pub(crate) struct Fault {
    /// What it is known to come from, if it is.
    pub(crate) gap: Option<Gap>,
    text: String,
}

/// What the bus does not keep in every case. Each is to go, with all that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gap {
    /// What an earlier run has left unfinished stays so beside a block that covers it by now (R1).
    Unfinished,
    /// A replay that is asked for while other deliveries of its aggregate run: it is taken for the one that
    /// ends, and lost, and the other one is made again; what is behind in the same run of the aggregate is
    /// passed over and never made; or the retry of one that fails comes before its time (D1, F4, F6).
    Replay,
}

impl Gap {
    fn of(finding: &Finding) -> Option<Self> {
        match (finding.table, &finding.rule) {
            ("de_subscriptions", Rule::Twice(Standing::Blocked)) => Some(Self::Unfinished),
            ("de_dead_letters", Rule::Twice(Standing::Blocked)) => Some(Self::Replay),
            ("de_waiting", Rule::NotBlocked | Rule::Twice(Standing::Blocked)) => Some(Self::Replay),
            _ => None,
        }
    }
}

impl Fault {
    pub(crate) fn new(gap: Option<Gap>, text: String) -> Self {
        Self { gap, text }
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self::new(None, text)
    }
}

impl From<&str> for Fault {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&Finding> for Fault {
    fn from(finding: &Finding) -> Self {
        Self::new(Gap::of(finding), finding.to_string())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gap {
            Some(gap) => write!(f, "{} ({gap:?})", self.text),
            None => f.write_str(&self.text),
        }
    }
}
