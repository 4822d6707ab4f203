//! The strategy: a moving-average cross, worked out anew from the market's history each time.

use std::{ops::RangeInclusive, sync::Arc};

use domain_events::{
    Event, EventHandler, EventStore, HandlerContext, HandlerError, NewEvent, Version,
};

use crate::{
    decimal::Decimal,
    events::{CandleClosed, Cross, Side, TradingSignalGenerated, TriggerConditionMet},
    watch::Watch,
};

/// How many candles the fast average covers.
pub(crate) const FAST: usize = 5;
/// How many candles the slow average covers.
pub(crate) const SLOW: usize = 15;
/// What every order is for: a tenth of a coin.
const LOT: Decimal = Decimal::from_units(10_000_000);

/// Reads the candles before this one, and signals where the averages cross. It keeps nothing, so
/// there is nothing for a crash to take.
#[derive(Debug)]
pub(crate) struct Strategy<S> {
    pub(crate) store: Arc<S>,
    pub(crate) watch: Arc<Watch>,
}

impl<S: EventStore + 'static> EventHandler<CandleClosed> for Strategy<S> {
    async fn handle(
        &self,
        candle: Event<CandleClosed>,
        cx: HandlerContext,
    ) -> Result<(), HandlerError> {
        let attempt = self.watch.begin(&cx)?;
        if let Some(found) = self.cross(&candle).await? {
            cx.publish_all(found.events(&candle)).await?;
        }
        attempt.end();
        Ok(())
    }
}

impl<S: EventStore> Strategy<S> {
    async fn cross(&self, candle: &Event<CandleClosed>) -> Result<Option<Found>, HandlerError> {
        let Some(versions) = candle.envelope().version().and_then(before) else {
            return Ok(None);
        };
        let history = self
            .store
            .read_aggregate(candle.aggregate(), versions, SLOW)
            .await?;
        let mut closes = Vec::with_capacity(SLOW + 1);
        for earlier in history {
            closes.push(Arc::new(earlier).typed::<CandleClosed>()?.close);
        }
        closes.push(candle.close);
        Ok(found(&closes))
    }
}

/// The versions to look at before `version`; `None` where the history is too short.
fn before(version: Version) -> Option<RangeInclusive<Version>> {
    let first = version.get().checked_sub(SLOW as u64)?;
    (first > 0).then(|| Version::new(first)..=version.previous())
}

/// A cross with the averages at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    cross: Cross,
    fast: Decimal,
    slow: Decimal,
}

impl Found {
    fn events(self, candle: &CandleClosed) -> Vec<NewEvent> {
        let side = match self.cross {
            Cross::Above => Side::Buy,
            Cross::Below => Side::Sell,
        };
        let trigger = TriggerConditionMet {
            market: candle.market.clone(),
            time: candle.time,
            cross: self.cross,
            fast: self.fast,
            slow: self.slow,
        };
        let signal = TradingSignalGenerated {
            market: candle.market.clone(),
            time: candle.time,
            side,
            price: candle.close,
            quantity: LOT,
            volume: candle.volume,
        };
        vec![trigger.into(), signal.into()]
    }
}

/// The cross between the last two candles of `closes`, which are in order of time.
///
/// The fast average was not above and now is, or was not below and now is. Sums are compared
/// instead of averages, so nothing is rounded.
fn found(closes: &[Decimal]) -> Option<Found> {
    let (present, earlier) = (closes, closes.get(..closes.len().checked_sub(1)?)?);
    let (before, now) = (Sums::of(earlier)?, Sums::of(present)?);
    let cross = if before.lead() <= 0 && now.lead() > 0 {
        Cross::Above
    } else if before.lead() >= 0 && now.lead() < 0 {
        Cross::Below
    } else {
        return None;
    };
    Some(Found {
        cross,
        fast: average(now.fast, FAST)?,
        slow: average(now.slow, SLOW)?,
    })
}

struct Sums {
    fast: i128,
    slow: i128,
}

impl Sums {
    fn of(closes: &[Decimal]) -> Option<Self> {
        let sum = |count: usize| {
            let last = closes.get(closes.len().checked_sub(count)?..)?;
            Some(last.iter().map(|close| i128::from(close.units())).sum())
        };
        Some(Self {
            fast: sum(FAST)?,
            slow: sum(SLOW)?,
        })
    }

    /// By how much the fast average leads the slow one, times `FAST · SLOW`.
    fn lead(&self) -> i128 {
        self.fast * SLOW as i128 - self.slow * FAST as i128
    }
}

fn average(sum: i128, count: usize) -> Option<Decimal> {
    let units = sum / i128::try_from(count).ok()?;
    i64::try_from(units).ok().map(Decimal::from_units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cross(closes: impl IntoIterator<Item = i64>) -> Option<Cross> {
        let closes: Vec<_> = closes.into_iter().map(Decimal::from_units).collect();
        found(&closes).map(|found| found.cross)
    }

    #[test]
    fn a_rise_out_of_a_calm_crosses_above_and_a_fall_below() {
        assert_eq!(
            cross([vec![100; 15], vec![101]].concat()),
            Some(Cross::Above)
        );
        assert_eq!(
            cross([vec![100; 15], vec![99]].concat()),
            Some(Cross::Below)
        );
        assert_eq!(cross(vec![100; 16]), None);
    }

    #[test]
    fn a_lead_that_goes_on_is_no_cross() {
        assert_eq!(cross(1..=16), None);
        assert_eq!(cross((1..=16).rev()), None);
    }

    #[test]
    fn too_short_a_history_has_no_cross() {
        assert_eq!(cross([vec![100; 14], vec![101]].concat()), None);
        assert_eq!(cross([]), None);
    }

    #[test]
    fn only_the_candles_that_count_are_read() {
        assert_eq!(before(Version::new(15)), None);
        let all = before(Version::new(16)).unwrap();
        assert_eq!((all.start().get(), all.end().get()), (1, 15));
        let later = before(Version::new(1_000)).unwrap();
        assert_eq!((later.start().get(), later.end().get()), (985, 999));
    }

    #[test]
    fn averages_are_those_at_the_cross() {
        let closes: Vec<_> = [vec![100; 15], vec![250]]
            .concat()
            .into_iter()
            .map(Decimal::from_units)
            .collect();
        let found = found(&closes).unwrap();
        assert_eq!((found.fast.units(), found.slow.units()), (130, 110));
    }
}
