//! Goals of a bus that has nothing to do.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    durable::{self, Durable},
    events::{Ledger, events},
    measure::{Figure, Scale, limit},
    memory::on_runtime,
    process,
};

/// Opening a store that is there and starting a bus over it.
pub(crate) fn start_empty(scale: Scale) -> Result<Vec<Figure>> {
    let folder = durable::folder()?;
    let path = folder.path().to_owned();
    let start = move || {
        let path = path.clone();
        on_runtime(async move {
            let ledger = Ledger::new(1);
            let start = Instant::now();
            let durable = Durable::start(&path, 8, [ledger.subscription("empty")]).await?;
            let time = start.elapsed();
            durable.finish(&[ledger], 0).await?;
            Ok(time.as_secs_f64() * 1_000.0)
        })
    };
    // The first start makes the tables.
    start()?;
    Ok(vec![limit("start/empty", scale, (20.0, "ms"), start)?])
}

/// Processor time of ten seconds without an event.
pub(crate) fn idle_cpu(scale: Scale) -> Result<Vec<Figure>> {
    let folder = durable::folder()?;
    let rest = Duration::from_secs(if scale.quick { 2 } else { 10 });
    let used = on_runtime(async move {
        let ledger = Ledger::new(1);
        let durable = Durable::start(folder.path(), 16, [ledger.subscription("idle")]).await?;
        // Whatever is set up at the first event is not rest.
        for event in events(10, 1) {
            durable.bus.publish(event.into()).await?;
        }
        durable.bus.wait_idle().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = process::cpu_time()?;
        tokio::time::sleep(rest).await;
        let used = process::cpu_time()?.saturating_sub(before);
        durable.finish(&[ledger], 10).await?;
        Ok(used)
    })?;
    let of_ten_seconds = used.as_secs_f64() * 1_000.0 * 10.0 / rest.as_secs_f64();
    Ok(vec![Figure::at_most("idle/cpu", "ms", 5.0, of_ten_seconds)])
}
