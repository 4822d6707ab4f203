//! What a check of a store has found: each row that breaks a rule, and how much was looked at.

use std::{collections::BTreeMap, fmt};

/// How many findings are kept one by one; the others are counted.
const MOST_KEPT: usize = 1_000;

/// What [`verify`](crate::SqliteEventStore::verify) has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// What is wrong, in the order in which it was found; the first 1,000.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
    /// How many rows of each table were checked.
    pub checked: BTreeMap<&'static str, u64>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        if self.findings.len() < MOST_KEPT {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

/// One line for each finding, or one that says that there is none.
impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: u64 = self.checked.values().sum();
        if self.is_sound() {
            return write!(f, "{rows} rows checked: sound");
        }
        let found = self.findings.len() as u64 + self.more;
        let findings = if found == 1 { "finding" } else { "findings" };
        write!(f, "{rows} rows checked: {found} {findings}")?;
        self.findings
            .iter()
            .try_for_each(|finding| write!(f, "\n{finding}"))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// A row that breaks a rule. Says nothing of what the row holds besides numbers and ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The table, or `"database"`.
    pub table: &'static str,
    /// The row.
    pub row: Row,
    /// The rule that it breaks.
    pub rule: Rule,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, row, rule } = self;
        match row {
            Row::Whole => write!(f, "{table}: {rule}"),
            row => write!(f, "{table}, {row}: {rule}"),
        }
    }
}

/// Which row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Row {
    /// All of them, or the table itself.
    Whole,
    /// The one with this number: a position, a key, an id.
    Number(i64),
    /// A delivery, also where the row is that of its subscription.
    Delivery {
        /// The number of the subscription.
        subscription: i64,
        /// The position of the event.
        position: i64,
    },
    /// An aggregate of a subscription.
    Aggregate {
        /// The number of the subscription.
        subscription: i64,
        /// The key of the aggregate.
        aggregate: i64,
    },
    /// A version of an aggregate.
    Version {
        /// The key of the aggregate.
        aggregate: i64,
        /// The version.
        version: i64,
    },
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("all rows"),
            Self::Number(number) => write!(f, "row {number}"),
            Self::Delivery {
                subscription,
                position,
            } => write!(f, "subscription {subscription}, position {position}"),
            Self::Aggregate {
                subscription,
                aggregate,
            } => write!(f, "subscription {subscription}, aggregate {aggregate}"),
            Self::Version { aggregate, version } => {
                write!(f, "aggregate {aggregate}, version {version}")
            }
        }
    }
}

/// What a delivery can be, besides done: never two of them at once (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Listed in its subscription's progress, and of an aggregate that is not blocked.
    Unfinished,
    /// Waiting for an attempt.
    Waiting,
    /// Of an aggregate that is blocked.
    Blocked,
    /// A dead letter that is not settled.
    Dead,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unfinished => "unfinished",
            Self::Waiting => "waiting",
            Self::Blocked => "blocked",
            Self::Dead => "dead",
        })
    }
}

/// A rule that a row breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// The tables have to be of the format of this program; where they are not, nothing else is checked.
    #[error(
        "the format is {found}, and {known} is the one of this program: nothing else was checked"
    )]
    Format {
        /// The format found; zero where there is not one.
        found: i64,
        /// The format of this program.
        known: i64,
    },
    /// A table, an index or a view has to be there.
    #[error("{0} is missing")]
    Missing(String),
    /// A table, an index or a view has to be as this program makes it.
    #[error("{0} is not as this program makes it")]
    Altered(String),
    /// What SQLite says of the file.
    #[error("{0}")]
    Integrity(String),
    /// What a row refers to has to be there.
    #[error("the row of {0} that it refers to is missing")]
    NoParent(String),
    /// Every row can be read.
    #[error("a row could not be read, and so those behind it were not checked")]
    Unreadable,
    /// The checksum of an event fits its columns and names.
    #[error("the checksum does not match")]
    Checksum,
    /// The key of the event type leads to a name.
    #[error("the event type {0} is missing")]
    NoEventType(i64),
    /// The key of an aggregate leads to one.
    #[error("the aggregate {0} is missing")]
    NoAggregate(i64),
    /// The log was pruned up to one position that was given (R8).
    #[error(
        "there is not one position up to which the log was pruned, or it is not within 0 and {given}"
    )]
    PrunedThrough {
        /// The greatest position that was given.
        given: i64,
    },
    /// Positions have no gaps behind what was pruned.
    #[error("the event before it is missing")]
    PositionGap,
    /// The last event is at the greatest position that was given.
    #[error("the last position is {last}, and {given} was given")]
    LastPosition {
        /// The position of the last event.
        last: i64,
        /// The greatest position that was given.
        given: i64,
    },
    /// The times of recording do not go back.
    #[error("it was recorded earlier than the event before it")]
    RecordedEarlier,
    /// The versions of an aggregate have no gaps behind what was pruned, and begin with 1 before that.
    #[error("the version before it is missing")]
    VersionGap,
    /// The versions of an aggregate follow the order of the log.
    #[error("it is not behind the version before it in the log")]
    VersionOrder,
    /// The head version of an aggregate is its last one.
    #[error("the head version is {head}, and the last version is {last}")]
    Head {
        /// The head version.
        head: i64,
        /// The last version that is there.
        last: i64,
    },
    /// An aggregate has an event, unless the log was pruned.
    #[error("it has no event")]
    NoEvents,
    /// The unfinished positions of a subscription ascend and end with its progress.
    #[error("the unfinished positions cannot be read, or do not ascend to {through}")]
    Progress {
        /// How far the subscription has come.
        through: i64,
    },
    /// The name of an event type is not empty, and not too long.
    #[error("the name is empty or too long")]
    Name,
    /// An attempt has a result that is known.
    #[error("the result is not known")]
    AttemptResult,
    /// A run tells up to where a delivery may be a repeat.
    #[error("what may be a repeat does not end within 0 and {given}")]
    Repeats {
        /// The greatest position that was given.
        given: i64,
    },
    /// A subscription is paused for a reason that is known.
    #[error("the reason of the pause is not known")]
    PauseReason,
    /// A delivery stands in one place (R1).
    #[error("it is {0} as well")]
    Twice(Standing),
    /// What deviates from success lies within the progress of its subscription (R1).
    #[error("it lies behind the progress of its subscription, {through}")]
    BehindProgress {
        /// How far the subscription has come.
        through: i64,
    },
    /// A delivery is of an event.
    #[error("the event is missing")]
    NoEvent,
    /// A delivery is of the aggregate of its event.
    #[error("the event is of another aggregate")]
    OtherAggregate,
    /// The aggregate of a delivery that waits is blocked, where its subscription has blocked ones.
    #[error("the aggregate is not blocked")]
    NotBlocked,
    /// A delivery that waits and is no replay is the first of what is blocked.
    #[error("it is not the first event that is blocked")]
    NotFirst,
    /// A delivery that waits and is no replay was attempted.
    #[error("no attempt was made")]
    NoAttempt,
    /// A number is not below zero.
    #[error("a number is below zero")]
    Negative,
    /// No event of a blocked aggregate has a lower version than those that wait.
    #[error("its version leaves out an event that waits")]
    BlockedVersion,
    /// What is parked is parked behind a dead letter, or behind its replay.
    #[error("it is parked behind no dead letter")]
    ParkedBehindNothing,
    /// A dead letter has a reason that is known.
    #[error("the reason is not known")]
    LetterReason,
    /// A dead letter is settled as something that is known, and at a time, or neither.
    #[error("it is settled in part, or as something that is not known")]
    Settlement,
}
