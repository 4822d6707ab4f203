//! Candles from a file: read and checked whole before anything is opened or written.

mod check;
mod csv;
mod lines;
mod upbit;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

#[cfg(test)]
pub(crate) use check::checked;

use self::lines::Lines;
use crate::events::CandleClosed;

/// A candle and the line it comes from.
type Numbered = (u64, CandleClosed);

/// The candles of a file, in order of time over all markets.
///
/// # Errors
/// [`InputError`] says what was not accepted, and where.
pub(crate) fn read(path: &Path) -> Result<Vec<CandleClosed>, InputError> {
    let bytes = std::fs::read(path).map_err(|error| InputError::unread(path, &error))?;
    let candles = parsed(&bytes).map_err(|refusal| InputError::refused(path, refusal))?;
    Ok(merged(candles))
}

fn parsed(bytes: &[u8]) -> Result<Vec<Numbered>, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = Lines::of(bytes).at(error.valid_up_to());
        Refusal::at(line, "not a text in UTF-8".to_owned())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let candles = match text.trim_start().chars().next() {
        None => return Err(Refusal::whole("the file is empty, candles are expected")),
        Some('[') => upbit::candles(text)?,
        Some('{') => {
            return Err(Refusal::whole(
                "an object, not the array of candles that Upbit's candle API answers with",
            ));
        }
        Some(_) => csv::candles(text)?,
    };
    if candles.is_empty() {
        return Err(Refusal::whole("the file holds no candle"));
    }
    check::in_order(&candles)?;
    Ok(candles)
}

/// Every market's candles in one order of time; candles of one time by market.
fn merged(candles: Vec<Numbered>) -> Vec<CandleClosed> {
    let mut candles: Vec<_> = candles.into_iter().map(|(_, candle)| candle).collect();
    candles.sort_by(|a, b| (a.time, &a.market).cmp(&(b.time, &b.market)));
    candles
}

/// Something in a file that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    line: Option<u64>,
    what: String,
}

impl Refusal {
    fn at(line: u64, what: String) -> Self {
        Self {
            line: Some(line),
            what,
        }
    }

    fn whole(what: &str) -> Self {
        Self {
            line: None,
            what: what.to_owned(),
        }
    }

    fn value(line: u64, field: &str, value: &str, allowed: &str) -> Self {
        let value: String = value.chars().take(60).collect();
        Self::at(
            line,
            format!("{field} was not accepted: {value:?}, allowed is {allowed}"),
        )
    }
}

/// A file that was not read as candles; nothing was opened or written because of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct InputError {
    path: PathBuf,
    refusal: Refusal,
}

impl InputError {
    fn unread(path: &Path, error: &io::Error) -> Self {
        Self::refused(path, Refusal::whole(&format!("not read: {error}")))
    }

    fn refused(path: &Path, refusal: Refusal) -> Self {
        Self {
            path: path.to_owned(),
            refusal,
        }
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.refusal.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.refusal.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "market,time,open,high,low,close,volume\n";

    fn refusal(text: &[u8]) -> (Option<u64>, String) {
        let Refusal { line, what } = parsed(text).unwrap_err();
        (line, what)
    }

    fn line(text: &str) -> Option<u64> {
        refusal(format!("{HEADER}{text}").as_bytes()).0
    }

    #[test]
    fn files_that_are_not_candles_are_refused_whole() {
        for text in ["", " \n ", HEADER, "[]", "{\"error\":{}}"] {
            assert_eq!(refusal(text.as_bytes()).0, None, "{text:?}");
        }
        assert_eq!(refusal(b"market;time\n").0, Some(1));
        assert_eq!(refusal(b"\x89PNG\r\n").0, Some(1));
        assert_eq!(refusal(b"a\nb\n\xff").0, Some(3));
    }

    #[test]
    fn a_broken_line_is_named() {
        let good = "KRW-BTC,2020-02-20T11:19:00Z,2,3,1,2,5\n";
        let broken = [
            "KRW-BTC,2020-02-20T11:20:00Z,2,3,1,2\n",
            "KRW-BTC,2020-02-20T11:20:00Z,2,3,1,2,5,6\n",
            "KRW-BTC,2020-02-20T11:20:00Z,2,3,1,two,5\n",
            "KRW-BTC,2020-02-20T11:20:00Z,2,3,1,2,-5\n",
            "KRW-BTC,2020-02-20T11:20:00Z,0,3,0,2,5\n",
            "KRW-BTC,2020-02-20T11:20:00Z,2,3,1,4,5\n",
            "KRW-BTC,2020-02-20T11:20:00Z,2,1,3,2,5\n",
            "KRW-BTC,yesterday,2,3,1,2,5\n",
            ",2020-02-20T11:20:00Z,2,3,1,2,5\n",
            "KRW BTC,2020-02-20T11:20:00Z,2,3,1,2,5\n",
            "KRW-BTC,2020-02-20T11:20:00Z,9999999999,9999999999,1,2,5\n",
            "KRW-BTC,2020-02-20T11:19:00Z,2,3,1,2,5\n",
            "KRW-BTC,2020-02-20T11:18:00Z,2,3,1,2,5\n",
        ];
        for text in broken {
            assert_eq!(line(&format!("{good}{text}")), Some(3), "{text:?}");
        }
    }

    #[test]
    fn markets_are_merged_in_order_of_time() {
        let text = format!(
            "{HEADER}B,2020-02-20T11:20:00Z,2,3,1,2,5\nB,2020-02-20T11:21:00Z,2,3,1,2,5\n\
             A,2020-02-20T11:20:00Z,2,3,1,2,5\nA,2020-02-20T11:19:00Z,2,3,1,2,5\n"
        );
        assert_eq!(refusal(text.as_bytes()).0, Some(5));
        let text = text.replace("11:19", "11:22");
        let candles = merged(parsed(text.as_bytes()).unwrap());
        let markets: String = candles
            .iter()
            .map(|candle| candle.market.as_str())
            .collect();
        assert_eq!(markets, "ABBA");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("no/such/file.csv")).unwrap_err();
        assert!(
            error.to_string().starts_with("no/such/file.csv: not read"),
            "{error}"
        );
    }
}
