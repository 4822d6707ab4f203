//! The application's code within the writer's transaction: in a savepoint, and found out where it ends
//! what it is in (R7).

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use diesel::{
    QueryResult, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection, TransactionManager},
    result::Error,
};
use domain_events::Kept;

use crate::transaction::Manager;

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the present code is called by the writer, which cannot serve it before it returns.
pub(crate) fn is_inside() -> bool {
    IS_INSIDE.get()
}

/// What became of a savepoint.
pub(crate) enum Savepoint {
    Kept(Kept),
    /// It is not there any more, nor is the transaction that it was in.
    Gone,
}

/// Calls `code` in a savepoint of the open transaction, and does with that as it says. A panic is a
/// failure.
pub(crate) fn call(
    conn: &mut SqliteConnection,
    code: impl FnOnce(&mut SqliteConnection) -> Kept,
) -> QueryResult<Savepoint> {
    let depth = depth(conn);
    conn.batch_execute("SAVEPOINT de_handler")?;
    IS_INSIDE.set(true);
    let kept = catch_unwind(AssertUnwindSafe(|| code(conn))).unwrap_or(Kept::Failed);
    IS_INSIDE.set(false);
    let ended = come_back_to(depth, conn).and_then(|()| {
        conn.batch_execute(match kept {
            Kept::All => "RELEASE de_handler",
            Kept::Nothing | Kept::Failed => "ROLLBACK TO de_handler; RELEASE de_handler",
        })
    });
    match ended {
        Ok(()) => Ok(Savepoint::Kept(kept)),
        Err(error) => {
            log::warn!("a handler has ended the transaction that it was in: {error}");
            Ok(Savepoint::Gone)
        }
    }
}

/// Ends whatever transactions of its own the code has left open.
fn come_back_to(before: Option<u32>, conn: &mut SqliteConnection) -> QueryResult<()> {
    while depth(conn) > before {
        Manager::rollback_transaction(conn)?;
    }
    match depth(conn) == before {
        true => Ok(()),
        false => Err(Error::NotInTransaction),
    }
}

fn depth(conn: &mut SqliteConnection) -> Option<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    status.transaction_depth().ok().flatten().map(u32::from)
}
