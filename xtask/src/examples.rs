//! The programs of the documentation: each ends well only where it has done what it shows.

use anyhow::Result;

use crate::step;

/// The short examples of `event-system`; the large ones have tasks of their own.
const EXAMPLES: [&str; 3] = ["outbox", "projection", "sync_domain"];

/// Runs every short example.
pub(crate) fn run() -> Result<()> {
    for example in EXAMPLES {
        let arguments = ["run", "--quiet", "--package", "event-system", "--example"];
        step::run(step::cargo(arguments).arg(example))?;
    }
    Ok(())
}
