//! The event store on SQLite: its threads, and the ports they serve.

use std::{
    fmt,
    ops::RangeInclusive,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use async_trait::async_trait;
use diesel::{QueryResult, SqliteConnection};
use domain_events::{
    AggregateRef, Append, AppendDone, ChangesDone, DeadLetter, DeliveryChanges, DeliveryStore,
    EventEnvelope, EventId, EventStore, Position, Registration, RegistrationDone, RunState,
    StoreError, StoreErrorKind, Version, promise,
};

use crate::{
    OpenError, SqliteOptions,
    append::AppendRequest,
    database,
    deliveries::ChangesRequest,
    failure,
    late::LateRequests,
    lock::FileLock,
    ownership,
    place::Place,
    queue::Queue,
    reader::{self, Job},
    registrations::{RegistrationRequest, RunRequest},
    session::Session,
    writer::{Answers, Request, Work, Writer},
};

/// A log of events and the state of their deliveries, in one SQLite database.
///
/// One thread writes: requests that wait while a commit runs share the next one. A few others
/// read. A process has a store to itself (R6); tools that only read may open the file at any time.
///
/// Dropping the store only signals its threads: what was handed over is still finished, and the
/// file is released shortly after. [`close`](Self::close) waits for that (L2).
pub struct SqliteEventStore {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    max_payload_bytes: usize,
    work: Arc<Queue<Work>>,
    questions: Arc<Queue<Job>>,
    late: LateRequests,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SqliteEventStore {
    /// Opens the store in the file at `path`, which is made if it is missing; its directory is
    /// not. Blocks the thread for the time this takes.
    ///
    /// # Errors
    /// [`OpenError`] names the path; a file that is refused is left as it is.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        options.check().map_err(|source| OpenError::Config {
            path: path.to_owned(),
            source,
        })?;
        let place = Place::file(path)?;
        // Before the lock, so that a refused file gets no lock file beside it.
        ownership::check_untouched(&place, options.share_database)?;
        let lock = FileLock::take(place.path())?;
        let conn = database::create(&place, &options)?;
        Self::start(conn, &place, options, Some(Arc::new(lock)))
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

    /// The file of the store; `None` in memory. It is absolute and free of links.
    pub fn path(&self) -> Option<&Path> {
        let place = &self.shared.place;
        place.is_file().then(|| place.path())
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
            shared.wait();
            promise.keep(());
        };
        match thread::Builder::new()
            .name("event-store-close".into())
            .spawn(wait)
        {
            Ok(_) => drop(closed.await),
            Err(_) => self.shared.wait(),
        }
    }

    /// As [`close`](Self::close), blocking the thread.
    pub fn close_blocking(&self) {
        self.signal();
        self.shared.wait();
    }

    fn signal(&self) {
        self.shared.work.close();
        self.shared.questions.close();
    }

    fn start(
        conn: SqliteConnection,
        place: &Place,
        options: SqliteOptions,
        lock: Option<Arc<FileLock>>,
    ) -> Result<Self, OpenError> {
        let answers = Answers::default();
        let store = Self {
            shared: Arc::new(Shared {
                place: place.clone(),
                max_payload_bytes: options.max_payload_bytes,
                work: Arc::new(Queue::new()),
                questions: Arc::new(Queue::new()),
                late: LateRequests::new(answers.clone()),
                threads: Mutex::new(Vec::new()),
            }),
        };
        let failed = |source| OpenError::Store {
            path: place.path().to_owned(),
            source: failure::file_error("a thread of the store was not started", source),
        };
        if place.is_file() {
            for _ in 0..options.readers {
                store
                    .shared
                    .start_reader(&options, lock.clone())
                    .map_err(failed)?;
            }
        }
        let writer = Writer::new(conn, place.clone(), options, answers);
        store.shared.start_writer(writer, lock).map_err(failed)?;
        Ok(store)
    }

    fn hand_over(&self, request: impl Request + 'static) {
        let work = Work::Write(Box::new(request));
        if let Err(Work::Write(request)) = self.shared.work.push(work) {
            self.shared.late.refuse(request);
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        question: impl FnOnce(&mut Session) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (promise, answer) = promise();
        let job: Job = Box::new(move |session| {
            let failed = |error| failure::store_error(what, error);
            let answer = session.and_then(|session| question(session).map_err(failed));
            let is_sound = !answer.as_ref().is_err_and(|error| {
                matches!(error.kind(), StoreErrorKind::Io | StoreErrorKind::Corrupt)
            });
            promise.keep(answer);
            is_sound
        });
        let taken = match &self.shared.place {
            Place::File(_) => self.shared.questions.push(job).is_ok(),
            Place::Memory => self.shared.work.push(Work::Read(job)).is_ok(),
        };
        if !taken {
            return Err(failure::closed());
        }
        answer.await.unwrap_or_else(|| Err(failure::closed()))
    }
}

impl Shared {
    fn start_writer(&self, writer: Writer, lock: Option<Arc<FileLock>>) -> std::io::Result<()> {
        let work = Arc::clone(&self.work);
        self.spawn("event-store-writer", move || {
            // Released last: until then the connection has the file.
            let _lock = lock;
            writer.run(&work);
        })
    }

    fn start_reader(
        &self,
        options: &SqliteOptions,
        lock: Option<Arc<FileLock>>,
    ) -> std::io::Result<()> {
        let (place, options) = (self.place.clone(), options.clone());
        let questions = Arc::clone(&self.questions);
        self.spawn("event-store-reader", move || {
            let _lock = lock;
            reader::run(&place, &options, &questions);
        })
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        self.threads().push(thread);
        Ok(())
    }

    /// Waits until all threads have ended.
    fn wait(&self) {
        // Held throughout, so that a second caller returns no sooner than the first.
        let mut threads = self.threads();
        let ended = threads.drain(..).map(JoinHandle::join);
        if ended.filter(Result::is_err).count() > 0 {
            log::error!("a thread of the store panicked");
        }
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
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

#[async_trait]
impl EventStore for SqliteEventStore {
    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        self.hand_over(AppendRequest::new(
            batch,
            self.shared.max_payload_bytes,
            done,
        ));
    }

    async fn get(&self, id: EventId) -> Result<Option<EventEnvelope>, StoreError> {
        self.ask("the event was not read", move |session| session.event(id))
            .await
    }

    async fn read_aggregate(
        &self,
        aggregate: &AggregateRef,
        versions: RangeInclusive<Version>,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        let aggregate = aggregate.clone();
        self.ask("the aggregate's history was not read", move |session| {
            session.history(&aggregate, &versions, limit)
        })
        .await
    }

    async fn read_log(
        &self,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        self.ask("the log was not read", move |session| {
            session.log(after, limit)
        })
        .await
    }

    async fn head(&self) -> Result<Position, StoreError> {
        self.ask("the head of the log was not read", Session::head)
            .await
    }
}

#[async_trait]
impl DeliveryStore for SqliteEventStore {
    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        let (promise, state) = promise();
        self.hand_over(RunRequest::new(registrations, promise));
        state.await.unwrap_or_else(|| Err(failure::closed()))
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.hand_over(RegistrationRequest::new(registration, done));
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        self.hand_over(ChangesRequest::new(changes, done));
    }

    async fn dead_letters(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let subscription = subscription.map(str::to_owned);
        self.ask("the dead letters were not read", move |session| {
            session.dead_letters(subscription.as_deref(), limit)
        })
        .await
    }
}
