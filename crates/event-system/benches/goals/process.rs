//! Figures of this process, as Linux gives them.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Bytes of memory in use.
pub(crate) fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("no figures of memory here")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|rest| rest.split_whitespace().next())
        .context("no figure of resident memory")?
        .parse()?;
    Ok(kib * 1024)
}

/// MiB that `now` is more than `before`.
pub(crate) fn growth(before: u64, now: u64) -> f64 {
    now.saturating_sub(before) as f64 / (1024.0 * 1024.0)
}

/// Processor time of all threads that are alive; to the nanosecond, unlike `/proc/self/stat`.
pub(crate) fn cpu_time() -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir("/proc/self/task").context("no figures of threads here")? {
        let figures = fs::read_to_string(task?.path().join("schedstat"))?;
        let running = figures
            .split_whitespace()
            .next()
            .context("no figure of a thread")?;
        nanos += running.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}
