//! Goals of the bus with its store.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use domain_events::{
    Append, EventBus, EventStore, ExpectedVersion, NewEvent, Position, RetryPolicy, StartFrom,
    Subscription,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use tempfile::TempDir;

use crate::{
    events::{Fails, Ledger, Measured, batches, events},
    measure::{Figure, Scale, compare, limit, rate},
    memory::{on_runtime, stopped},
    process, reference,
};

/// Far more than fit into the page of an index, so that each event touches pages of its own.
pub(crate) const AGGREGATES: usize = 10_240;
const PUBLISHERS: usize = 512;
const BATCH: usize = 1_000;
const PAGE: usize = 1_000;
pub(crate) const FILE: &str = "events.db";

/// One publisher that waits for each commit, against a bare writer thread.
pub(crate) fn one(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(10_000);
    let subject = || {
        let ledger = Ledger::new(AGGREGATES);
        let folder = folder()?;
        on_runtime(async move {
            let durable = Durable::start(folder.path(), 2, [ledger.subscription("one")]).await?;
            let start = Instant::now();
            for event in events(count, AGGREGATES) {
                durable.bus.publish(event.into()).await?;
            }
            let rate = rate(count, start);
            durable.finish(&[ledger], count).await?;
            Ok(rate)
        })
    };
    let reference = || {
        reference::writer(
            &folder()?.path().join("plain.db"),
            vec![events(count, AGGREGATES).collect()],
        )
    };
    Ok(vec![compare(
        "durable/one",
        scale,
        0.9,
        subject,
        reference,
    )?])
}

/// 512 publishers that wait for each commit, to handled and saved, against a bare writer thread.
pub(crate) fn concurrent(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(204_800);
    let subject = || {
        let ledger = Ledger::new(AGGREGATES);
        let folder = folder()?;
        on_runtime(async move {
            let durable =
                Durable::start(folder.path(), 2, [ledger.subscription("concurrent")]).await?;
            let start = Instant::now();
            let publishers = publishers(count)
                .into_iter()
                .map(|events| tokio::spawn(publish_each(Arc::clone(&durable.bus), events)));
            for publisher in publishers.collect::<Vec<_>>() {
                publisher.await??;
            }
            durable.bus.wait_idle().await?;
            let rate = rate(count, start);
            durable.finish(&[ledger], count).await?;
            Ok(rate)
        })
    };
    let reference = || reference::writer(&folder()?.path().join("plain.db"), publishers(count));
    Ok(vec![compare(
        "durable/concurrent",
        scale,
        1.5,
        subject,
        reference,
    )?])
}

/// Batches of 1,000, to handled and saved, against bare commits of 1,000.
pub(crate) fn batch(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(200_000);
    let subject = || in_batches(count, 1, Fails::Never);
    let reference = || {
        let events: Vec<_> = events(count, AGGREGATES).collect();
        reference::commits(&folder()?.path().join("plain.db"), &events, BATCH)
    };
    Ok(vec![compare(
        "durable/batch",
        scale,
        1.5,
        subject,
        reference,
    )?])
}

/// The same for eight subscriptions, against one.
pub(crate) fn subscriptions(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(200_000);
    let subject = || in_batches(count, 8, Fails::Never);
    let reference = || in_batches(count, 1, Fails::Never);
    let figure = compare("durable/subscriptions", scale, 0.7, subject, reference)?;
    Ok(vec![figure])
}

/// The same where every first attempt fails and the second succeeds, against none that fails.
pub(crate) fn failing(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(200_000);
    let subject = || in_batches(count, 1, Fails::FirstAttempts);
    let reference = || in_batches(count, 1, Fails::Never);
    let figure = compare("durable/failing", scale, 0.2, subject, reference)?;
    Ok(vec![figure])
}

/// Events a second in batches of 1,000, to handled by each subscription and saved.
fn in_batches(count: usize, subscriptions: usize, fails: Fails) -> Result<f64> {
    let ledgers: Vec<_> = (0..subscriptions)
        .map(|_| Ledger::failing(AGGREGATES, fails))
        .collect();
    let folder = folder()?;
    on_runtime(async move {
        // What is retried is retried soon: what is measured is the way there and back.
        let retry = RetryPolicy::exponential().base(Duration::from_millis(1));
        let named = |(number, ledger): (usize, &Ledger)| {
            let subscription = ledger.subscription(&format!("subscription {number}"));
            subscription.retry(retry.clone())
        };
        let named: Vec<_> = ledgers.iter().enumerate().map(named).collect();
        let durable = Durable::start(folder.path(), 2, named).await?;
        let time = published_in_batches(&*durable.bus, count).await?;
        durable.finish(&ledgers, count).await?;
        Ok(count as f64 / time.as_secs_f64())
    })
}

/// 1,000 events as one batch, four workers: what the reference system takes 2,040 ms for.
pub(crate) fn reference_1000(scale: Scale) -> Result<Vec<Figure>> {
    let subject = || {
        let ledger = Ledger::new(AGGREGATES);
        let folder = folder()?;
        on_runtime(async move {
            let durable =
                Durable::start(folder.path(), 4, [ledger.subscription("reference")]).await?;
            let time = published_in_batches(&*durable.bus, 1_000).await?;
            durable.finish(&[ledger], 1_000).await?;
            Ok(time.as_secs_f64() * 1_000.0)
        })
    };
    Ok(vec![limit("reference/1000", scale, (30.0, "ms"), subject)?])
}

/// A subscription that has a whole log before it, against reading that log.
pub(crate) fn backlog(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let folder = folder()?;
    let path = folder.path().to_owned();
    // In a process of its own, so that its memory is not counted here.
    let filled = Command::new(env::current_exe()?)
        .arg("--fill")
        .arg(path.join(FILE))
        .arg(count.to_string())
        .status()?;
    ensure!(filled.success(), "the log was not filled");

    let (slowest, most, runs) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let subject = || {
        // A new name begins at the beginning of the log.
        let name = format!("backlog-{}", runs.fetch_add(1, Relaxed));
        let recovery = on_runtime(recover(path.clone(), name, count))?;
        slowest.fetch_max(recovery.first.as_micros() as u64, Relaxed);
        most.fetch_max(recovery.grown, Relaxed);
        Ok(recovery.rate)
    };
    let reference = || on_runtime(scan(path.clone(), count));
    let rate = compare("recovery/backlog", scale, 0.7, subject, reference)?;
    let first = slowest.into_inner() as f64 / 1_000_000.0;
    let grown = process::growth(0, most.into_inner());
    Ok(vec![
        rate,
        Figure::at_most("recovery/backlog/first", "s", 0.5, first),
        Figure::at_most("recovery/backlog/memory", "MiB", 64.0, grown),
    ])
}

/// Fills a new store with `count` events of so many aggregates, that nobody has handled.
pub(crate) fn fill(file: &Path, count: usize, aggregates: usize) -> Result<()> {
    let store = open(file)?;
    on_runtime(async move {
        for batch in batches(count, aggregates, BATCH) {
            let append = |event: NewEvent| Append {
                expected: ExpectedVersion::Any,
                event: event.seal(),
            };
            store
                .append(batch.into_iter().map(append).collect())
                .await?;
        }
        Ok(())
    })
}

struct Recovery {
    rate: f64,
    first: Duration,
    /// Bytes of memory at the worst moment, beyond those at the start.
    grown: u64,
}

async fn recover(folder: PathBuf, name: String, count: usize) -> Result<Recovery> {
    let ledger = Ledger::new(AGGREGATES);
    let before = process::resident()?;
    let running = Arc::new(AtomicBool::new(true));
    let peak = tokio::spawn(peak_of_memory(Arc::clone(&running)));

    let start = Instant::now();
    let subscription = ledger.subscription(&name).start_from(StartFrom::Beginning);
    let durable = Durable::start(&folder, 2, [subscription]).await?;
    durable.bus.wait_idle().await?;
    let rate = rate(count, start);

    running.store(false, Relaxed);
    let grown = peak.await??.saturating_sub(before);
    let first = ledger
        .first()
        .context("no event was handled")?
        .duration_since(start);
    durable.finish(&[ledger], count).await?;
    Ok(Recovery { rate, first, grown })
}

async fn peak_of_memory(running: Arc<AtomicBool>) -> Result<u64> {
    let mut peak = 0;
    while running.load(Relaxed) {
        peak = peak.max(process::resident()?);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(peak)
}

/// Events a second, read in pages and decoded to their type.
async fn scan(folder: PathBuf, count: usize) -> Result<f64> {
    let store = open(&folder.join(FILE))?;
    let start = Instant::now();
    let (mut after, mut read) = (Position::ZERO, 0);
    loop {
        let page = store.read_log(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last
            .position()
            .context("an event of the log has no position")?;
        for envelope in page {
            let event = Arc::new(envelope).typed::<Measured>()?;
            read += usize::from(event.number > 0);
        }
    }
    let rate = rate(count, start);
    store.close().await;
    ensure!(read == count, "{read} events of {count} were read");
    Ok(rate)
}

/// Whose aggregates are each one publisher's own, so that its order is the order of the log.
fn publishers(count: usize) -> Vec<Vec<Measured>> {
    let mut publishers = vec![Vec::new(); PUBLISHERS];
    for event in events(count, AGGREGATES) {
        publishers[event.slot % PUBLISHERS].push(event);
    }
    publishers
}

async fn publish_each(bus: Arc<dyn EventBus>, events: Vec<Measured>) -> Result<()> {
    for event in events {
        bus.publish(event.into()).await?;
    }
    Ok(())
}

async fn published_in_batches(bus: &dyn EventBus, count: usize) -> Result<Duration> {
    let batches = batches(count, AGGREGATES, BATCH);
    let start = Instant::now();
    for batch in batches {
        bus.publish_all(batch).await?;
    }
    bus.wait_idle().await?;
    Ok(start.elapsed())
}

/// A running bus over the store in a file.
pub(crate) struct Durable {
    pub(crate) bus: Arc<dyn EventBus>,
    store: Arc<SqliteEventStore>,
}

impl Durable {
    /// Opens the store in `folder` and starts a bus with these subscriptions.
    pub(crate) async fn start(
        folder: &Path,
        workers: usize,
        subscriptions: impl IntoIterator<Item = Subscription>,
    ) -> Result<Self> {
        let store = open(&folder.join(FILE))?;
        let config = BusConfig {
            workers,
            ..BusConfig::default()
        };
        let bus = Arc::new(InMemoryEventBus::with_store(config, Arc::clone(&store))?);
        for subscription in subscriptions {
            bus.subscribe(subscription).await?;
        }
        bus.start().await?;
        Ok(Self { bus, store })
    }

    /// Checks what was handled and that nothing is left, and closes the file.
    pub(crate) async fn finish(self, ledgers: &[Ledger], count: usize) -> Result<()> {
        self.bus.wait_idle().await?;
        stopped(&*self.bus).await?;
        self.store.close().await;
        ledgers.iter().try_for_each(|ledger| ledger.check(count))
    }
}

pub(crate) fn open(file: &Path) -> Result<Arc<SqliteEventStore>> {
    Ok(Arc::new(SqliteEventStore::open(
        file,
        SqliteOptions::default(),
    )?))
}

/// A folder on the disk of the build: `/tmp` may be memory, where a commit costs nothing.
pub(crate) fn folder() -> Result<TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}
