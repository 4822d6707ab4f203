//! The event store on SQLite: opened, copied and closed, with its threads.

use std::{fmt, path::Path, sync::Arc, thread};

use diesel::SqliteConnection;
use domain_events::{StoreError, promise};

use crate::{
    BackupError, OpenError, SqliteOptions,
    answering::{Answerer, Answering, Answers},
    backup, database, failure,
    lock::FileLock,
    ownership,
    place::{Identity, Place},
    queue::Queue,
    reader::{self, Job},
    refused::RefusedRequests,
    threads::Threads,
    writer::{Work, Writer},
};

/// A log of events and the state of their deliveries, in one SQLite database.
///
/// One thread writes: requests that wait while a commit runs share the next one. A few others
/// read. A process has a store to itself (R6); tools that only read may open the file at any time.
///
/// Dropping the store only signals its threads: what was handed over is still finished, and the
/// file is released shortly after. [`close`](Self::close) waits for that (L2).
pub struct SqliteEventStore {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) place: Place,
    /// Of the file that was opened first.
    identity: Identity,
    pub(crate) options: SqliteOptions,
    pub(crate) work: Arc<Queue<Work>>,
    pub(crate) questions: Arc<Queue<Job>>,
    pub(crate) refused: RefusedRequests,
    /// Refuses what comes from inside a transactional handler.
    pub(crate) inside: RefusedRequests,
    threads: Threads,
}

impl SqliteEventStore {
    /// Opens the store in the file at `path`, which is made if it is missing; its directory is
    /// not. Blocks the thread for the time this takes.
    ///
    /// # Errors
    /// [`OpenError`] names the path; a file that is refused is left as it is.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let place = checked_place(path.as_ref(), &options)?;
        // Before the lock, so that a refused file gets no lock file beside it.
        ownership::check_untouched(&place, &options)?;
        let lock = FileLock::take(place.path())?;
        let conn = database::create(&place, &options)?;
        Self::start(conn, &place, options, Some(lock))
    }

    /// A store that is gone when it is closed or dropped; for tests and trials.
    ///
    /// # Errors
    /// When a setting cannot work.
    pub fn in_memory(options: SqliteOptions) -> Result<Self, OpenError> {
        let place = Place::Memory;
        options.check().map_err(|source| OpenError::Config {
            path: place.path().to_owned(),
            source,
        })?;
        let conn = database::create(&place, &options)?;
        Self::start(conn, &place, options, None)
    }

    /// Opens the store in the file at `path` to read it, whoever runs it meanwhile (R6): takes no
    /// lock, and changes nothing of what it holds. What would be written is refused as
    /// [`ReadOnly`](domain_events::StoreErrorKind::ReadOnly).
    ///
    /// Where a runner was killed, the last reader to close moves what it committed from the
    /// write-ahead log to the file, as any program that uses SQLite does.
    ///
    /// # Errors
    /// [`OpenError`] names the path, also where there is no store. Where nobody runs it and the
    /// directory may not be written to, each read fails as
    /// [`ReadOnly`](domain_events::StoreErrorKind::ReadOnly): `SQLite` takes files beside it to read.
    pub fn open_to_read(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let place = checked_place(path.as_ref(), &options)?;
        database::look(&place, &options)?;
        let store = Self::new(&place, options, Answers::default(), failure::read_only);
        store.shared.work.close();
        store.shared.start_readers()?;
        Ok(store)
    }

    /// The file of the store; `None` in memory. It is absolute and free of links.
    pub fn path(&self) -> Option<&Path> {
        let place = &self.shared.place;
        place.is_file().then(|| place.path())
    }

    /// Writes a copy of the whole database, as it is committed at this moment, to a new file at
    /// `path`. Meanwhile others read and write as always, and the write-ahead log grows until the
    /// copy is made; a store in memory has one connection, for which they wait.
    ///
    /// # Errors
    /// [`BackupError`] names the path; a file that is there is not overwritten.
    ///
    /// # Cancellation
    /// The copy is made whether or not the future is dropped.
    pub async fn backup_to(&self, path: impl AsRef<Path>) -> Result<(), BackupError> {
        let (promise, made) = promise();
        let target = path.as_ref().to_owned();
        let failed = |path: &Path, source| BackupError::Store {
            path: path.to_owned(),
            source,
        };
        let taken = match &self.shared.place {
            Place::Memory => {
                let job: Job = Box::new(move |session| {
                    let session = session.map_err(|error| failed(&target, error));
                    promise.keep(session.and_then(|it| backup::write(&mut it.conn, &target)));
                    true
                });
                self.shared.work.push(Work::Read(job)).is_ok()
            }
            Place::File(_) => {
                let (place, options) = (self.shared.place.clone(), self.shared.options.clone());
                let identity = self.shared.identity;
                let copy = move || {
                    let conn = database::backup(&place, identity, &options);
                    let conn = conn.map_err(|error| failed(&target, error.into()));
                    promise.keep(conn.and_then(|mut conn| backup::write(&mut conn, &target)));
                };
                self.shared
                    .threads
                    .start("event-store-backup", copy)
                    .is_ok()
            }
        };
        let made = if taken { made.await } else { None };
        made.unwrap_or_else(|| Err(failed(path.as_ref(), failure::closed())))
    }

    /// Refuses new work, finishes what was handed over, and releases the file with every handle
    /// and the lock before it returns. Closing twice is harmless.
    ///
    /// Must not be awaited in the `done` of a request, which it would wait for.
    pub async fn close(&self) {
        self.signal();
        let shared = Arc::clone(&self.shared);
        let (promise, closed) = promise();
        let wait = move || {
            shared.threads.wait();
            promise.keep(());
        };
        match thread::Builder::new()
            .name("event-store-close".into())
            .spawn(wait)
        {
            Ok(_) => drop(closed.await),
            Err(_) => self.shared.threads.wait(),
        }
    }

    /// As [`close`](Self::close), blocking the thread.
    pub fn close_blocking(&self) {
        self.signal();
        self.shared.threads.wait();
    }

    fn signal(&self) {
        self.shared.work.close();
        self.shared.questions.close();
    }

    fn new(
        place: &Place,
        options: SqliteOptions,
        answers: Answers,
        refusal: fn() -> StoreError,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                place: place.clone(),
                identity: place.identity(),
                options,
                work: Arc::new(Queue::new()),
                questions: Arc::new(Queue::new()),
                refused: RefusedRequests::new(answers.clone(), refusal),
                inside: RefusedRequests::new(answers, failure::inside_handler),
                threads: Threads::default(),
            }),
        }
    }

    fn start(
        conn: SqliteConnection,
        place: &Place,
        options: SqliteOptions,
        lock: Option<FileLock>,
    ) -> Result<Self, OpenError> {
        let answers = Answers::default();
        let (answering, answerer) = Answering::new(answers.clone());
        let writer = Writer::new(conn, place.clone(), options.clone(), answering);
        let store = Self::new(place, options, answers, failure::closed);
        if place.is_file() {
            store.shared.start_readers()?;
        }
        store.shared.start_answerer(answerer)?;
        store.shared.start_writer(writer, lock)?;
        Ok(store)
    }
}

/// The place of the file at `path`, to be opened with settings that can work.
fn checked_place(path: &Path, options: &SqliteOptions) -> Result<Place, OpenError> {
    options.check().map_err(|source| OpenError::Config {
        path: path.to_owned(),
        source,
    })?;
    Place::file(path)
}

impl Shared {
    fn start_writer(&self, writer: Writer, lock: Option<FileLock>) -> Result<(), OpenError> {
        let work = Arc::clone(&self.work);
        // The lock is released last: until then the connection has the file.
        let write = move || (writer.run(&work), lock);
        self.threads
            .start_writer(write)
            .map_err(|error| self.not_started(error))
    }

    fn start_answerer(&self, answerer: Answerer) -> Result<(), OpenError> {
        self.threads
            .start("event-store-answers", || answerer.run())
            .map_err(|error| self.not_started(error))
    }

    fn start_readers(&self) -> Result<(), OpenError> {
        for _ in 0..self.options.readers {
            let (place, options) = (self.place.clone(), self.options.clone());
            let (identity, questions) = (self.identity, Arc::clone(&self.questions));
            let read = move || reader::run(&place, identity, &options, &questions);
            self.threads
                .start("event-store-reader", read)
                .map_err(|error| self.not_started(error))?;
        }
        Ok(())
    }

    fn not_started(&self, error: std::io::Error) -> OpenError {
        OpenError::Store {
            path: self.place.path().to_owned(),
            source: failure::file_error("a thread of the store was not started", error),
        }
    }
}

impl Drop for SqliteEventStore {
    fn drop(&mut self) {
        self.signal();
    }
}

impl fmt::Debug for SqliteEventStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteEventStore")
            .field("path", &self.shared.place.path())
            .finish_non_exhaustive()
    }
}
