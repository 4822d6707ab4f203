//! The one thread that writes: what waits when a commit ends shares the next one.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use diesel::{
    QueryResult, SqliteConnection,
    connection::{
        AnsiTransactionManager, SimpleConnection, TransactionManager, TransactionManagerStatus,
    },
    result::Error,
};
use domain_events::{StoreError, StoreErrorKind};

use crate::{
    SqliteOptions,
    answering::Answering,
    database, failure,
    known::Known,
    place::{Identity, Place},
    queue::Queue,
    reader::Job,
    session::Session,
    transaction::{Manager, Transaction},
};

/// How many events share a commit at most.
const GROUP_EVENTS: usize = 4_096;

/// Something to be written, with somebody who waits for the answer.
pub(crate) trait Request: Send {
    /// How many events it appends.
    fn events(&self) -> usize {
        0
    }

    /// Does its part in the open transaction; may be called again in another one. What is the
    /// request's own fault is kept for its answer and leaves no trace in the transaction.
    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()>;

    /// Whether it calls the application's code, which may write what the commit refuses.
    fn runs_handlers(&self) -> bool {
        false
    }

    /// Whether what has failed is to be made again, with all that shared its transaction: the reason is
    /// out of the way.
    fn is_to_be_made_again(&mut self) -> bool {
        false
    }

    /// Tells how it ended.
    fn answer(self: Box<Self>, end: Result<(), Fault>);
}

/// Why a transaction was not committed.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It was rolled back.
    NotCommitted(StoreError),
    /// The commit refused what was written, as that breaks a constraint that is looked at then.
    Refused(StoreError),
    /// The commit itself failed.
    Unknown(StoreError),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCommitted(error) | Self::Refused(error) | Self::Unknown(error) => error.fmt(f),
        }
    }
}

impl Fault {
    /// The fault, where it makes no difference whether the commit failed or was not reached.
    pub(crate) fn into_error(self) -> StoreError {
        match self {
            Self::NotCommitted(error) | Self::Refused(error) | Self::Unknown(error) => error,
        }
    }

    fn kind(&self) -> StoreErrorKind {
        match self {
            Self::NotCommitted(error) | Self::Refused(error) | Self::Unknown(error) => error.kind(),
        }
    }

    /// Whether it may be the fault of a single request, and not of the whole database.
    fn may_be_of_one(&self) -> bool {
        matches!(self, Self::NotCommitted(error)
            if matches!(error.kind(), StoreErrorKind::Other | StoreErrorKind::Corrupt))
    }
}

/// What the writer's queue holds.
pub(crate) enum Work {
    Write(Box<dyn Request>),
    /// A question to a database that has only one connection.
    Read(Job),
}

enum Turn {
    Write(Vec<Box<dyn Request>>),
    Read(Job),
}

/// The owner of the connection that writes.
pub(crate) struct Writer {
    place: Place,
    /// Of the file that was opened first.
    identity: Identity,
    options: SqliteOptions,
    answering: Answering,
    session: Option<Session>,
    known: Option<Known>,
}

impl Writer {
    pub(crate) fn new(
        conn: SqliteConnection,
        place: Place,
        options: SqliteOptions,
        answering: Answering,
    ) -> Self {
        Self {
            identity: place.identity(),
            place,
            options,
            answering,
            session: Some(Session::new(conn)),
            known: None,
        }
    }

    /// Works until the queue is closed and empty; returns what still has the file open.
    pub(crate) fn run(mut self, queue: &Queue<Work>) -> impl Sized + use<> {
        while let Some(turn) = queue.take(next_turn) {
            match turn {
                Some(Turn::Write(group)) => self.write(group),
                Some(Turn::Read(job)) => self.read(job),
                None => {}
            }
        }
        self.session
    }

    pub(crate) fn write(&mut self, mut group: Vec<Box<dyn Request>>) {
        let mut end = self.commit(&mut group);
        while end.is_err() && is_to_be_made_again(&mut group) {
            end = self.commit(&mut group);
        }
        if let Err(fault) = &end {
            log::warn!(requests = group.len(), kind:? = fault.kind(); "a transaction was not committed: {fault}");
            let may_be_of_one = match fault {
                Fault::Refused(_) => group.iter().any(|it| it.runs_handlers()),
                _ => fault.may_be_of_one(),
            };
            if group.len() > 1 && may_be_of_one {
                return group
                    .into_iter()
                    .for_each(|request| self.write(vec![request]));
            }
        }
        self.answering.tell(group, end);
    }

    fn read(&mut self, job: Job) {
        let session = open(&mut self.session, &self.place, self.identity, &self.options);
        let asked = catch_unwind(AssertUnwindSafe(|| job(session)));
        if asked.is_err() {
            log::error!("whoever waited for the store's answer panicked on it");
        }
    }

    fn commit(&mut self, group: &mut [Box<dyn Request>]) -> Result<(), Fault> {
        let attempt = catch_unwind(AssertUnwindSafe(|| self.try_commit(group)));
        let end = attempt.unwrap_or_else(|_| Err(Fault::NotCommitted(panicked())));
        if let Err(fault) = &end {
            self.clean_up(fault);
        }
        end
    }

    fn try_commit(&mut self, group: &mut [Box<dyn Request>]) -> Result<(), Fault> {
        let session = open(&mut self.session, &self.place, self.identity, &self.options);
        let session = session.map_err(Fault::NotCommitted)?;
        let not_committed = |error| {
            Fault::NotCommitted(failure::store_error(
                "the transaction was rolled back",
                error,
            ))
        };
        AnsiTransactionManager::begin_transaction_sql(&mut session.conn, "BEGIN IMMEDIATE")
            .map_err(|error| Fault::NotCommitted(not_begun(error)))?;
        apply(session, &mut self.known, group).map_err(not_committed)?;
        self.place
            .check_is(self.identity)
            .map_err(Fault::NotCommitted)?;
        Manager::commit_transaction(&mut session.conn).map_err(|error| {
            let refused = failure::is_of_constraint(&error);
            let error = failure::store_error("the commit failed", error);
            match refused {
                true => Fault::Refused(error),
                false => Fault::Unknown(error),
            }
        })
    }

    /// Forgets what the transaction has changed, with the connection where it cannot be trusted.
    fn clean_up(&mut self, fault: &Fault) {
        self.known = None;
        let Some(session) = &mut self.session else {
            return;
        };
        session.names = Default::default();
        let rolled_back = loop {
            match Manager::rollback_transaction(&mut session.conn) {
                // Of a request that may be refused, or of all.
                Ok(()) => {}
                Err(Error::NotInTransaction) => break true,
                Err(_) => break false,
            }
        };
        let is_sound = rolled_back && matches!(fault, Fault::NotCommitted(_));
        if !is_sound && self.place.is_file() {
            self.session = None;
        } else if !is_sound {
            // A database in memory is gone with its connection.
            let _ = session.conn.batch_execute("ROLLBACK");
            let status = AnsiTransactionManager::transaction_manager_status_mut(&mut session.conn);
            *status = TransactionManagerStatus::default();
        }
    }
}

fn is_to_be_made_again(group: &mut [Box<dyn Request>]) -> bool {
    let mut again = false;
    for request in group {
        again |= request.is_to_be_made_again();
    }
    again
}

fn apply(
    session: &mut Session,
    known: &mut Option<Known>,
    group: &mut [Box<dyn Request>],
) -> QueryResult<()> {
    let mut tx = Transaction::new(&mut session.conn, &mut session.names, known)?;
    for request in group {
        request.apply(&mut tx)?;
    }
    tx.write_rows()
}

fn open<'a>(
    session: &'a mut Option<Session>,
    place: &Place,
    identity: Identity,
    options: &SqliteOptions,
) -> Result<&'a mut Session, StoreError> {
    match session {
        Some(session) => Ok(session),
        None => Ok(session.insert(Session::new(database::writer(place, identity, options)?))),
    }
}

/// Takes what may share a transaction, in order.
fn next_turn(waiting: &mut VecDeque<Work>) -> Option<Turn> {
    let mut group = Vec::new();
    let mut events = 0;
    loop {
        match waiting.pop_front() {
            Some(Work::Read(job)) if group.is_empty() => return Some(Turn::Read(job)),
            Some(Work::Write(request))
                if group.is_empty() || events + request.events() <= GROUP_EVENTS =>
            {
                events += request.events();
                group.push(request);
            }
            Some(next) => {
                waiting.push_front(next);
                return Some(Turn::Write(group));
            }
            None => return (!group.is_empty()).then_some(Turn::Write(group)),
        }
    }
}

/// Whoever holds the lock may be the caller who waits for this (P8).
fn not_begun(error: Error) -> StoreError {
    const LOCKED: &str = "another connection writes all the time; within a write transaction of one's \
                          own, events are appended by append_in";
    match failure::kind_of(&error) {
        StoreErrorKind::Busy => failure::store_error(LOCKED, error),
        _ => failure::store_error("the transaction was not begun", error),
    }
}

fn panicked() -> StoreError {
    StoreError::new(StoreErrorKind::Other, "the transaction was broken off")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answering::Answers;

    /// A row that only the commit objects to.
    struct Orphan;

    impl Request for Orphan {
        fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
            let conn = &mut *tx.conn;
            conn.batch_execute("INSERT INTO children VALUES (9)")
        }

        fn answer(self: Box<Self>, _: Result<(), Fault>) {}
    }

    #[test]
    fn a_connection_whose_commit_has_failed_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::file(&folder.path().join("a.db")).unwrap();
        let options = SqliteOptions::default();
        let mut conn = database::create(&place, &options).unwrap();
        conn.batch_execute(
            "CREATE TABLE parents (id INTEGER PRIMARY KEY); CREATE TABLE children \
             (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
        let (answering, _) = Answering::new(Answers::default());
        let mut writer = Writer::new(conn, place, options, answering);
        writer.commit(&mut []).unwrap();
        assert!(writer.session.is_some());
        let end = writer.commit(&mut [Box::new(Orphan)]);
        assert!(matches!(end, Err(Fault::Refused(_))));
        assert!(writer.session.is_none());
        writer.commit(&mut []).unwrap();
    }
}
