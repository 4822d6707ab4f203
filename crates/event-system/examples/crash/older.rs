//! A store file of the first format: the newer steps are taken back, as their `down.sql` says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The first format was made by so many steps.
const FIRST_STEPS: usize = 2;

/// Brings the tables of a file that nobody runs back to the first format.
pub(crate) fn take_back(file: &Path) -> Result<()> {
    let conn = rusqlite::Connection::open(file)?;
    // A life may have ended before it had made all of them, or the table that says which.
    let applied = "SELECT count(*) FROM __diesel_schema_migrations WHERE version GLOB 'de*'";
    let applied = conn
        .query_row(applied, [], |row| row.get::<_, u32>(0))
        .unwrap_or(0);
    let applied = steps()?.into_iter().take(usize::try_from(applied)?);
    for step in applied
        .skip(FIRST_STEPS)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        let down = fs::read_to_string(step.join("down.sql"))?;
        let forget = "DELETE FROM __diesel_schema_migrations WHERE version = \
                      (SELECT max(version) FROM __diesel_schema_migrations WHERE version GLOB 'de*')";
        conn.execute_batch(&format!("BEGIN; {down}; {forget}; COMMIT"))?;
    }
    Ok(())
}

/// The folders of the steps, in their order.
fn steps() -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let entries = fs::read_dir(&folder).context("the migrations were not found")?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut steps = paths.collect::<Result<Vec<_>>>()?;
    steps.sort();
    Ok(steps)
}
