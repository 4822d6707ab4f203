//! One life: a store is opened, a bus runs over it, and at some moment it ends.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use domain_events::{DeadLetterQuery, EventBus, EventStore};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{Durability, SqliteEventStore, SqliteOptions};
use event_testkit::interceptor::Intercepted;
use tokio::time::{sleep, timeout};

use crate::{
    events::NAMES,
    handlers::Handlers,
    journal::{Fact, Journal},
    load::Load,
    own::{Application, Folds},
    plan::{End, Life},
    watched::Watched,
};

/// Who has not met its end by then is killed all the same.
const LATEST: Duration = Duration::from_millis(200);

/// How long a life may take to come to its own end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lives, unless something ends it.
pub(crate) fn live(life: &Life) -> Result<ExitCode> {
    let journal = Arc::new(Journal::open(&life.folder.join("journal"))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if life.end == End::InMigration {
            die_after(life.nth * 20, &journal);
        }
        let mut random = fastrand::Rng::with_seed(life.seed);
        let store = SqliteEventStore::open(life.folder.join("events.db"), options(&mut random))?;
        let store = Arc::new(Watched::new(store, life, &journal));
        let bus = InMemoryEventBus::with_store(
            config(&mut random),
            Arc::new(Intercepted(Arc::clone(&store))),
        )?;
        for subscription in Handlers::new(life, &journal).subscriptions() {
            bus.subscribe(subscription).await?;
        }
        bus.subscribe(Folds::subscription(life, &journal)).await?;
        let own = Application::new(&life.folder.join("events.db"))?;
        let seen = store.inner.head().await?;
        bus.start().await?;
        let load = Arc::new(Load::new(&Arc::new(bus), &journal, life, seen, own));
        match life.end {
            End::Settled => timeout(PATIENCE, settle(&load))
                .await
                .context("not idle")??,
            _ => run(&load).await?,
        }
        close(&load, &store).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn options(random: &mut fastrand::Rng) -> SqliteOptions {
    SqliteOptions {
        durability: match random.bool() {
            true => Durability::Full,
            false => Durability::Normal,
        },
        checkpoint_pages: [20, 8_000][random.usize(..2)],
        ..SqliteOptions::default()
    }
}

fn config(random: &mut fastrand::Rng) -> BusConfig {
    BusConfig {
        capacity: [8, 64, 1_000][random.usize(..3)],
        workers: random.usize(1..5),
        progress_interval: Duration::from_millis([1, 10, 50][random.usize(..3)]),
        ..BusConfig::default()
    }
}

/// Has the process killed in so many hundredths of a millisecond, or a little later.
fn die_after(hundredths: u64, journal: &Arc<Journal>) {
    let journal = Arc::clone(journal);
    thread::spawn(move || {
        thread::sleep(Duration::from_micros(10 * hundredths));
        journal.die();
    });
}

/// Runs under load for as long as a life takes, at the most.
async fn run(load: &Arc<Load>) -> Result<()> {
    let publishers = [1, 2].map(|seed| {
        let load = Arc::clone(load);
        tokio::spawn(async move { load.publish(seed).await })
    });
    let intervening = {
        let load = Arc::clone(load);
        let is_left_alone = load.life.peaceful;
        tokio::spawn(async move {
            match is_left_alone {
                true => Ok(()),
                false => load.intervene().await,
            }
        })
    };
    let mut random = fastrand::Rng::with_seed(load.life.seed ^ 7);
    let end = load.life.end;
    if matches!(end, End::Clean | End::InClose) {
        sleep(Duration::from_millis(random.u64(10..150))).await;
    } else {
        sleep(LATEST).await;
        // The moment that was meant has not come.
        if end != End::Random {
            rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            )?;
        }
        sleep(PATIENCE).await;
    }
    load.is_over.store(true, Ordering::Relaxed);
    for task in publishers {
        task.await??;
    }
    intervening.await?
}

/// Has everything delivered that can be, until there is no dead letter.
async fn settle(load: &Load) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(load.life.seed ^ 5);
    loop {
        for someone in 0..NAMES.len() {
            load.resume(someone).await;
        }
        load.bus.wait_idle().await?;
        let letters = load.bus.dead_letters(&DeadLetterQuery::all(), 500).await?;
        match random.u8(..3) {
            _ if letters.is_empty() => return Ok(()),
            0 => drop(load.bus.replay_all(&DeadLetterQuery::all()).await?),
            _ => {
                for letter in &letters {
                    load.settle(letter, random.u8(..4) == 0).await?;
                }
            }
        }
    }
}

async fn close(load: &Load, store: &Watched) -> Result<()> {
    if load.life.end == End::InClose {
        die_after(load.life.nth * 2, &load.journal);
    }
    let report = load.bus.stop(Duration::from_secs(20)).await?;
    store.inner.close().await;
    let clean = report.cut_off == 0 && report.unsaved.is_none();
    ensure!(load.life.end != End::Settled || clean, "{report:?}");
    load.journal.note(&Fact::Stopped(clean));
    if load.life.end == End::InClose {
        sleep(PATIENCE).await;
    }
    Ok(())
}
