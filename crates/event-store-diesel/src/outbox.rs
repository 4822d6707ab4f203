//! Appending in the caller's own transaction: what it changes and the events of that are committed
//! together, or not at all (P7).

use diesel::{
    SqliteConnection,
    connection::{AnsiTransactionManager, TransactionManager},
    result::Error,
};
use domain_events::{
    Append, AppendError, Appended, ConfigError, NewEvent, StoreError, StoreErrorKind,
    UnfaithfulError,
};

use crate::{
    SqliteOptions,
    append::{self, Prepared, Slot, Stop},
    database, failure,
    known::Known,
    migrations,
    names::Names,
    queries,
    transaction::{Manager, Transaction},
};

/// Events that were not appended in the caller's transaction, which is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendInError {
    /// No transaction is open on the connection, as far as Diesel knows.
    #[error("the events were not appended: the connection is in no transaction")]
    NoTransaction,
    /// SQLite does not let the transaction write: it has begun with reading, and another connection
    /// writes, or has written since. Begin it by
    /// [`immediate_transaction`](SqliteConnection::immediate_transaction).
    #[error(
        "the events were not appended: the transaction is a deferred one, which SQLite does not let \
         write beside others; begin it by immediate_transaction"
    )]
    Deferred(#[source] StoreError),
    /// The database holds no log in the format that this program knows; a store that is opened makes
    /// or updates it.
    #[error(
        "the events were not appended: the database holds no log of format {}",
        migrations::FORMAT
    )]
    NoLog(#[source] StoreError),
    /// Read back from its JSON, an event would be another one; found in debug builds (D11).
    #[error("the events were not appended: the JSON of one does not give it back as it was")]
    Unfaithful(#[source] UnfaithfulError),
    /// A name of an event is empty or too long.
    #[error("the events were not appended: a name is empty or too long")]
    Name(#[source] ConfigError),
    /// The log refused the events, or could not be written.
    #[error(transparent)]
    Append(AppendError),
}

/// Sets an application's connection up for [`append_in`], as `options` say: how long it waits for
/// locks, what its commits survive (P1), when they move the write-ahead log to the file, and that it
/// looks at foreign keys. Each is read back.
///
/// # Errors
/// When a setting is not taken, or the database holds no log in the format that this program knows.
pub fn prepare_connection(
    conn: &mut SqliteConnection,
    options: &SqliteOptions,
) -> Result<(), StoreError> {
    database::prepare(conn, options)?;
    check_log(conn)
}

/// Appends events to the log within the open transaction of `conn`: they are committed with whatever
/// else it changes, or not at all (P7). All or none, and consecutive (P3).
///
/// The transaction is to be begun by
/// [`immediate_transaction`](SqliteConnection::immediate_transaction), and the connection
/// [prepared](prepare_connection). Positions and versions are final where the transaction is
/// committed. The bus delivers the events once it is told
/// ([`EventBus::wake`](domain_events::EventBus::wake)) after the commit, or else finds them by itself
/// with the next publish, at its watch, or at its next start. Payloads are up to 1 MiB.
///
/// ```
/// use diesel::{Connection, RunQueryDsl, SqliteConnection, sql_query};
/// use event_store_diesel::{SqliteEventStore, SqliteOptions, append_in, prepare_connection};
/// # use domain_events::{DomainEvent, EventStore, Position};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
/// # struct OrderPlaced { order_id: String }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("shop.db");
/// let options = SqliteOptions { share_database: true, ..SqliteOptions::default() };
/// let store = SqliteEventStore::open(&file, options.clone())?;
///
/// let mut conn = SqliteConnection::establish(file.to_str().ok_or("a path of UTF-8")?)?;
/// prepare_connection(&mut conn, &options)?;
/// sql_query("CREATE TABLE orders (order_id TEXT PRIMARY KEY)").execute(&mut conn)?;
/// conn.immediate_transaction(|conn| -> Result<(), Box<dyn std::error::Error>> {
///     sql_query("INSERT INTO orders VALUES ('o-1')").execute(conn)?;
///     append_in(conn, [OrderPlaced { order_id: "o-1".into() }])?;
///     Ok(())
/// })?;
/// # assert_eq!(domain_events::block_on(store.head())?, Position::FIRST);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`AppendInError`] says why nothing was appended; the transaction is as it was, and may go on. Only
/// where the database itself is at fault, SQLite may have ended it.
pub fn append_in<E: Into<NewEvent>>(
    conn: &mut SqliteConnection,
    events: impl IntoIterator<Item = E>,
) -> Result<Vec<Appended>, AppendInError> {
    let batch = batch(events)?;
    check_transaction(conn)?;
    // Taken before anything is read, so that a deferred transaction reads what is there now.
    queries::take_write_lock(conn).map_err(not_taken)?;
    check_log(conn).map_err(AppendInError::NoLog)?;
    let slots = within_savepoint(conn, &batch).map_err(AppendInError::Append)?;
    Ok(append::appended(batch, slots))
}

fn batch<E: Into<NewEvent>>(
    events: impl IntoIterator<Item = E>,
) -> Result<Vec<Prepared>, AppendInError> {
    let mut batch = Vec::new();
    for event in events {
        let event: NewEvent = event.into();
        event.check().map_err(AppendInError::Name)?;
        if cfg!(debug_assertions) {
            event.check_faithful().map_err(AppendInError::Unfaithful)?;
        }
        let expected = event.expected();
        batch.push(Append {
            event: event.seal(),
            expected,
        });
    }
    append::prepare_all(batch, SqliteOptions::DEFAULT_PAYLOAD_BYTES).map_err(AppendInError::Append)
}

fn check_transaction(conn: &mut SqliteConnection) -> Result<(), AppendInError> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    match status.transaction_depth() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(AppendInError::NoTransaction),
        Err(error) => Err(AppendInError::Append(not_appended(error))),
    }
}

/// In an immediate transaction the lock is there already.
fn not_taken(error: Error) -> AppendInError {
    let error = failure::store_error("the transaction may not write", error);
    match error.kind() {
        StoreErrorKind::Busy => AppendInError::Deferred(error),
        StoreErrorKind::Other => AppendInError::NoLog(error),
        _ => AppendInError::Append(AppendError::Store(error)),
    }
}

fn check_log(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    const WHAT: &str = "the format of the log was not recognised";
    let found = queries::format(conn).map_err(|error| failure::store_error(WHAT, error))?;
    match found == migrations::FORMAT {
        true => Ok(()),
        false => {
            let known = ConfigError::new("format", found, migrations::FORMAT.to_string());
            Err(StoreError::new(StoreErrorKind::Other, WHAT).caused_by(known))
        }
    }
}

/// A batch that fails half-way must leave nothing behind for the caller to commit.
fn within_savepoint(
    conn: &mut SqliteConnection,
    batch: &[Prepared],
) -> Result<Vec<Slot>, AppendError> {
    Manager::begin_transaction(conn).map_err(not_appended)?;
    match write(conn, batch) {
        Ok(slots) => {
            Manager::commit_transaction(conn).map_err(not_appended)?;
            Ok(slots)
        }
        Err(stop) => {
            let rolled_back = Manager::rollback_transaction(conn);
            Err(match (stop, rolled_back) {
                (Stop::Refused(refusal), Ok(())) => refusal,
                (Stop::Failed(error), _) | (Stop::Refused(_), Err(error)) => not_appended(error),
            })
        }
    }
}

fn write(conn: &mut SqliteConnection, batch: &[Prepared]) -> Result<Vec<Slot>, Stop> {
    let mut names = Names::default();
    // It is forgotten with the transaction, so the version of the data says nothing.
    let mut known = Known::read(conn, &mut names, 0)?;
    let mut tx = Transaction::knowing(conn, &mut names, &mut known);
    let slots = append::append(&mut tx, batch)?;
    tx.write_rows()?;
    Ok(slots)
}

fn not_appended(error: Error) -> AppendError {
    AppendError::Store(failure::store_error("the events were not appended", error))
}
