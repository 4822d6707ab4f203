//! A thread that answers questions, with a connection of its own.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
};

use domain_events::StoreError;

use crate::{
    SqliteOptions, database,
    place::{Identity, Place},
    queue::Queue,
    session::Session,
};

/// A question to the database; returns whether the connection is still to be trusted.
pub(crate) type Job = Box<dyn FnOnce(Result<&mut Session, StoreError>) -> bool + Send>;

/// Answers questions until the queue is closed and empty. The connection is opened for the first.
pub(crate) fn run(place: &Place, identity: Identity, options: &SqliteOptions, queue: &Queue<Job>) {
    let mut session = None;
    while let Some(job) = queue.take(VecDeque::pop_front) {
        let Some(job) = job else { continue };
        let asked = catch_unwind(AssertUnwindSafe(|| {
            job(open(&mut session, place, identity, options))
        }));
        if !asked.unwrap_or(false) {
            session = None;
        }
    }
}

fn open<'a>(
    session: &'a mut Option<Session>,
    place: &Place,
    identity: Identity,
    options: &SqliteOptions,
) -> Result<&'a mut Session, StoreError> {
    match session {
        Some(session) => Ok(session),
        None => Ok(session.insert(Session::new(database::reader(place, identity, options)?))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::queries;

    #[test]
    fn a_connection_that_failed_is_not_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::file(&folder.path().join("a.db")).unwrap();
        let options = SqliteOptions::default();
        drop(database::create(&place, &options).unwrap());
        let queue = Queue::<Job>::new();
        let (send, found) = mpsc::channel();
        for is_sound in [true, false, true] {
            let send = send.clone();
            let mark = move |session: Result<&mut Session, StoreError>| {
                let conn = &mut session.unwrap().conn;
                send.send(queries::pragma_number(conn, "busy_timeout") == Ok(77))
                    .unwrap();
                queries::set_pragma(conn, "busy_timeout", "77").unwrap();
                is_sound
            };
            assert!(queue.push(Box::new(mark)).is_ok());
        }
        queue.close();
        run(&place, place.identity(), &options, &queue);
        assert!(found.try_iter().eq([false, true, false]));
    }
}
