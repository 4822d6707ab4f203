//! Feeds candles to the system, each once however often it is fed.

use anyhow::{Context, anyhow};
use domain_events::{AppendError, EventId, NewEvent, PublishError};
use event_system::EventSystem;

use crate::{console::Console, events::CandleClosed, run::Failure};

/// How many candles are published, and committed, together.
const BATCH: usize = 256;

/// Publishes the candles in their order.
///
/// Their ids come from market and time, so that those of an earlier run are found in the log (P6).
pub(crate) async fn feed(
    system: &EventSystem,
    candles: &[CandleClosed],
    console: &Console,
) -> Result<(), Failure> {
    let mut progress = console.progress(candles.len());
    for batch in candles.chunks(BATCH) {
        publish(system, batch).await?;
        progress.advance(batch.len());
    }
    progress.finish();
    Ok(())
}

/// Publishes a batch; where the log has a part of it, the half with the seam is halved again.
async fn publish(system: &EventSystem, batch: &[CandleClosed]) -> Result<(), Failure> {
    let mut left = vec![batch];
    while let Some(batch) = left.pop() {
        match system.publish_all(batch.iter().map(event).collect()).await {
            Ok(_) => {}
            Err(PublishError::Append(AppendError::PartlyThere { .. })) => {
                let (first, second) = batch.split_at(batch.len() / 2);
                left.extend([second, first]);
            }
            Err(PublishError::Append(AppendError::IdTaken { position, .. })) => {
                let error = anyhow!(
                    "the log has a candle of the same market and time with other prices, at {position}"
                );
                return Err(Failure::Refused(error.context(unpublished(batch))));
            }
            Err(error) => return Err(error).with_context(|| unpublished(batch))?,
        }
    }
    Ok(())
}

fn event(candle: &CandleClosed) -> NewEvent {
    let id = EventId::from_key(candle.time, &format!("market/{}", candle.market));
    NewEvent::new(candle.clone())
        .id(id)
        .occurred_at(candle.time)
}

fn unpublished(batch: &[CandleClosed]) -> String {
    let first = batch.first();
    let place = first.map_or_else(String::new, |candle| {
        format!(" from {} of {} on", candle.market, candle.time)
    });
    format!("{} candles{place} were not published", batch.len())
}
