//! How much room a store takes.

use std::{collections::BTreeMap, fs, path::PathBuf};

use diesel::QueryResult;
use domain_events::StoreSize;

use crate::{SqliteEventStore, place::Place, queries, rows::unsigned, session::Session};

impl SqliteEventStore {
    /// How many bytes the write-ahead log takes; zero where there is none. Asks the file system, not
    /// the database.
    pub fn write_ahead_log_bytes(&self) -> u64 {
        write_ahead_log(&self.shared.place)
    }
}

/// The room of a database, which is read once for it.
pub(crate) fn of(session: &mut Session, place: &Place) -> QueryResult<StoreSize> {
    let conn = &mut session.conn;
    let page = unsigned(queries::pragma_number(conn, "page_size")?);
    let pages = unsigned(queries::pragma_number(conn, "page_count")?);
    let free = unsigned(queries::pragma_number(conn, "freelist_count")?);
    let tables = queries::table_sizes(conn)?;
    let tables: BTreeMap<_, _> = tables
        .into_iter()
        .map(|(name, bytes)| (name, unsigned(bytes)))
        .collect();
    Ok(StoreSize {
        database: page * pages,
        free: page * free,
        write_ahead_log: write_ahead_log(place),
        tables,
    })
}

/// Its file is not opened: to close it would take the locks that SQLite holds on the database away.
fn write_ahead_log(place: &Place) -> u64 {
    let Place::File(path) = place else {
        return 0;
    };
    let mut beside = path.clone().into_os_string();
    beside.push("-wal");
    fs::metadata(PathBuf::from(beside)).map_or(0, |it| it.len())
}
