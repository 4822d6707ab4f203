//! Goals of the bus without a store.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use domain_events::{Event, EventBus, HandlerContext, NewEvent, PublishError, Subscription};
use event_bus_core::{BusConfig, InMemoryEventBus};
use tokio::runtime::Builder;

use crate::{
    events::{Fails, Ledger, Measured, batches, events},
    measure::{Figure, Scale, compare, rate},
    process, reference,
};

/// How many events may be on the way, here and in the reference.
pub(crate) const CAPACITY: usize = 8_192;
pub(crate) const AGGREGATES: usize = 1_000;
pub(crate) const BATCH: usize = 64;

/// The result of `work`, run as a task of a runtime with two threads.
pub(crate) fn on_runtime<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async { tokio::spawn(work).await? })
}

/// Batches of 64, from publishing to handled, against a channel.
pub(crate) fn throughput(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let subject = || in_batches(count, AGGREGATES);
    let reference = || reference::channel(count, BATCH);
    Ok(vec![compare(
        "memory/throughput",
        scale,
        0.1,
        subject,
        reference,
    )?])
}

/// One by one, from publishing to handled, against a channel.
pub(crate) fn single(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let subject = || {
        let ledger = Ledger::new(AGGREGATES);
        on_runtime(async move {
            let bus = started(CAPACITY, 2, [ledger.subscription("single")]).await?;
            let events: Vec<NewEvent> = events(count, AGGREGATES).map(NewEvent::from).collect();
            let start = Instant::now();
            for event in events {
                bus.publish(event).await?;
            }
            bus.wait_idle().await?;
            let rate = rate(count, start);
            stopped(&*bus).await?;
            ledger.check(count)?;
            Ok(rate)
        })
    };
    let reference = || reference::channel(count, 1);
    Ok(vec![compare(
        "memory/single",
        scale,
        0.15,
        subject,
        reference,
    )?])
}

/// One aggregate only, against many.
pub(crate) fn hot_aggregate(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let subject = || in_batches(count, 1);
    let reference = || in_batches(count, AGGREGATES);
    Ok(vec![compare(
        "memory/hot-aggregate",
        scale,
        0.5,
        subject,
        reference,
    )?])
}

/// All aggregates but one that always fails, against the same without failures.
pub(crate) fn slow_neighbour(scale: Scale) -> Result<Vec<Figure>> {
    let count = scale.of(1_000_000);
    let subject = || others(count, Some(0));
    let reference = || others(count, None);
    Ok(vec![compare(
        "memory/slow-neighbour",
        scale,
        0.9,
        subject,
        reference,
    )?])
}

/// A million publishes against a handler that is slower by far.
pub(crate) fn bound(scale: Scale) -> Result<Vec<Figure>> {
    let calls = scale.of(1_000_000);
    let grown = on_runtime(refused_publishes(calls))?;
    Ok(vec![Figure::at_most("memory/bound", "MiB", 16.0, grown)])
}

pub(crate) fn in_batches(count: usize, aggregates: usize) -> Result<f64> {
    let ledger = Ledger::new(aggregates);
    on_runtime(async move {
        let bus = started(CAPACITY, 2, [ledger.subscription("batches")]).await?;
        let rate = all_handled(&bus, batches(count, aggregates, BATCH)).await?;
        ledger.check(count)?;
        Ok(rate)
    })
}

/// Publishes the batches and stops the bus. The rate of events until all are handled.
pub(crate) async fn all_handled(
    bus: &InMemoryEventBus,
    batches: Vec<Vec<NewEvent>>,
) -> Result<f64> {
    let count = batches.iter().map(Vec::len).sum();
    let start = Instant::now();
    for batch in batches {
        bus.publish_all(batch).await?;
    }
    bus.wait_idle().await?;
    let rate = rate(count, start);
    stopped(bus).await?;
    Ok(rate)
}

fn others(count: usize, failing: Option<usize>) -> Result<f64> {
    let ledger = Ledger::failing(AGGREGATES, failing.map_or(Fails::Never, Fails::Aggregate));
    let expected = failing.map_or(count, |_| count - count / AGGREGATES);
    on_runtime(async move {
        let bus = started(CAPACITY, 2, [ledger.subscription("others")]).await?;
        let batches = batches(count, AGGREGATES, BATCH);
        let start = Instant::now();
        for batch in batches {
            bus.publish_all(batch).await?;
        }
        // The bus is never idle while an event waits to fail again.
        while ledger.handled() < expected as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let rate = rate(expected, start);
        bus.stop(Duration::ZERO).await?;
        ledger.check(expected)?;
        Ok(rate)
    })
}

async fn refused_publishes(calls: usize) -> Result<f64> {
    let ledger = Ledger::new(AGGREGATES);
    let slow = Subscription::from_fn("slow", {
        let ledger = ledger.clone();
        move |event: Event<Measured>, cx: HandlerContext| {
            let ledger = ledger.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                domain_events::EventHandler::handle(&ledger, event, cx).await
            }
        }
    });
    let bus = started(1_000, 2, [slow]).await?;
    let before = process::resident()?;
    let (mut peak, mut accepted) = (before, 0);
    // More than the bus will ever take: only an accepted one is replaced by the next.
    let mut stream = events(calls, AGGREGATES).map(NewEvent::from);
    let mut next = stream.next();
    for call in 0..calls {
        let Some(event) = next.take() else { break };
        match bus.try_publish(event).await {
            Ok(_) => {
                accepted += 1;
                next = stream.next();
            }
            Err(PublishError::Full { mut events, .. }) => next = events.pop(),
            Err(error) => bail!(error),
        }
        if call % 1_000 == 0 {
            peak = peak.max(process::resident()?);
        }
    }
    bus.wait_idle().await?;
    peak = peak.max(process::resident()?);
    stopped(&*bus).await?;
    ledger.check(accepted)?;
    Ok(process::growth(before, peak))
}

pub(crate) async fn started(
    capacity: usize,
    workers: usize,
    subscriptions: impl IntoIterator<Item = Subscription>,
) -> Result<Arc<InMemoryEventBus>> {
    let bus = InMemoryEventBus::new(BusConfig {
        capacity,
        workers,
        ..BusConfig::default()
    })?;
    for subscription in subscriptions {
        bus.subscribe(subscription).await?;
    }
    bus.start().await?;
    Ok(Arc::new(bus))
}

/// Stops the bus, and fails where anything was left.
pub(crate) async fn stopped(bus: &dyn EventBus) -> Result<()> {
    let report = bus.stop(Duration::from_secs(10)).await?;
    let left = report.abandoned + report.left_in_log + report.cut_off;
    anyhow::ensure!(left == 0, "{left} deliveries were left at the stop");
    Ok(())
}
