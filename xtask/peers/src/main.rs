//! The bus in memory against one of its peers, in one run: `cargo xtask bench --peers [--quick]`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use domain_events::{DomainEvent, Event, EventBus, NewEvent, Subscription};
use event_bus_core::{BusConfig, InMemoryEventBus};
use jaeb::HandlerResult;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Builder, sync::Notify};

/// How many events may be on the way; the peer knows no bound.
const CAPACITY: usize = 8_192;

/// At least so many times the peer's events a second.
const GOAL: f64 = 2.0;

#[derive(Clone, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "peers.measured", aggregate = "meter", id = meter)]
struct Measured {
    meter: String,
    number: u64,
}

fn events(count: u64) -> impl Iterator<Item = Measured> {
    (0..count).map(|number| Measured {
        meter: format!("{:036}", number % 1_000),
        number,
    })
}

/// What handlers have seen: how many events, and the sum of their numbers.
#[derive(Clone, Default)]
struct Seen(Arc<(AtomicU64, AtomicU64, Notify)>);

impl Seen {
    fn note(&self, number: u64, all: u64) {
        let (count, sum, done) = &*self.0;
        sum.fetch_add(number, Relaxed);
        if count.fetch_add(1, Relaxed) + 1 == all {
            done.notify_one();
        }
    }

    async fn done(&self) {
        self.0.2.notified().await;
    }

    fn check(&self, all: u64) -> Result<()> {
        let (count, sum) = (self.0.0.load(Relaxed), self.0.1.load(Relaxed));
        ensure!(
            (count, sum) == (all, all * (all - 1) / 2),
            "{count} events of {all} were handled, or not each once"
        );
        Ok(())
    }
}

/// Published one by one, until all are handled. The rate of events.
async fn ours(all: u64) -> Result<f64> {
    let config = BusConfig {
        capacity: CAPACITY,
        workers: 2,
        ..BusConfig::default()
    };
    let (bus, seen) = (InMemoryEventBus::new(config)?, Seen::default());
    let handler = seen.clone();
    let handler = move |event: Event<Measured>, _| {
        let seen = handler.clone();
        async move {
            seen.note(event.number, all);
            Ok(())
        }
    };
    bus.subscribe(Subscription::from_fn("measures", handler))
        .await?;
    bus.start().await?;
    let events: Vec<_> = events(all).map(NewEvent::from).collect();
    let start = Instant::now();
    for event in events {
        bus.publish(event).await?;
    }
    bus.wait_idle().await?;
    let rate = all as f64 / start.elapsed().as_secs_f64();
    bus.stop(Duration::from_secs(10)).await?;
    seen.check(all)?;
    Ok(rate)
}

struct Handler(Seen, u64);

impl jaeb::EventHandler<Measured> for Handler {
    async fn handle(&self, event: &Measured, _: &jaeb::EventBus) -> HandlerResult {
        self.0.note(event.number, self.1);
        Ok(())
    }
}

/// The same through the async lane of `jaeb`, which keeps no order and knows no bound.
async fn theirs(all: u64) -> Result<f64> {
    let (bus, seen) = (jaeb::EventBus::builder().build().await?, Seen::default());
    let handler = Handler(seen.clone(), all);
    let subscription = bus.subscribe::<Measured, _, _>(handler).await?;
    let events: Vec<_> = events(all).collect();
    let start = Instant::now();
    for event in events {
        bus.publish(event).await?;
    }
    seen.done().await;
    let rate = all as f64 / start.elapsed().as_secs_f64();
    subscription.unsubscribe().await?;
    bus.shutdown().await?;
    seen.check(all)?;
    Ok(rate)
}

fn on_runtime(work: impl Future<Output = Result<f64>> + Send + 'static) -> Result<f64> {
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    runtime.block_on(async { tokio::spawn(work).await? })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (all, runs) = if quick { (50_000, 3) } else { (500_000, 5) };
    let (mut own, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        own.push(on_runtime(ours(all))?);
        peer.push(on_runtime(theirs(all))?);
    }
    let (value, reference) = (median(own), median(peer));
    let ratio = value / reference;
    let figure = serde_json::json!({
        "memory/single-peer": {
            "value": value,
            "unit": "events/s",
            "reference": reference,
            "ratio": ratio,
            "goal": GOAL,
            "ok": ratio >= GOAL,
        }
    });
    println!("{figure}");
    Ok(())
}
