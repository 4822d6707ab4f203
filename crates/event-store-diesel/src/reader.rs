//! A thread that answers questions, with a connection of its own.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
};

use domain_events::StoreError;

use crate::{SqliteOptions, database, place::Place, queue::Queue, session::Session};

/// A question to the database; returns whether the connection is still to be trusted.
pub(crate) type Job = Box<dyn FnOnce(Result<&mut Session, StoreError>) -> bool + Send>;

/// Answers questions until the queue is closed and empty. The connection is opened for the first.
pub(crate) fn run(place: &Place, options: &SqliteOptions, queue: &Queue<Job>) {
    let mut session = None;
    while let Some(job) = queue.take(VecDeque::pop_front) {
        let Some(job) = job else { continue };
        let asked = catch_unwind(AssertUnwindSafe(|| job(open(&mut session, place, options))));
        if !asked.unwrap_or(false) {
            session = None;
        }
    }
}

fn open<'a>(
    session: &'a mut Option<Session>,
    place: &Place,
    options: &SqliteOptions,
) -> Result<&'a mut Session, StoreError> {
    match session {
        Some(session) => Ok(session),
        None => Ok(session.insert(Session::new(database::reader(place, options)?))),
    }
}
