//! What a driver's error means to a caller; the only place that looks at the text of one.

use std::io;

use diesel::{
    ConnectionError,
    result::{DatabaseErrorKind, Error},
};
use domain_events::{StoreError, StoreErrorKind};

/// The error that `what` did not happen, because of `error`.
pub(crate) fn store_error(what: &'static str, error: Error) -> StoreError {
    StoreError::new(kind_of(&error), what).caused_by(error)
}

/// The error that a connection was not opened.
pub(crate) fn connection_error(error: ConnectionError) -> StoreError {
    let kind = match &error {
        ConnectionError::BadConnection(message) => kind_of_message(message),
        _ => StoreErrorKind::Other,
    };
    StoreError::new(kind, "the database was not opened").caused_by(error)
}

/// The error that `what` did not happen with a file beside the database.
pub(crate) fn file_error(what: &'static str, error: io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreErrorKind::ReadOnly
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreErrorKind::Full,
        _ => StoreErrorKind::Io,
    };
    StoreError::new(kind, what).caused_by(error)
}

/// The error of a store that is closed.
pub(crate) fn closed() -> StoreError {
    StoreError::new(StoreErrorKind::Closed, "the store is closed")
}

/// The error of what waits for the writer, which waits for it.
pub(crate) fn inside_handler() -> StoreError {
    StoreError::new(
        StoreErrorKind::InsideTransaction,
        "nothing waits for the store inside a transactional handler, which appends by append_in",
    )
}

/// The error of a store that was opened to read.
pub(crate) fn read_only() -> StoreError {
    StoreError::new(
        StoreErrorKind::ReadOnly,
        "the store was opened to be read only",
    )
}

/// What a caller can do about `error`.
pub(crate) fn kind_of(error: &Error) -> StoreErrorKind {
    match error {
        Error::DatabaseError(_, information) => kind_of_message(information.message()),
        Error::RollbackErrorOnCommit { commit_error, .. } => kind_of(commit_error),
        Error::DeserializationError(_) => StoreErrorKind::Corrupt,
        _ => StoreErrorKind::Other,
    }
}

/// What SQLite's `message` means: Diesel gives no code for these.
pub(crate) fn kind_of_message(message: &str) -> StoreErrorKind {
    const MEANINGS: [(&str, StoreErrorKind); 8] = [
        ("is locked", StoreErrorKind::Busy),
        ("database or disk is full", StoreErrorKind::Full),
        ("readonly database", StoreErrorKind::ReadOnly),
        ("disk I/O error", StoreErrorKind::Io),
        ("unable to open database file", StoreErrorKind::Io),
        ("disk image is malformed", StoreErrorKind::Corrupt),
        ("malformed database schema", StoreErrorKind::Corrupt),
        (NOT_A_DATABASE, StoreErrorKind::Corrupt),
    ];
    let meaning = MEANINGS.iter().find(|(text, _)| message.contains(text));
    meaning.map_or(StoreErrorKind::Other, |&(_, kind)| kind)
}

/// Whether `error` says that what was written breaks a constraint.
pub(crate) fn is_of_constraint(error: &Error) -> bool {
    use DatabaseErrorKind::{
        CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation,
    };
    match error {
        Error::DatabaseError(kind, _) => matches!(
            kind,
            CheckViolation | ForeignKeyViolation | NotNullViolation | UniqueViolation
        ),
        Error::RollbackErrorOnCommit { commit_error, .. } => is_of_constraint(commit_error),
        _ => false,
    }
}

/// Whether `error` says that the file is no SQLite database.
pub(crate) fn is_not_a_database(error: &Error) -> bool {
    matches!(error, Error::DatabaseError(_, information)
        if information.message().contains(NOT_A_DATABASE))
}

const NOT_A_DATABASE: &str = "file is not a database";

#[cfg(test)]
mod tests {
    use diesel::{Connection, RunQueryDsl, SqliteConnection, connection::SimpleConnection};

    use super::*;

    fn kind(conn: &mut SqliteConnection, sql: &str) -> StoreErrorKind {
        kind_of(&conn.batch_execute(sql).unwrap_err())
    }

    #[test]
    fn a_full_database_is_told_from_a_read_only_one() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.batch_execute("CREATE TABLE t (x); PRAGMA max_page_count = 4")
            .unwrap();
        let fill = "INSERT INTO t VALUES (zeroblob(100000))";
        assert_eq!(kind(&mut conn, fill), StoreErrorKind::Full);
        conn.batch_execute("PRAGMA query_only = ON").unwrap();
        assert_eq!(kind(&mut conn, fill), StoreErrorKind::ReadOnly);
    }

    #[test]
    fn a_locked_database_is_busy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").display().to_string();
        let mut first = SqliteConnection::establish(&path).unwrap();
        let mut second = SqliteConnection::establish(&path).unwrap();
        first.batch_execute("BEGIN IMMEDIATE").unwrap();
        assert_eq!(kind(&mut second, "BEGIN IMMEDIATE"), StoreErrorKind::Busy);
    }

    #[test]
    fn a_file_of_something_else_and_a_missing_folder_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "something else, and long enough. ".repeat(100)).unwrap();
        let mut conn = SqliteConnection::establish(&path.display().to_string()).unwrap();
        let error = diesel::sql_query("SELECT * FROM sqlite_master")
            .execute(&mut conn)
            .unwrap_err();
        assert!(is_not_a_database(&error));
        assert_eq!(kind_of(&error), StoreErrorKind::Corrupt);

        let missing = folder.path().join("b/c").display().to_string();
        let error = SqliteConnection::establish(&missing).map(drop).unwrap_err();
        assert_eq!(connection_error(error).kind(), StoreErrorKind::Io);
    }

    #[test]
    fn a_kind_is_found_wherever_the_text_stands() {
        for (message, kind) in [
            ("disk I/O error", StoreErrorKind::Io),
            ("database disk image is malformed", StoreErrorKind::Corrupt),
            ("database table is locked: t", StoreErrorKind::Busy),
            ("no such table: t", StoreErrorKind::Other),
        ] {
            assert_eq!(kind_of_message(message), kind);
        }
    }
}
