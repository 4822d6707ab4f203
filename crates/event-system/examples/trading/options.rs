//! What the demo can be told on its command line.

use std::path::PathBuf;

use clap::Parser;

/// A small trading desk on domain events: candles in, positions out, killed and continued at will.
#[derive(Clone, Debug, Parser)]
#[command(name = "trading")]
pub(crate) struct Options {
    /// Candles to trade on: CSV (market,time,open,high,low,close,volume) or the JSON array of
    /// Upbit's candle API; a simulated exchange where none is given
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,

    /// Seed of the simulated exchange
    #[arg(long, default_value_t = 1, conflicts_with = "input")]
    pub(crate) seed: u64,

    /// Number of simulated candles, over 10 markets
    #[arg(long, default_value_t = 50_000, conflicts_with = "input",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) candles: u32,

    /// The event log; one of an earlier run goes on where that one ended
    #[arg(long, value_name = "PATH", default_value = "trading.db")]
    pub(crate) db: PathBuf,

    /// Removes an earlier run's files first
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Number of workers
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) workers: u32,

    /// Kills the process (SIGKILL) after this many handled deliveries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) crash_after: Option<u64>,

    /// Prints one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(arguments: &[&str]) -> bool {
        let arguments = [&["trading"], arguments].concat();
        Options::try_parse_from(arguments).is_err()
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(refused(&["--candles", "0"]));
        assert!(refused(&["--workers", "0"]));
        assert!(refused(&["--crash-after", "0"]));
        assert!(refused(&["--input", "a.csv", "--seed", "2"]));
        assert!(!refused(&["--input", "a.csv", "--fresh", "--json"]));
    }
}
