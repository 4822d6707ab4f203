//! A simulated exchange: random walks of ten markets, from one seed.

use domain_events::Timestamp;

use crate::{decimal::Decimal, events::CandleClosed, random::Random};

/// Ten markets with a price in KRW to begin with. The prices are invented.
const MARKETS: [(&str, i64); 10] = [
    ("KRW-ADA", 780),
    ("KRW-BCH", 520_000),
    ("KRW-BTC", 91_500_000),
    ("KRW-DOGE", 210),
    ("KRW-DOT", 9_400),
    ("KRW-ETC", 33_000),
    ("KRW-ETH", 4_600_000),
    ("KRW-LINK", 21_500),
    ("KRW-SOL", 198_000),
    ("KRW-XRP", 830),
];

/// 2024-01-01T00:00:00Z, in microseconds.
const BEGIN: i64 = 1_704_067_200_000_000;
const MINUTE: i64 = 60_000_000;
const ONE: i64 = 100_000_000;

/// The first `count` one-minute candles of a seed, in order of time.
pub(crate) fn candles(seed: u64, count: u32) -> Vec<CandleClosed> {
    let mut markets: Vec<_> = MARKETS
        .iter()
        .zip(0..)
        .map(|(&(market, price), number)| Walk {
            market,
            price: price * ONE,
            random: Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number << 32)),
        })
        .collect();
    let minutes = (0_i64..).map(|minute| Timestamp::from_micros(BEGIN + minute * MINUTE));
    minutes
        .flat_map(|time| {
            markets
                .iter_mut()
                .map(move |market| market.step(time))
                .collect::<Vec<_>>()
        })
        .take(count as usize)
        .collect()
}

/// One market's walk.
struct Walk {
    market: &'static str,
    /// The last price, in units.
    price: i64,
    random: Random,
}

impl Walk {
    fn step(&mut self, time: Timestamp) -> CandleClosed {
        let open = self.price;
        let close = self.moved(open);
        let (wick_up, wick_down) = (self.wick(open), self.wick(open));
        self.price = close;
        CandleClosed {
            market: self.market.to_owned(),
            time,
            open: Decimal::from_units(open),
            high: Decimal::from_units(open.max(close) + wick_up),
            low: Decimal::from_units((open.min(close) - wick_down).max(1)),
            close: Decimal::from_units(close),
            volume: Decimal::from_units(self.volume()),
        }
    }

    /// The price after a minute: up to 0.3 % off, in the middle more often than at the ends.
    fn moved(&mut self, price: i64) -> i64 {
        let throws = (0..3).map(|_| self.below(2_001) - 1_000).sum::<i64>();
        // A walk that comes near zero or the end of all range turns back.
        (price + price / 1_000_000 * throws).clamp(ONE, i64::MAX / 100)
    }

    fn wick(&mut self, price: i64) -> i64 {
        price / 1_000_000 * self.below(500)
    }

    /// Up to 100 coins, now and then too few to trade.
    fn volume(&mut self) -> i64 {
        self.below(100_000) * (ONE / 1_000)
    }

    fn below(&mut self, below: u32) -> i64 {
        self.random.below(u64::from(below)).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::checked;

    #[test]
    fn a_seed_gives_the_same_candles_always_and_another_one_others() {
        assert_eq!(candles(1, 1_000), candles(1, 1_000));
        assert_eq!(candles(1, 1_000)[..500], candles(1, 500));
        assert_ne!(candles(1, 1_000), candles(2, 1_000));
    }

    #[test]
    fn simulated_candles_pass_as_real_ones() {
        let candles = candles(7, 20_005);
        assert_eq!(candles.len(), 20_005);
        assert!(candles.is_sorted_by_key(|candle| candle.time));
        for candle in &candles {
            checked(candle).unwrap();
        }
    }
}
