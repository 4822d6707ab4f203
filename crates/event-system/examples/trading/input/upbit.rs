//! Candles as Upbit's candle API answers: a JSON array, newest first.

use std::str::FromStr;

use domain_events::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Numbered, Refusal, check::checked, lines::Lines};
use crate::{
    decimal::{Decimal, NotADecimal},
    events::CandleClosed,
};

/// The fields of a candle that are used. Numbers stay text, so that they are read exactly.
#[derive(Deserialize)]
struct UpbitCandle<'a> {
    market: String,
    candle_date_time_utc: String,
    #[serde(borrow)]
    opening_price: &'a RawValue,
    #[serde(borrow)]
    high_price: &'a RawValue,
    #[serde(borrow)]
    low_price: &'a RawValue,
    #[serde(borrow)]
    trade_price: &'a RawValue,
    #[serde(borrow)]
    candle_acc_trade_volume: &'a RawValue,
}

/// The candles, turned round to oldest first.
pub(super) fn candles(text: &str) -> Result<Vec<Numbered>, Refusal> {
    let items: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|error| Refusal::at(error.line() as u64, format!("not JSON: {error}")))?;
    let mut lines = Lines::of(text.as_bytes());
    let mut candles = items
        .into_iter()
        .map(|item| {
            candle(
                item,
                lines.at(item.get().as_ptr().addr() - text.as_ptr().addr()),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    candles.reverse();
    Ok(candles)
}

fn candle(item: &RawValue, line: u64) -> Result<Numbered, Refusal> {
    let raw: UpbitCandle<'_> = serde_json::from_str(item.get()).map_err(|error| {
        let line = line + error.line().saturating_sub(1) as u64;
        Refusal::at(line, format!("not a candle of Upbit's API: {error}"))
    })?;
    let number = |field: &str, read: fn(&str) -> Result<Decimal, NotADecimal>, raw: &RawValue| {
        let allowed = "a number of at most 8 decimals";
        read(raw.get()).map_err(|_| Refusal::value(line, field, raw.get(), allowed))
    };
    let exact = Decimal::from_str;
    let candle = CandleClosed {
        time: time(&raw.candle_date_time_utc, line)?,
        open: number("opening_price", exact, raw.opening_price)?,
        high: number("high_price", exact, raw.high_price)?,
        low: number("low_price", exact, raw.low_price)?,
        close: number("trade_price", exact, raw.trade_price)?,
        // A sum, which the API adds up in binary: its last digits are noise.
        volume: number(
            "candle_acc_trade_volume",
            Decimal::nearest,
            raw.candle_acc_trade_volume,
        )?,
        market: raw.market,
    };
    match checked(&candle) {
        Ok(()) => Ok((line, candle)),
        Err((field, value, allowed)) => Err(Refusal::value(line, field, &value, allowed)),
    }
}

/// The API says UTC in the field's name and nothing in its text.
fn time(text: &str, line: u64) -> Result<Timestamp, Refusal> {
    let allowed = "a time like 2020-02-20T11:19:00";
    format!("{text}Z")
        .parse()
        .map_err(|_| Refusal::value(line, "candle_date_time_utc", text, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(minute: u32, price: &str) -> String {
        format!(
            "{{\n\"market\":\"KRW-BTC\",\"candle_date_time_utc\":\"2020-02-20T11:{minute}:00\",\
             \"opening_price\":{price},\"high_price\":11511000.0,\"low_price\":11489000.0,\
             \"trade_price\":11498000.0,\"timestamp\":1,\"candle_acc_trade_volume\":2.6326782400000001}}"
        )
    }

    #[test]
    fn newest_first_is_turned_round() {
        let text = format!("[\n{},\n{}]", item(19, "11509000.0"), item(18, "1.1509e7"));
        let candles = candles(&text).unwrap();
        assert_eq!(candles[0].1.time.to_string(), "2020-02-20T11:18:00.000000Z");
        assert_eq!(candles[1].1.open.units(), 1_150_900_000_000_000);
        assert_eq!(candles[0].1.open, candles[1].1.open);
        assert_eq!(candles[1].1.volume.units(), 263_267_824);
    }

    #[test]
    fn the_line_of_a_fault_is_that_of_its_candle() {
        let line = |second: &str| {
            let text = format!("[\n{},\n{}]", item(19, "11509000.0"), second);
            candles(&text).unwrap_err().line
        };
        assert_eq!(line(&item(18, "\"much\"")), Some(4));
        assert_eq!(line(&item(18, "1")), Some(4));
        assert_eq!(line("{}"), Some(4));
        assert_eq!(line("7"), Some(4));
        assert_eq!(line("{"), Some(4));
    }
}
