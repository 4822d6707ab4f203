//! The tables and their format: the steps that make them, embedded.

use std::{error::Error, fmt};

use diesel::{QueryResult, SqliteConnection, result};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use domain_events::StoreError;

use crate::{
    database::{self, ConnectError},
    failure,
    place::{Access, Place},
    queries,
};

/// The newest format of the tables that this program knows.
pub(crate) const FORMAT: i64 = 5;

#[cfg(not(migrations_elsewhere))]
const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");
#[cfg(migrations_elsewhere)]
const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations");

/// Makes or updates the tables; each step is a transaction.
pub(crate) fn run(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    conn.run_pending_migrations(MIGRATIONS)
        .map(drop)
        .map_err(|error| {
            let kind = failure::kind_of_message(&chain(&*error));
            StoreError::new(kind, "the tables were not made").caused_by(Cause(error))
        })
}

/// A database in memory with our tables.
pub(crate) fn example() -> QueryResult<SqliteConnection> {
    let failed = |error| result::Error::QueryBuilderError(Box::new(error));
    let conn = database::connect(&Place::Memory, Access::Create);
    let mut conn = conn.map_err(|error: ConnectError| failed(error.into()))?;
    run(&mut conn).map_err(failed)?;
    Ok(conn)
}

/// Our tables, indexes and views, each with its definition.
pub(crate) fn objects() -> QueryResult<Vec<(String, String)>> {
    queries::definitions(&mut example()?)
}

/// What a migration failed with, as an error that can be a source.
#[derive(Debug)]
struct Cause(Box<dyn Error + Send + Sync>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let source = error.source().map_or_else(String::new, chain);
    format!("{error}; {source}")
}

#[cfg(test)]
mod tests {
    use diesel::{Connection, migration::MigrationSource, sqlite::Sqlite};

    use super::*;

    #[test]
    fn the_newest_step_makes_the_format_this_program_knows() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        run(&mut conn).unwrap();
        assert_eq!(queries::format(&mut conn).unwrap(), FORMAT);
    }

    #[test]
    fn every_step_can_be_taken_back() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        run(&mut conn).unwrap();
        conn.revert_all_migrations(MIGRATIONS).unwrap();
        let left = queries::object_names(&mut conn).unwrap();
        assert_eq!(left, ["__diesel_schema_migrations"]);
    }

    #[test]
    fn a_step_that_was_taken_back_makes_the_same_tables_again() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        run(&mut conn).unwrap();
        conn.revert_last_migration(MIGRATIONS).unwrap();
        run(&mut conn).unwrap();
        let again = queries::definitions(&mut conn).unwrap();
        assert_eq!(again, objects().unwrap());
        assert!(
            again
                .iter()
                .any(|(name, _)| name == "de_dead_letters_by_delivery")
        );
    }

    #[test]
    fn every_version_carries_our_prefix() {
        let steps = MigrationSource::<Sqlite>::migrations(&MIGRATIONS).unwrap();
        assert!(!steps.is_empty());
        for step in steps {
            assert!(step.name().version().to_string().starts_with("de"));
        }
    }
}
