//! Watches every attempt: leaves its sighting in the trace, and kills the process when told to.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use domain_events::HandlerContext;

use crate::trace::{Sighting, Trace};

/// What all handlers report to.
#[derive(Debug)]
pub(crate) struct Watch {
    trace: Trace,
    crash_after: Option<u64>,
    handled: AtomicU64,
}

impl Watch {
    pub(crate) fn new(trace: Trace, crash_after: Option<u64>) -> Self {
        Self {
            trace,
            crash_after,
            handled: AtomicU64::new(0),
        }
    }

    /// Notes the beginning of an attempt.
    ///
    /// # Errors
    /// When the trace cannot be written; the attempt should fail then.
    pub(crate) fn begin(&self, cx: &HandlerContext) -> io::Result<Attempt<'_>> {
        let envelope = cx.envelope();
        self.trace.note(&Sighting {
            subscription: &cx.info().subscription,
            aggregate_type: envelope.aggregate().aggregate_type(),
            aggregate_id: envelope.aggregate().id(),
            position: envelope.position().map_or(0, |position| position.get()),
            attempt: cx.attempt(),
        })?;
        Ok(Attempt(self))
    }

    fn count(&self) {
        let handled = self.handled.fetch_add(1, Ordering::Relaxed) + 1;
        if self.crash_after.is_some_and(|limit| handled >= limit) {
            crash();
        }
    }
}

/// An attempt under way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Attempt<'a>(&'a Watch);

impl Attempt<'_> {
    /// Notes that the delivery is handled.
    pub(crate) fn end(self) {
        self.0.count();
    }
}

/// Ends the process as a power cut for it would: nothing is flushed, nothing is dropped.
fn crash() {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        let _ = kill_process(getpid(), Signal::KILL);
    }
    #[cfg(not(unix))]
    std::process::abort();
}
