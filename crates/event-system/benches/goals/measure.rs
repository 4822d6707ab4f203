//! Medians of alternating runs, and what they are compared with.

use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// A tenth of the work, and fewer runs.
    pub(crate) quick: bool,
}

impl Scale {
    /// The amount of work that is `full` at full scale.
    pub(crate) fn of(self, full: usize) -> usize {
        if self.quick { full / 10 } else { full }
    }

    fn runs(self) -> usize {
        if self.quick { 3 } else { 5 }
    }
}

/// What a figure must reach.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// This many times the reference.
    TimesReference(f64),
    /// At most this many times the reference.
    WithinReference(f64),
    /// At most this, in the unit of the figure.
    AtMost(f64),
    /// Nothing: it is only to be known.
    Stated,
}

/// One goal, measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
    pub(crate) reference: Option<f64>,
    pub(crate) goal: Goal,
    /// Why there is no figure.
    pub(crate) error: Option<String>,
}

impl Figure {
    /// A figure that must be at most `most`.
    pub(crate) fn at_most(name: &str, unit: &str, most: f64, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            reference: None,
            goal: Goal::AtMost(most),
            error: None,
        }
    }

    /// A figure that is only to be known.
    pub(crate) fn stated(name: &str, unit: &str, value: f64) -> Self {
        Self {
            goal: Goal::Stated,
            ..Self::at_most(name, unit, 0.0, value)
        }
    }

    /// A goal whose measurement went wrong: a fast wrong answer is a failure.
    pub(crate) fn wrong(name: &str, error: &str) -> Self {
        Self {
            error: Some(error.to_owned()),
            ..Self::at_most(name, "", 0.0, 0.0)
        }
    }

    /// The figure as a multiple of its reference.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.reference.map(|reference| self.value / reference)
    }

    /// Whether the goal is met.
    pub(crate) fn ok(&self) -> bool {
        let met = match self.goal {
            Goal::TimesReference(least) => self.ratio().is_some_and(|ratio| ratio >= least),
            Goal::WithinReference(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Goal::AtMost(most) => self.value <= most,
            Goal::Stated => true,
        };
        met && self.error.is_none()
    }
}

/// Events a second of both sides, run in turn, as medians.
pub(crate) fn compare(
    name: &str,
    scale: Scale,
    least: f64,
    subject: impl FnMut() -> Result<f64>,
    reference: impl FnMut() -> Result<f64>,
) -> Result<Figure> {
    let goal = (Goal::TimesReference(least), "events/s");
    in_turn(name, scale, goal, subject, reference)
}

/// What both sides need, run in turn, as medians: at most so many times the reference.
pub(crate) fn within(
    name: &str,
    scale: Scale,
    (most, unit): (f64, &str),
    subject: impl FnMut() -> Result<f64>,
    reference: impl FnMut() -> Result<f64>,
) -> Result<Figure> {
    let goal = (Goal::WithinReference(most), unit);
    in_turn(name, scale, goal, subject, reference)
}

fn in_turn(
    name: &str,
    scale: Scale,
    (goal, unit): (Goal, &str),
    mut subject: impl FnMut() -> Result<f64>,
    mut reference: impl FnMut() -> Result<f64>,
) -> Result<Figure> {
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for _ in 0..scale.runs() {
        values.push(subject()?);
        references.push(reference()?);
    }
    Ok(Figure {
        name: name.to_owned(),
        value: median(values),
        unit: unit.to_owned(),
        reference: Some(median(references)),
        goal,
        error: None,
    })
}

/// The median of several runs, which must be at most `most`.
pub(crate) fn limit(
    name: &str,
    scale: Scale,
    (most, unit): (f64, &str),
    mut subject: impl FnMut() -> Result<f64>,
) -> Result<Figure> {
    let values = (0..scale.runs())
        .map(|_| subject())
        .collect::<Result<Vec<_>>>()?;
    Ok(Figure::at_most(name, unit, most, median(values)))
}

/// `count` a second since `start`.
pub(crate) fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
