//! Our tables in the database of an application that has migrations of its own (P7).

use std::{fs, path::Path};

use diesel::{Connection, RunQueryDsl, SqliteConnection, sql_query};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use domain_events::{EventStore, Position};
use event_store_diesel::{SqliteEventStore, SqliteOptions, append_in, prepare_connection};
use event_testkit::event_store::noted;
use tempfile::tempdir;

/// A step of the application's.
fn step(folder: &Path, version: &str, table: &str) {
    let step = folder.join(format!("{version}_{table}"));
    fs::create_dir_all(&step).unwrap();
    let (up, down) = (
        format!("CREATE TABLE {table} (x)"),
        format!("DROP TABLE {table}"),
    );
    fs::write(step.join("up.sql"), up).unwrap();
    fs::write(step.join("down.sql"), down).unwrap();
}

fn options() -> SqliteOptions {
    SqliteOptions {
        share_database: true,
        ..SqliteOptions::default()
    }
}

/// Before and after ours, and with the same table of versions.
#[tokio::test]
async fn p7_an_application_and_the_store_each_make_their_own_steps() {
    let dir = tempdir().unwrap();
    let (file, steps) = (dir.path().join("shop.db"), dir.path().join("migrations"));
    let mut conn = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    step(&steps, "2025-01-01-000000", "first");
    let migrate = |conn: &mut SqliteConnection| {
        let own = FileBasedMigrations::from_path(&steps).unwrap();
        conn.run_pending_migrations(own).unwrap().len()
    };
    assert_eq!(migrate(&mut conn), 1);
    SqliteEventStore::open(&file, SqliteOptions::default()).unwrap_err();
    let store = SqliteEventStore::open(&file, options()).unwrap();
    step(&steps, "2027-01-01-000000", "second");
    assert_eq!(migrate(&mut conn), 1);
    store.close().await;

    let store = SqliteEventStore::open(&file, options()).unwrap();
    prepare_connection(&mut conn, &options()).unwrap();
    let appended = conn.immediate_transaction(|conn| -> Result<_, diesel::result::Error> {
        sql_query("INSERT INTO first VALUES (1)").execute(conn)?;
        Ok(append_in(conn, [noted("a", "")]).unwrap())
    });
    assert_eq!(appended.unwrap()[0].event.position(), Some(Position::FIRST));
    assert_eq!(store.head().await.unwrap(), Position::FIRST);
    assert!(store.verify().await.unwrap().is_sound());
    // By its version it is found; the last of all steps is one of ours, which it does not know.
    let own = || FileBasedMigrations::from_path(&steps).unwrap();
    assert!(conn.revert_last_migration(own()).is_err());
    let known =
        diesel::migration::MigrationSource::<diesel::sqlite::Sqlite>::migrations(&own()).unwrap();
    let second = known
        .iter()
        .find(|it| it.name().to_string().ends_with("second"));
    conn.revert_migration(second.unwrap()).unwrap();
    sql_query("SELECT * FROM second")
        .execute(&mut conn)
        .unwrap_err();
    store.close().await;
}
