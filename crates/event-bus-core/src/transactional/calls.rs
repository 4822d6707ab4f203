//! The calls of a transaction's handlers: made by the store, on its thread, in as many transactions as it
//! takes.

use std::{
    error::Error,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use domain_events::{
    AggregateRef, CallAgain, Cancellation, EventEnvelope, InTransaction, Kept, Position,
    StoreError, TransactionalDelivery, TransactionalEnd, TransactionalEnds, TransactionalWork,
};

use crate::{
    attempt::Ended,
    dead_letters::cut,
    guarded::{self, Fault},
    inside::{self, BusId},
    sync::{AtomicBool, Mutex, lock},
};

/// The error of a handler that ended the transaction, or that met a fault which did.
const ENDED: &str = "the transaction that it was in was ended, and all that it had written undone";

/// The calls of a transaction's handlers, which may be made in several transactions.
pub(super) struct Calls {
    pub(super) limit: Duration,
    clock: Arc<Clock>,
    runs: Vec<Vec<Call>>,
    pub(super) made: Made,
}

/// Since when a handler runs, and whether those that are called from now on are given up.
#[derive(Default)]
struct Clock {
    running: Mutex<Option<(Instant, Cancellation)>>,
    is_given_up: AtomicBool,
}

/// Which of the deliveries are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    All,
    /// The first, and the others later.
    First,
    /// None: it is only to be known which are over.
    Nothing,
}

/// One delivery, with the last end of its handler.
struct Call {
    envelope: Arc<EventEnvelope>,
    work: TransactionalWork,
    end: Arc<Mutex<Option<Ended>>>,
    bus: BusId,
}

impl Calls {
    pub(super) fn new(
        bus: BusId,
        limit: Duration,
        runs: Vec<Vec<(Arc<EventEnvelope>, TransactionalWork)>>,
    ) -> Self {
        let call = |(envelope, work)| Call {
            envelope,
            work,
            end: Arc::default(),
            bus,
        };
        let runs = runs.into_iter();
        Self {
            limit,
            clock: Arc::default(),
            runs: runs
                .map(|run| run.into_iter().map(call).collect())
                .collect(),
            made: Made::All,
        }
    }

    /// What the store is given.
    pub(super) fn deliveries(&self) -> Vec<Vec<TransactionalDelivery>> {
        let delivery = |call: &Call| {
            let recorded = call.envelope.recorded()?;
            Some(TransactionalDelivery {
                position: recorded.position,
                aggregate: call.envelope.aggregate().clone(),
                version: recorded.version,
                work: match self.made {
                    Made::Nothing => Box::new(|_| Kept::Failed),
                    _ => call.work(self.limit, &self.clock),
                },
            })
        };
        let runs = self.runs.iter().map(|run| run.iter());
        if self.made == Made::First {
            let first = runs.flatten().next();
            return vec![first.and_then(delivery).into_iter().collect()];
        }
        runs.map(|run| run.filter_map(delivery).collect()).collect()
    }

    /// Whether a single delivery is made.
    pub(super) fn is_alone(&self) -> bool {
        self.made == Made::First || self.runs.iter().flatten().count() == 1
    }

    /// The ends where the commit has refused what the only delivery has written.
    pub(super) fn refused(&self, fault: &StoreError) -> Vec<Option<Ended>> {
        let source = fault.source().map(|source| format!(": {source}"));
        let text = format!("{fault}{}", source.unwrap_or_default());
        let first = Ended::failed(cut(text));
        let later = self.runs.iter().flatten().skip(1).map(|_| None);
        [Some(first)].into_iter().chain(later).collect()
    }

    /// The deliveries that are made, by aggregate and position.
    pub(super) fn places(&self) -> Vec<(AggregateRef, Position)> {
        let place = |call: &Call| {
            let aggregate = call.envelope.aggregate().clone();
            Some((aggregate, call.envelope.position()?))
        };
        self.runs.iter().flatten().filter_map(place).collect()
    }

    /// Tells a handler that runs past its time-out at this moment. Returns whether one does.
    pub(super) fn cancel_over_time(&self) -> bool {
        let running = lock(&self.clock.running);
        let late = running
            .as_ref()
            .filter(|(began, _)| began.elapsed() > self.limit);
        late.inspect(|(_, cancellation)| cancellation.cancel())
            .is_some()
    }

    /// The end of each delivery, `None` for those that were not made.
    pub(super) fn ends(&self, ends: &TransactionalEnds) -> Vec<Option<Ended>> {
        let mut ends = ends.runs.iter().flatten();
        // What was left for later has none.
        let ended = |call: &Call| {
            let end = *ends.next()?;
            let is_known = self.made != Made::Nothing || end == TransactionalEnd::OverBefore;
            is_known.then(|| call.ended(end)).flatten()
        };
        self.runs.iter().flatten().map(ended).collect()
    }
}

/// Whoever waits for them has gone: the bus is stopped, and a handler that asks is told so.
impl Drop for Calls {
    fn drop(&mut self) {
        self.clock.is_given_up.store(true, Ordering::SeqCst);
        if let Some((_, cancellation)) = &*lock(&self.clock.running) {
            cancellation.cancel();
        }
    }
}

impl Call {
    /// What the store is to call, each time that it makes the delivery.
    fn work(&self, limit: Duration, clock: &Arc<Clock>) -> InTransaction {
        let (bus, clock) = (self.bus, Arc::clone(clock));
        let (work, end) = (Arc::clone(&self.work), Arc::clone(&self.end));
        Box::new(move |conn| {
            // Of its own: those that share its transaction are not given up with it.
            let (began, cancellation) = (Instant::now(), Cancellation::default());
            *lock(&clock.running) = Some((began, cancellation.clone()));
            if clock.is_given_up.load(Ordering::SeqCst) {
                cancellation.cancel();
            }
            let again = CallAgain {
                deadline: began.checked_add(limit),
                cancellation,
            };
            let ended = inside::transaction(bus, || {
                guarded::call(bus, || Ended::from(work(conn, again)))
            });
            *lock(&clock.running) = None;
            let ended = match ended {
                _ if began.elapsed() > limit => Ended::failed(Fault::OverTime.text(limit)),
                Ok(ended) => ended,
                Err(text) => Ended::failed(text),
            };
            let kept = match &ended {
                Ended::Handled => Kept::All,
                Ended::Skipped(_) => Kept::Nothing,
                _ => Kept::Failed,
            };
            *lock(&end) = Some(ended);
            kept
        })
    }

    fn ended(&self, end: TransactionalEnd) -> Option<Ended> {
        let said = lock(&self.end).take();
        match end {
            TransactionalEnd::Over => said,
            // The handler may have said something else where it was called once more in vain.
            TransactionalEnd::OverBefore => {
                Some(said.filter(Ended::is_success).unwrap_or(Ended::Handled))
            }
            TransactionalEnd::Failed => {
                Some(said.unwrap_or_else(|| Ended::failed(ENDED.to_owned())))
            }
            TransactionalEnd::EndedTransaction => Some(Ended::failed(ENDED.to_owned())),
            TransactionalEnd::NotMade => None,
        }
    }
}
