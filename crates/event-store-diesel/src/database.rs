//! Connections to the database: opened, set up, and the settings read back.

use diesel::{Connection, SqliteConnection};
use domain_events::{ConfigError, StoreError, StoreErrorKind};

use crate::{
    Durability, OpenError, SqliteOptions, failure, migrations, ownership,
    place::{Access, Identity, Place},
    queries,
};

/// What happened when a connection was to be opened; the caller knows the file.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Config(ConfigError),
    Store(StoreError),
}

impl ConnectError {
    /// The error that `what` did not happen.
    fn that(self, what: &'static str) -> StoreError {
        match self {
            Self::Config(source) => StoreError::new(StoreErrorKind::Other, what).caused_by(source),
            Self::Store(error) => error,
        }
    }

    pub(crate) fn at(self, place: &Place) -> OpenError {
        let path = place.path().to_owned();
        match self {
            Self::Config(source) => OpenError::Config { path, source },
            Self::Store(source) => OpenError::Store { path, source },
        }
    }
}

impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> Self {
        error.that("the database was not opened")
    }
}

/// Opens the place for the first time: makes or updates the tables, or refuses it as it is.
pub(crate) fn create(
    place: &Place,
    options: &SqliteOptions,
) -> Result<SqliteConnection, OpenError> {
    let mut conn = patient(place, Access::Create, options).map_err(|error| error.at(place))?;
    // Looked at again, now that nobody else can have it: before the first byte is written.
    ownership::check(&mut conn, place, options.share_database)?;
    set_up_writer(&mut conn, place, options).map_err(|error| error.at(place))?;
    migrations::run(&mut conn).map_err(|error| ConnectError::Store(error).at(place))?;
    // A file that may not be written to is opened all the same, as if it were only to be read.
    queries::check_writable(&mut conn).map_err(|error| not_set(error).at(place))?;
    Ok(conn)
}

/// A connection that writes to what [`create`] has made.
pub(crate) fn writer(
    place: &Place,
    identity: Identity,
    options: &SqliteOptions,
) -> Result<SqliteConnection, ConnectError> {
    let mut conn = again(place, identity, options)?;
    set_up_writer(&mut conn, place, options)?;
    Ok(conn)
}

/// Refuses a place where there is nothing to read.
pub(crate) fn look(place: &Place, options: &SqliteOptions) -> Result<(), OpenError> {
    if !place.path().exists() {
        let path = place.path().to_owned();
        return Err(OpenError::NoStore { path });
    }
    ownership::check_is_file(place)?;
    let access = ownership::access(place.path());
    let mut conn = patient(place, access, options).map_err(|error| error.at(place))?;
    ownership::check_there(&mut conn, place)?;
    check_version(&mut conn).map_err(|error| error.at(place))
}

/// A connection that copies what [`create`] has made: it writes, but nothing to that.
pub(crate) fn backup(
    place: &Place,
    identity: Identity,
    options: &SqliteOptions,
) -> Result<SqliteConnection, ConnectError> {
    let mut conn = again(place, identity, options)?;
    set_up(&mut conn, &durable())?;
    Ok(conn)
}

/// A connection that reads what [`create`] has made.
pub(crate) fn reader(
    place: &Place,
    identity: Identity,
    options: &SqliteOptions,
) -> Result<SqliteConnection, ConnectError> {
    // One that could not write would leave the files behind that it takes to read. The last to
    // close moves the write-ahead log to the file, whatever it was for.
    let mut conn = again(place, identity, options)?;
    set_up(&mut conn, &durable())?;
    set_up(&mut conn, &[pragma("query_only", 1), cache(options)])?;
    Ok(conn)
}

/// A connection to the file that was opened first, and to no other that has its name by now.
fn again(
    place: &Place,
    identity: Identity,
    options: &SqliteOptions,
) -> Result<SqliteConnection, ConnectError> {
    place.check_is(identity).map_err(ConnectError::Store)?;
    patient(place, Access::Write, options)
}

/// A connection that waits for locks.
pub(crate) fn patient(
    place: &Place,
    access: Access,
    options: &SqliteOptions,
) -> Result<SqliteConnection, ConnectError> {
    let mut conn = connect(place, access)?;
    wait_for_locks(&mut conn, options)?;
    Ok(conn)
}

fn wait_for_locks(
    conn: &mut SqliteConnection,
    options: &SqliteOptions,
) -> Result<(), ConnectError> {
    set_up(
        conn,
        &[pragma("busy_timeout", options.busy_timeout.as_millis())],
    )
}

/// Sets a connection of the application up to write, as the options say.
pub(crate) fn prepare(
    conn: &mut SqliteConnection,
    options: &SqliteOptions,
) -> Result<(), StoreError> {
    let prepared = wait_for_locks(conn, options).and_then(|()| set_up_commits(conn, options));
    prepared.map_err(|error| error.that("the connection was not prepared"))
}

/// A connection as SQLite makes it; it knows no settings of ours.
pub(crate) fn connect(place: &Place, access: Access) -> Result<SqliteConnection, ConnectError> {
    SqliteConnection::establish(&place.uri(access))
        .map_err(|error| ConnectError::Store(failure::connection_error(error)))
}

fn set_up_writer(
    conn: &mut SqliteConnection,
    place: &Place,
    options: &SqliteOptions,
) -> Result<(), ConnectError> {
    set_up_commits(conn, options)?;
    set_up(conn, &[cache(options)])?;
    if let Some(pages) = options.max_pages {
        set_up(conn, &[pragma("max_page_count", pages)])?;
    }
    match place {
        Place::File(_) => set_wal(conn),
        Place::Memory => Ok(()),
    }
}

/// Sets what the commits of a connection survive, and what they do to the write-ahead log.
fn set_up_commits(
    conn: &mut SqliteConnection,
    options: &SqliteOptions,
) -> Result<(), ConnectError> {
    check_version(conn)?;
    let synchronous = match options.durability {
        Durability::Full => 2,
        Durability::Normal => 1,
    };
    set_up(conn, &durable())?;
    let settings = [
        pragma("synchronous", synchronous),
        pragma("foreign_keys", 1),
        pragma("wal_autocheckpoint", options.checkpoint_pages),
        // A reader may have made it grow; else it would stay so until the last connection closes.
        pragma("journal_size_limit", wal_limit(options)),
    ];
    set_up(conn, &settings)
}

/// How many bytes of the write-ahead log stay when it begins anew: twice what is in it at a checkpoint.
fn wal_limit(options: &SqliteOptions) -> i64 {
    const PAGE_BYTES: i64 = 4_096;
    2 * PAGE_BYTES * i64::from(options.checkpoint_pages)
}

struct Pragma {
    name: &'static str,
    value: i64,
}

fn pragma(name: &'static str, value: impl TryInto<i64>) -> Pragma {
    let value = value.try_into().unwrap_or(i64::MAX);
    Pragma { name, value }
}

/// What makes that which is written survive a loss of power.
fn durable() -> [Pragma; 3] {
    [
        pragma("synchronous", 2),
        // Without these, macOS answers before the disk has the data.
        pragma("fullfsync", 1),
        pragma("checkpoint_fullfsync", 1),
    ]
}

/// A negative cache size is one in KiB.
fn cache(options: &SqliteOptions) -> Pragma {
    pragma("cache_size", -i64::from(options.cache_kib))
}

/// Sets each and reads it back: SQLite ignores what it does not know or cannot do.
fn set_up(conn: &mut SqliteConnection, settings: &[Pragma]) -> Result<(), ConnectError> {
    for &Pragma { name, value } in settings {
        queries::set_pragma(conn, name, &value.to_string()).map_err(not_set)?;
        let found = queries::pragma_number(conn, name).map_err(not_set)?;
        if found != value {
            return Err(not_taken(name, &found.to_string(), &value.to_string()));
        }
    }
    Ok(())
}

fn set_wal(conn: &mut SqliteConnection) -> Result<(), ConnectError> {
    let (name, value) = ("journal_mode", "wal");
    queries::set_pragma(conn, name, value).map_err(not_set)?;
    let found = queries::pragma_text(conn, name).map_err(not_set)?;
    match found == value {
        true => Ok(()),
        false => Err(not_taken(name, &found, value)),
    }
}

fn not_set(error: diesel::result::Error) -> ConnectError {
    ConnectError::Store(failure::store_error("the database was not set up", error))
}

fn not_taken(name: &str, found: &str, wanted: &str) -> ConnectError {
    ConnectError::Config(ConfigError::new(format!("PRAGMA {name}"), found, wanted))
}

/// Older ones can corrupt a database in WAL mode when two connections write or checkpoint at once.
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];

fn check_version(conn: &mut SqliteConnection) -> Result<(), ConnectError> {
    let found = queries::sqlite_version(conn).map_err(not_set)?;
    if is_recent(&found) {
        return Ok(());
    }
    let allowed = "3.51.3 and later: older ones can corrupt the database";
    Err(ConnectError::Config(ConfigError::new(
        "SQLite", found, allowed,
    )))
}

fn is_recent(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0)) >= OLDEST_SQLITE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlite_that_corrupts_is_told_from_one_that_does_not() {
        for (version, recent) in [
            ("3.51.2", false),
            ("3.51.3", true),
            ("3.60.0", true),
            ("4.0", true),
            ("3.9.9", false),
        ] {
            assert_eq!(is_recent(version), recent, "{version}");
        }
    }

    #[test]
    fn p1_every_connection_that_may_write_to_the_file_does_so_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::file(&folder.path().join("a.db")).unwrap();
        let options = SqliteOptions::default();
        drop(create(&place, &options).unwrap());
        let file = place.identity();
        for connect in [writer, reader, backup] {
            let mut conn = connect(&place, file, &options).unwrap();
            for (name, value) in [("synchronous", 2), ("checkpoint_fullfsync", 1)] {
                assert_eq!(queries::pragma_number(&mut conn, name).unwrap(), value);
            }
        }
    }

    #[test]
    fn a_connection_has_the_settings_that_were_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::file(&folder.path().join("a.db")).unwrap();
        let options = SqliteOptions {
            durability: Durability::Normal,
            busy_timeout: std::time::Duration::from_millis(77),
            checkpoint_pages: 78,
            cache_kib: 79,
            max_pages: Some(1_000),
            ..SqliteOptions::default()
        };
        let first = create(&place, &options).unwrap();
        let next = writer(&place, place.identity(), &options).unwrap();
        for mut conn in [first, next] {
            for (name, value) in [
                ("synchronous", 1),
                ("foreign_keys", 1),
                ("busy_timeout", 77),
                ("wal_autocheckpoint", 78),
                ("cache_size", -79),
                ("max_page_count", 1_000),
            ] {
                let found = queries::pragma_number(&mut conn, name).unwrap();
                assert_eq!(found, value, "{name}");
            }
            let mode = queries::pragma_text(&mut conn, "journal_mode").unwrap();
            assert_eq!(mode, "wal");
        }
    }

    #[test]
    fn r6_a_connection_that_reads_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::file(&folder.path().join("a.db")).unwrap();
        let options = SqliteOptions::default();
        drop(create(&place, &options).unwrap());
        let mut conn = reader(&place, place.identity(), &options).unwrap();
        let error = queries::check_writable(&mut conn).unwrap_err();
        assert_eq!(failure::kind_of(&error), StoreErrorKind::ReadOnly);
    }

    #[test]
    fn a_setting_that_is_not_taken_is_an_error_that_names_it() {
        let mut conn = connect(&Place::Memory, Access::Create).unwrap();
        set_up(&mut conn, &[pragma("foreign_keys", 1)]).unwrap();
        let error = set_up(&mut conn, &[pragma("synchronous", 7)]).unwrap_err();
        assert!(
            matches!(error, ConnectError::Config(error) if error.field == "PRAGMA synchronous")
        );
        set_up(&mut conn, &[pragma("sinchronous", 1)]).unwrap_err();
        // A database in memory has no write-ahead log.
        let error = set_wal(&mut conn).unwrap_err();
        assert!(matches!(error, ConnectError::Config(error) if error.value == "memory"));
    }
}
