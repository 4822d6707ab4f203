//! Goals of reading the log.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use domain_events::{AggregateRef, DomainEvent, EventQuery, EventStream, ReadError};
use event_store_diesel::SqliteEventStore;
use rusqlite::{Connection, OpenFlags, Row};

use crate::{
    durable::{FILE, fill, folder, open},
    events::{Measured, events},
    measure::{Figure, Scale, compare, rate},
    memory::on_runtime,
};

const EVENTS_EACH: usize = 100;

/// Histories of one aggregate after the other, each of 100 events, out of a million.
pub(crate) fn history(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let folder = folder()?;
    let path = folder.path().join(FILE);
    let aggregates = count / EVENTS_EACH;
    fill(&path, count, aggregates)?;
    // Far apart, so that none finds the pages of the one before.
    let meters = events(aggregates, aggregates).step_by(aggregates / scale.of(1_000));
    let meters: Vec<Arc<str>> = meters.map(|event| event.meter).collect();
    let subject = || on_runtime(histories(open(&path)?, meters.clone()));
    let reference = || histories_by_hand(&path, &meters);
    let figure = compare("read/history", scale, 0.8, subject, reference)?;
    Ok(vec![figure])
}

/// The whole log, each event decoded to its type.
pub(crate) fn scan(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let folder = folder()?;
    let path = folder.path().join(FILE);
    fill(&path, count, count / EVENTS_EACH)?;
    let subject = || on_runtime(scanned(open(&path)?, count));
    let reference = || scanned_by_hand(&path, count);
    let figure = compare("read/scan", scale, 0.8, subject, reference)?;
    Ok(vec![figure])
}

async fn histories(store: Arc<SqliteEventStore>, meters: Vec<Arc<str>>) -> Result<f64> {
    let count = meters.len() * EVENTS_EACH;
    let start = Instant::now();
    for meter in meters {
        let query = EventQuery::history(AggregateRef::new(Measured::AGGREGATE_TYPE, &meter));
        let last = EventStream::new(&*store, query).fold(0, |last, event| {
            let event = event.typed::<Measured>()?;
            Ok::<_, ReadError>(next(last, event.number))
        });
        ensure!(last.await? == EVENTS_EACH as u64, "a history is not whole");
    }
    let rate = rate(count, start);
    store.close().await;
    Ok(rate)
}

/// `number`, if it follows `last`; else what nothing follows.
fn next(last: u64, number: u64) -> u64 {
    if number == last + 1 {
        number
    } else {
        u64::MAX - 1
    }
}

async fn scanned(store: Arc<SqliteEventStore>, count: usize) -> Result<f64> {
    let mut order = Order::of(count);
    let start = Instant::now();
    let mut stream = EventStream::new(&*store, EventQuery::Log);
    while let Some(event) = stream.next().await? {
        let event = event.typed::<Measured>()?;
        order.check(event.slot, event.number)?;
    }
    let rate = rate(count, start);
    order.check_all(count)?;
    store.close().await;
    Ok(rate)
}

/// What was read of each aggregate.
struct Order {
    last: Vec<u64>,
    read: usize,
}

impl Order {
    fn of(count: usize) -> Self {
        Self {
            last: vec![0; count / EVENTS_EACH],
            read: 0,
        }
    }

    fn check(&mut self, slot: usize, number: u64) -> Result<()> {
        let last = std::mem::replace(&mut self.last[slot], number);
        ensure!(number == last + 1, "{number} was read after {last}");
        self.read += 1;
        Ok(())
    }

    fn check_all(&self, count: usize) -> Result<()> {
        ensure!(self.read == count, "{} of {count} were read", self.read);
        Ok(())
    }
}

const COLUMNS: &str = "position, event_id, type_key, aggregate_key, version, schema_version, urgency, payload, \
                       metadata, correlation_id, causation_id, occurred_at, recorded_at";

/// An event with everything the log says of it.
struct Found {
    _numbers: [i64; 8],
    _ids: ([u8; 16], [u8; 16], Option<[u8; 16]>),
    _metadata: Option<String>,
    event: Measured,
}

fn found(row: &Row<'_>) -> Result<Found> {
    let numbers = [0, 2, 3, 4, 5, 6, 11, 12];
    let mut values = [0; 8];
    for (value, column) in values.iter_mut().zip(numbers) {
        *value = row.get(column)?;
    }
    Ok(Found {
        _numbers: values,
        _ids: (row.get(1)?, row.get(9)?, row.get(10)?),
        _metadata: row.get(8)?,
        event: serde_json::from_slice(row.get_ref(7)?.as_blob()?)?,
    })
}

fn look(path: &Path) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    Ok(connection)
}

fn histories_by_hand(path: &Path, meters: &[Arc<str>]) -> Result<f64> {
    let connection = look(path)?;
    let mut select = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM de_events WHERE aggregate_key = (SELECT aggregate_key FROM de_aggregates \
         WHERE aggregate_type = 'meter' AND aggregate_id = ?) ORDER BY version"
    ))?;
    let start = Instant::now();
    for meter in meters {
        let mut rows = select.query([&**meter])?;
        let mut history = Vec::new();
        while let Some(row) = rows.next()? {
            history.push(found(row)?);
        }
        let last = history
            .iter()
            .fold(0, |last, it| next(last, it.event.number));
        ensure!(last == EVENTS_EACH as u64, "a history is not whole");
    }
    Ok(rate(meters.len() * EVENTS_EACH, start))
}

fn scanned_by_hand(path: &Path, count: usize) -> Result<f64> {
    let connection = look(path)?;
    let select = format!("SELECT {COLUMNS} FROM de_events ORDER BY position");
    let mut select = connection.prepare(&select).context("no log")?;
    let mut order = Order::of(count);
    let start = Instant::now();
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let Measured { slot, number, .. } = found(row)?.event;
        order.check(slot, number)?;
    }
    let rate = rate(count, start);
    order.check_all(count)?;
    Ok(rate)
}
