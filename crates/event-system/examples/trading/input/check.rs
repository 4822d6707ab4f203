//! What a candle must be, alone and after the one before it.

use std::collections::HashMap;

use super::{Numbered, Refusal};
use crate::{decimal::Decimal, events::CandleClosed};

/// The largest price and volume: sums over them stay in range everywhere, in SQL too.
const MAX_PRICE: Decimal = Decimal::from_units(1_000_000_000 * 100_000_000);
const MAX_VOLUME: Decimal = Decimal::from_units(10_000_000_000 * 100_000_000);
const MAX_NAME: usize = 64;

/// What of a candle is not accepted: field, value, what is allowed.
pub(crate) type Fault = (&'static str, String, &'static str);

/// Checks what can be said of one candle by itself.
///
/// # Errors
/// The first field that is not accepted.
pub(crate) fn checked(candle: &CandleClosed) -> Result<(), Fault> {
    if !is_name(&candle.market) {
        let allowed = "1 to 64 ASCII letters, digits, '-', '_' or '.'";
        return Err(("market", candle.market.clone(), allowed));
    }
    for (field, price) in prices(candle) {
        if !(candle.low..=candle.high).contains(&price) {
            return Err((field, price.to_string(), "a price from low to high"));
        }
        if price <= Decimal::ZERO || price > MAX_PRICE {
            return Err((
                field,
                price.to_string(),
                "a price above 0, up to 1000000000",
            ));
        }
    }
    if candle.volume < Decimal::ZERO || candle.volume > MAX_VOLUME {
        let allowed = "a volume from 0 to 10000000000";
        return Err(("volume", candle.volume.to_string(), allowed));
    }
    Ok(())
}

/// Checks that the candles of every market are in order of time, one for each time.
pub(super) fn in_order(candles: &[Numbered]) -> Result<(), Refusal> {
    let mut last = HashMap::new();
    for (line, candle) in candles {
        let before = last.insert(candle.market.as_str(), (candle.time, *line));
        let Some((time, earlier)) = before.filter(|(time, _)| *time >= candle.time) else {
            continue;
        };
        let allowed = format!(
            "one after {time}, the time of {} in line {earlier}",
            candle.market
        );
        return Err(Refusal::value(
            *line,
            "time",
            &candle.time.to_string(),
            &allowed,
        ));
    }
    Ok(())
}

fn prices(candle: &CandleClosed) -> [(&'static str, Decimal); 4] {
    [
        ("low", candle.low),
        ("high", candle.high),
        ("open", candle.open),
        ("close", candle.close),
    ]
}

/// Such a name needs no escaping anywhere: in the trace, in order ids, on a terminal.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed)
}
