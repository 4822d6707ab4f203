//! Whether a database is ours to use: what is refused, before a byte of it changes.

use std::{collections::HashMap, fs, path::Path, sync::OnceLock};

use diesel::{QueryResult, SqliteConnection};
use domain_events::{StoreError, StoreErrorKind};

use crate::{
    OpenError, SqliteOptions,
    database::{self, ConnectError},
    failure, migrations,
    place::{Access, Place},
    queries,
};

const APPLICATION: &str = "domain-events";
const FORMAT_TABLE: &str = "de_format";
const MIGRATIONS_TABLE: &str = "__diesel_schema_migrations";

/// Refuses a directory or a pipe; to open one of these waits for whoever writes to it.
pub(crate) fn check_is_file(place: &Place) -> Result<(), OpenError> {
    let path = place.path();
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(OpenError::NotADatabase {
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Refuses a file that is not ours, leaving it and its directory as they are.
pub(crate) fn check_untouched(place: &Place, options: &SqliteOptions) -> Result<(), OpenError> {
    check_is_file(place)?;
    // The file itself is never opened but through SQLite: to close it would drop SQLite's locks.
    let file = fs::metadata(place.path()).ok();
    // SQLite would leave a write-ahead log beside it that cannot be written to either.
    if file.as_ref().is_some_and(|it| it.permissions().readonly()) {
        return Err(OpenError::Store {
            path: place.path().to_owned(),
            source: StoreError::new(StoreErrorKind::ReadOnly, "the file may not be written to"),
        });
    }
    let size = file.map_or(0, |file| file.len());
    // What a journal has to say only a writer can read, so that has to wait for the lock.
    if size == 0 || is_beside(place.path(), "-journal") {
        return Ok(());
    }
    // Somebody may be tidying up after the last run.
    let conn = database::patient(place, access(place.path()), options);
    let mut conn = conn.map_err(|error| error.at(place))?;
    check(&mut conn, place, options.share_database)
}

/// Where there is a write-ahead log, it has to be read too, with the files that takes.
pub(crate) fn access(path: &Path) -> Access {
    match is_beside(path, "-wal") {
        true => Access::Look,
        false => Access::LookUntouched,
    }
}

fn is_beside(path: &Path, ending: &str) -> bool {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    Path::new(&name).exists()
}

/// Refuses a database that is not ours.
pub(crate) fn check(
    conn: &mut SqliteConnection,
    place: &Place,
    share: bool,
) -> Result<(), OpenError> {
    recognise(conn, place, share).map(drop)
}

/// Refuses a database that holds no store of ours.
pub(crate) fn check_there(conn: &mut SqliteConnection, place: &Place) -> Result<(), OpenError> {
    let path = place.path().to_owned();
    match recognise(conn, place, true)? {
        Usable::Ours => Ok(()),
        Usable::Vacant => Err(OpenError::NoStore { path }),
    }
}

fn recognise(conn: &mut SqliteConnection, place: &Place, share: bool) -> Result<Usable, OpenError> {
    let path = || place.path().to_owned();
    match look(conn, share) {
        Ok(Finding::Usable(usable)) => Ok(usable),
        Ok(Finding::Foreign(table)) => Err(OpenError::ForeignDatabase {
            path: path(),
            table,
        }),
        Ok(Finding::Newer(found)) => Err(OpenError::NewerFormat {
            path: path(),
            found,
            known: migrations::FORMAT,
        }),
        Err(error) if failure::is_not_a_database(&error) => {
            Err(OpenError::NotADatabase { path: path() })
        }
        Err(error) => {
            let error = failure::store_error("the database was not recognised", error);
            Err(ConnectError::Store(error).at(place))
        }
    }
}

/// A database that can be ours.
enum Usable {
    /// It is.
    Ours,
    /// It has no table of our names.
    Vacant,
}

enum Finding {
    Usable(Usable),
    Foreign(String),
    Newer(i64),
}

fn look(conn: &mut SqliteConnection, share: bool) -> QueryResult<Finding> {
    let names = queries::object_names(conn)?;
    let ours = our_tables()?;
    let (named_like_ours, others): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| ours.contains_key(name));
    if let Some(first) = named_like_ours.first() {
        if !has_our_mark(conn, &named_like_ours)? {
            return Ok(Finding::Foreign(first.clone()));
        }
        let found = queries::format(conn)?;
        if found > migrations::FORMAT {
            return Ok(Finding::Newer(found));
        }
        return look_at_columns(conn, &named_like_ours, ours);
    }
    let other = others.into_iter().find(|name| name != MIGRATIONS_TABLE);
    Ok(other
        .filter(|_| !share)
        .map_or(Finding::Usable(Usable::Vacant), Finding::Foreign))
}

fn has_our_mark(conn: &mut SqliteConnection, names: &[String]) -> QueryResult<bool> {
    if !names.iter().any(|name| name == FORMAT_TABLE) {
        return Ok(false);
    }
    let columns = queries::column_names(conn, FORMAT_TABLE)?;
    if !["application", "version"]
        .iter()
        .all(|it| columns.iter().any(|name| name == it))
    {
        return Ok(false);
    }
    Ok(queries::application(conn)?.as_deref() == Some(APPLICATION))
}

/// A table of ours has no column but ours; in an older format some may be missing.
fn look_at_columns(
    conn: &mut SqliteConnection,
    names: &[String],
    ours: &Tables,
) -> QueryResult<Finding> {
    for name in names {
        let columns = queries::column_names(conn, name)?;
        let known = ours.get(name).map_or(&[][..], Vec::as_slice);
        if !columns.iter().all(|column| known.contains(column)) {
            return Ok(Finding::Foreign(name.clone()));
        }
    }
    Ok(Finding::Usable(Usable::Ours))
}

/// Names of our tables, each with its columns.
type Tables = HashMap<String, Vec<String>>;

/// Our tables: what the migrations make of an empty database. They are asked for twice at each
/// opening, and to make them takes longer than all else.
fn our_tables() -> QueryResult<&'static Tables> {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    match TABLES.get() {
        Some(tables) => Ok(tables),
        None => make_tables().map(|tables| TABLES.get_or_init(|| tables)),
    }
}

fn make_tables() -> QueryResult<Tables> {
    let mut conn = migrations::example()?;
    let names = queries::object_names(&mut conn)?;
    let ours = names.into_iter().filter(|name| name != MIGRATIONS_TABLE);
    ours.map(|name| Ok((name.clone(), queries::column_names(&mut conn, &name)?)))
        .collect()
}
