//! Goals of the bus without a store about many: subscriptions, aggregates, handlers that wait; and how
//! soon one event among few is handled.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use domain_events::{Event, EventBus, EventHandler, HandlerContext, NewEvent, Subscription};
use tokio::sync::mpsc;

use crate::{
    events::{Ledger, Measured, batches, events},
    measure::{Figure, Scale, compare, rate, within},
    memory::{AGGREGATES, BATCH, CAPACITY, all_handled, in_batches, on_runtime, started, stopped},
    process,
};

/// Deliveries to eight subscriptions, against events to one.
pub(crate) fn fanout(scale: Scale) -> Result<Vec<Figure>> {
    const SUBSCRIPTIONS: usize = 8;
    let count = scale.of(500_000);
    let subject = || {
        let ledgers: Vec<_> = (0..SUBSCRIPTIONS)
            .map(|_| Ledger::new(AGGREGATES))
            .collect();
        on_runtime(async move {
            let named = |(number, ledger): (usize, &Ledger)| {
                ledger.subscription(&format!("subscription {number}"))
            };
            let subscriptions: Vec<_> = ledgers.iter().enumerate().map(named).collect();
            let bus = started(CAPACITY, 2, subscriptions).await?;
            let rate = all_handled(&bus, batches(count, AGGREGATES, BATCH)).await?;
            ledgers.iter().try_for_each(|ledger| ledger.check(count))?;
            Ok(rate * SUBSCRIPTIONS as f64)
        })
    };
    let reference = || in_batches(count, AGGREGATES);
    let figure = compare("memory/fanout", scale, 2.5, subject, reference)?;
    Ok(vec![figure])
}

/// As many aggregates as events, made as they are published, against few; and what of their memory is
/// still there afterwards.
pub(crate) fn aggregates(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let mut left = Vec::new();
    let subject = || {
        let (rate, grown) = as_they_come(count, count)?;
        left.push(grown);
        Ok(rate)
    };
    let reference = || Ok(as_they_come(count, AGGREGATES)?.0);
    let figure = compare("memory/aggregates", scale, 0.3, subject, reference)?;
    // The first run has also had the memory of everything else to get.
    let last = left.last().copied().unwrap_or_default();
    let memory = Figure::at_most("memory/aggregates-left", "MiB", 8.0, last);
    Ok(vec![figure, memory])
}

/// The rate, and how many MiB more are in use after it than before.
fn as_they_come(count: usize, aggregates: usize) -> Result<(f64, f64)> {
    let ledger = Ledger::new(aggregates);
    on_runtime(async move {
        let bus = started(CAPACITY, 2, [ledger.subscription("many")]).await?;
        let mut stream = events(count, aggregates).map(NewEvent::from);
        let before = process::resident()?;
        let start = Instant::now();
        loop {
            let batch: Vec<_> = stream.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            bus.publish_all(batch).await?;
        }
        bus.wait_idle().await?;
        let rate = rate(count, start);
        let grown = process::growth(before, process::resident()?);
        stopped(&*bus).await?;
        ledger.check(count)?;
        Ok((rate, grown))
    })
}

/// Handlers that wait a millisecond, 64 at once, against as many tasks that do nothing else.
pub(crate) fn waiting(scale: Scale) -> Result<Vec<Figure>> {
    const WORKERS: usize = 64;
    const WAIT: Duration = Duration::from_millis(1);
    let count = scale.of(WORKERS * 2_000);
    let subject = || {
        let ledger = Ledger::new(10_000);
        on_runtime(async move {
            let waits = Subscription::from_fn("waits", {
                let ledger = ledger.clone();
                move |event: Event<Measured>, cx: HandlerContext| {
                    let ledger = ledger.clone();
                    async move {
                        tokio::time::sleep(WAIT).await;
                        ledger.handle(event, cx).await
                    }
                }
            });
            let bus = started(CAPACITY, WORKERS, [waits]).await?;
            let rate = all_handled(&bus, batches(count, 10_000, BATCH)).await?;
            ledger.check(count)?;
            Ok(rate)
        })
    };
    let reference = || {
        on_runtime(async move {
            let left = Arc::new(AtomicUsize::new(count));
            let start = Instant::now();
            let tasks: Vec<_> = (0..WORKERS)
                .map(|_| {
                    let left = Arc::clone(&left);
                    let one_less = move |left: usize| left.checked_sub(1);
                    tokio::spawn(async move {
                        while left.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
                            tokio::time::sleep(WAIT).await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await?;
            }
            Ok(rate(count, start))
        })
    };
    let figure = compare("memory/waiting", scale, 0.9, subject, reference)?;
    Ok(vec![figure])
}

/// From publishing to the handler, 99 of 100 events at a thousand a second, against a channel.
pub(crate) fn latency(scale: Scale) -> Result<Vec<Figure>> {
    const PACE: Duration = Duration::from_millis(1);
    let count = scale.of(5_000);
    let subject = || {
        on_runtime(async move {
            let seen = Arc::new(Mutex::new(Vec::with_capacity(count)));
            let mut sent = Vec::with_capacity(count);
            let notes = Subscription::from_fn("notes", {
                let seen = Arc::clone(&seen);
                move |_: Event<Measured>, _| {
                    let now = Instant::now();
                    seen.lock().expect("no handler panics").push(now);
                    async { Ok(()) }
                }
            });
            let bus = started(CAPACITY, 2, [notes]).await?;
            let mut pace = tokio::time::interval(PACE);
            for event in events(count, 1) {
                pace.tick().await;
                sent.push(Instant::now());
                bus.publish(NewEvent::from(event)).await?;
            }
            bus.wait_idle().await?;
            stopped(&*bus).await?;
            let seen = seen.lock().expect("nobody panics");
            p99(&sent, &seen)
        })
    };
    let reference = || {
        on_runtime(async move {
            let (sender, mut receiver) = mpsc::channel::<Instant>(CAPACITY);
            let receiving = tokio::spawn(async move {
                let (mut sent, mut seen) = (Vec::new(), Vec::new());
                while let Some(at) = receiver.recv().await {
                    seen.push(Instant::now());
                    sent.push(at);
                }
                (sent, seen)
            });
            let mut pace = tokio::time::interval(PACE);
            for _ in 0..count {
                pace.tick().await;
                sender.send(Instant::now()).await?;
            }
            drop(sender);
            let (sent, seen) = receiving.await?;
            p99(&sent, &seen)
        })
    };
    let figure = within("memory/latency", scale, (3.0, "µs"), subject, reference)?;
    Ok(vec![figure])
}

/// The time within which 99 in 100 were seen, in microseconds.
fn p99(sent: &[Instant], seen: &[Instant]) -> Result<f64> {
    ensure!(
        sent.len() == seen.len(),
        "{} of {} were seen",
        seen.len(),
        sent.len()
    );
    let mut took: Vec<_> = sent
        .iter()
        .zip(seen)
        .map(|(sent, seen)| *seen - *sent)
        .collect();
    took.sort_unstable();
    let rank = (took.len() * 99).div_ceil(100).saturating_sub(1);
    Ok(took.get(rank).map_or(0.0, |took| took.as_secs_f64() * 1e6))
}
