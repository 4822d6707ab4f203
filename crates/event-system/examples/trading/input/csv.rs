//! Candles as CSV, oldest first within each market.

use csv::{ErrorKind, Position, ReaderBuilder, StringRecord};

use super::{Numbered, Refusal, check::checked, lines::Lines};
use crate::{decimal::Decimal, events::CandleClosed};

const HEADER: [&str; 7] = ["market", "time", "open", "high", "low", "close", "volume"];

pub(super) fn candles(text: &str) -> Result<Vec<Numbered>, Refusal> {
    let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
    let mut lines = Lines::of(text.as_bytes());
    let header = reader
        .headers()
        .map_err(|error| refused(&error, &mut lines))?;
    if *header != HEADER[..] {
        let found = header.iter().collect::<Vec<_>>().join(",");
        return Err(Refusal::value(1, "header", &found, &HEADER.join(",")));
    }
    let records = reader.records().map(|record| match record {
        Ok(record) => candle(&record, line(record.position(), &mut lines)),
        Err(error) => Err(refused(&error, &mut lines)),
    });
    records.collect()
}

/// The line of a record. Its own count is not asked: it is one short behind CR LF.
fn line(position: Option<&Position>, lines: &mut Lines<'_>) -> u64 {
    let offset = position.map_or(0, Position::byte);
    lines.at(usize::try_from(offset).unwrap_or(usize::MAX))
}

fn refused(error: &csv::Error, lines: &mut Lines<'_>) -> Refusal {
    let line = line(error.position(), lines);
    match error.kind() {
        ErrorKind::UnequalLengths { len, .. } => {
            Refusal::at(line, format!("{len} fields, allowed are {}", HEADER.len()))
        }
        _ => Refusal::at(line, error.to_string()),
    }
}

fn candle(record: &StringRecord, line: u64) -> Result<Numbered, Refusal> {
    let field = |index: usize| record.get(index).unwrap_or_default();
    let number = |index: usize| {
        let text = field(index);
        let allowed = "a number of at most 8 decimals";
        text.parse::<Decimal>()
            .map_err(|_| Refusal::value(line, HEADER[index], text, allowed))
    };
    let candle = CandleClosed {
        market: field(0).to_owned(),
        time: field(1).parse().map_err(|_| {
            Refusal::value(
                line,
                HEADER[1],
                field(1),
                "a time like 2018-01-10T04:55:00Z",
            )
        })?,
        open: number(2)?,
        high: number(3)?,
        low: number(4)?,
        close: number(5)?,
        volume: number(6)?,
    };
    match checked(&candle) {
        Ok(()) => Ok((line, candle)),
        Err((field, value, allowed)) => Err(Refusal::value(line, field, &value, allowed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_exactly() {
        let text = "market,time,open,high,low,close,volume\r\n\
            BTC-ADA,2018-01-10T04:55:00Z,0.00005330,0.00005330,0.00005288,0.00005290,431401.97869504\r\n";
        let (line, candle) = candles(text).unwrap().remove(0);
        assert_eq!((line, candle.market.as_str()), (2, "BTC-ADA"));
        assert_eq!(candle.time.to_string(), "2018-01-10T04:55:00.000000Z");
        assert_eq!(candle.close.units(), 5_290);
        assert_eq!(candle.volume.units(), 43_140_197_869_504);
    }
}
