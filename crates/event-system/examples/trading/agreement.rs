//! Whether the input agrees with the candles that the log has already.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, bail};
use domain_events::{AggregateRef, DomainEvent, EventStore, Timestamp, Version};

use crate::events::CandleClosed;

/// How many candles are read at a time.
const PAGE: usize = 1_000;

type History = BTreeMap<Timestamp, CandleClosed>;

/// Checks that the log has no candle of the same market and time with other content, and that no
/// candle comes before the last one of its market in the log.
///
/// # Errors
/// Names the first candle that does not fit; nothing has been published then.
pub(crate) async fn check(log: &impl EventStore, candles: &[CandleClosed]) -> anyhow::Result<()> {
    let markets: BTreeSet<&str> = candles.iter().map(|candle| &*candle.market).collect();
    let mut histories = BTreeMap::new();
    for market in markets {
        histories.insert(market, history(log, market).await?);
    }
    for candle in candles {
        let CandleClosed { market, time, .. } = candle;
        let Some((history, last)) = histories
            .get(&**market)
            .and_then(|it| Some((it, it.keys().last()?)))
        else {
            continue;
        };
        match history.get(time) {
            Some(known) if known == candle => {}
            Some(_) => bail!(
                "no candle was published: the log has the one of {market} at {time} with other prices; \
                 begin again with --fresh, or keep another log with --db"
            ),
            None if time < last => bail!(
                "no candle was published: the one of {market} at {time} comes before the last one in \
                 the log, of {last}; begin again with --fresh, or keep another log with --db"
            ),
            None => {}
        }
    }
    Ok(())
}

async fn history(log: &impl EventStore, market: &str) -> anyhow::Result<History> {
    let aggregate = AggregateRef::new(CandleClosed::AGGREGATE_TYPE, market);
    let (mut history, mut next) = (History::new(), Version::FIRST);
    loop {
        let versions = next..=Version::new(i64::MAX as u64);
        let page = log.read_aggregate(&aggregate, versions, PAGE).await?;
        let is_last = page.len() < PAGE;
        for envelope in page {
            next = envelope.version().map_or(next, Version::next);
            let envelope = Arc::new(envelope);
            let candle = envelope.typed::<CandleClosed>().with_context(|| {
                format!("no candle was published: one of {market} in the log cannot be read")
            })?;
            history.insert(candle.time, CandleClosed::clone(&candle));
        }
        if is_last {
            return Ok(history);
        }
    }
}
