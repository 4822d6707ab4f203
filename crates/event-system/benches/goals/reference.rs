//! What the goals are measured against: bare channels, and a bare writer of `SQLite`.

use std::{
    any::Any,
    path::Path,
    sync::{Arc, mpsc as blocking},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use domain_events::EventId;
use rusqlite::{Connection, Statement, params};
use tokio::sync::{mpsc, oneshot};

use crate::{
    events::{Measured, events},
    measure::rate,
    memory::{AGGREGATES, CAPACITY, on_runtime},
};

/// Events a second through a bounded channel, from one task to another, `batch` at a time.
pub(crate) fn channel(count: usize, batch: usize) -> Result<f64> {
    on_runtime(async move {
        let events =
            events(count, AGGREGATES).map(|event| Arc::new(event) as Arc<dyn Any + Send + Sync>);
        let events: Vec<_> = events.collect();
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let start = Instant::now();
        let receiving = tokio::spawn(receive(receiver, batch));
        if batch == 1 {
            send_each(&sender, events).await?;
        } else {
            send_batches(&sender, events, batch).await?;
        }
        drop(sender);
        let received = receiving.await?;
        let rate = rate(count, start);
        ensure!(
            received == count,
            "{received} of {count} went through the channel"
        );
        Ok(rate)
    })
}

type Anything = Arc<dyn Any + Send + Sync>;

async fn send_each(sender: &mpsc::Sender<Anything>, events: Vec<Anything>) -> Result<()> {
    for event in events {
        sender.send(event).await?;
    }
    Ok(())
}

async fn send_batches(
    sender: &mpsc::Sender<Anything>,
    events: Vec<Anything>,
    batch: usize,
) -> Result<()> {
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        let places = batch.min(events.len());
        for (place, event) in sender.reserve_many(places).await?.zip(events.by_ref()) {
            place.send(event);
        }
    }
    Ok(())
}

async fn receive(mut receiver: mpsc::Receiver<Anything>, batch: usize) -> usize {
    let (mut received, mut events) = (0, Vec::with_capacity(batch));
    while receiver.recv_many(&mut events, batch).await > 0 {
        received += events
            .drain(..)
            .filter(|event| event.is::<Measured>())
            .count();
    }
    received
}

const SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";

/// A log as one would write it by hand.
pub(crate) const TABLE: &str = "
    CREATE TABLE events (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id BLOB NOT NULL UNIQUE,
        event_type TEXT NOT NULL,
        aggregate_type TEXT NOT NULL,
        aggregate_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        payload BLOB NOT NULL,
        correlation_id BLOB NOT NULL,
        occurred_at INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL,
        UNIQUE (aggregate_id, version)
    );";

const INSERT: &str = "
    INSERT INTO events (event_id, event_type, aggregate_type, aggregate_id, version, payload,
        correlation_id, occurred_at, recorded_at)
    VALUES (?, 'goals.measured', 'meter', ?, ?, ?, ?, ?, ?)";

fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch(SETTINGS)?;
    connection.execute_batch(TABLE)?;
    let synchronous: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    ensure!(
        synchronous == 2 && mode == "wal",
        "the reference runs with {mode} and {synchronous}"
    );
    Ok(connection)
}

/// The statements of a commit, prepared once.
struct Commits<'c> {
    begin: Statement<'c>,
    insert: Statement<'c>,
    commit: Statement<'c>,
}

impl<'c> Commits<'c> {
    fn new(connection: &'c Connection) -> Result<Self> {
        Ok(Self {
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            insert: connection.prepare(INSERT)?,
            commit: connection.prepare("COMMIT")?,
        })
    }

    fn commit<'a>(&mut self, rows: impl IntoIterator<Item = &'a Row>) -> Result<()> {
        self.begin.execute([])?;
        for row in rows {
            let id = row.id.as_bytes();
            let Measured { meter, number, .. } = &row.event;
            let version = i64::try_from(*number)?;
            self.insert
                .execute(params![id, meter, version, row.payload, id, row.at, row.at])?;
        }
        self.commit.execute([])?;
        Ok(())
    }
}

fn count_rows(connection: &Connection, expected: usize) -> Result<()> {
    let rows: i64 = connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0))?;
    ensure!(
        rows == expected as i64,
        "the reference stored {rows} events of {expected}"
    );
    Ok(())
}

struct Row {
    id: EventId,
    event: Measured,
    payload: Vec<u8>,
    at: i64,
}

impl Row {
    fn new(event: Measured) -> Result<Self> {
        let payload = serde_json::to_vec(&event)?;
        let at = domain_events::Timestamp::now().as_micros();
        Ok(Self {
            id: EventId::new(),
            event,
            payload,
            at,
        })
    }
}

/// Events a second from so many publishers, each waiting for its commit, to a thread that commits
/// whatever came while the last commit ran.
pub(crate) fn writer(path: &Path, publishers: Vec<Vec<Measured>>) -> Result<f64> {
    let count = publishers.iter().map(Vec::len).sum();
    let connection = open(path)?;
    let (sender, queue) = blocking::channel::<(Row, oneshot::Sender<()>)>();
    let thread = thread::spawn(move || -> Result<Connection> {
        let mut commits = Commits::new(&connection)?;
        while let Ok(first) = queue.recv() {
            let group: Vec<_> = [first].into_iter().chain(queue.try_iter()).collect();
            commits.commit(group.iter().map(|(row, _)| row))?;
            for (_, done) in group {
                let _ = done.send(());
            }
        }
        drop(commits);
        Ok(connection)
    });
    let rate = on_runtime(async move {
        let start = Instant::now();
        let tasks: Vec<_> = publishers
            .into_iter()
            .map(|events| tokio::spawn(publish(sender.clone(), events)))
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(rate(count, start))
    })?;
    let connection = thread.join().ok().context("the writer panicked")??;
    count_rows(&connection, count)?;
    Ok(rate)
}

async fn publish(
    sender: blocking::Sender<(Row, oneshot::Sender<()>)>,
    events: Vec<Measured>,
) -> Result<()> {
    for event in events {
        let (done, committed) = oneshot::channel();
        sender
            .send((Row::new(event)?, done))
            .ok()
            .context("the writer is gone")?;
        committed.await?;
    }
    Ok(())
}

/// Events a second, `size` a commit, on the thread that makes them.
pub(crate) fn commits(path: &Path, events: &[Measured], size: usize) -> Result<f64> {
    let connection = open(path)?;
    let mut commits = Commits::new(&connection)?;
    let start = Instant::now();
    for batch in events.chunks(size) {
        let rows = batch
            .iter()
            .cloned()
            .map(Row::new)
            .collect::<Result<Vec<_>>>()?;
        commits.commit(&rows)?;
    }
    let rate = rate(events.len(), start);
    count_rows(&connection, events.len())?;
    Ok(rate)
}
