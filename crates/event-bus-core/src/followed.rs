//! A receipt's side of an event that several pipelines share, or that is still to be read from the
//! log.

use std::{
    sync::{Arc, OnceLock, Weak},
    task::{Poll, Waker},
};

use domain_events::{BoxFuture, EventEnvelope, Handled, Handling, WaitError};

use crate::{
    engine::{Engine, wake},
    inside::{self, BusId},
    record::{Record, wait},
    sync::{Mutex, lock},
};

/// The records of one event, one a pipeline; some may come later, when they are read from the log.
pub(crate) struct Followed {
    bus: BusId,
    records: Box<[OnceLock<Arc<Record>>]>,
    early: Mutex<Vec<Waker>>,
    /// The bus that awaits the event, and the event, where it was left to the log.
    awaited: Option<(Weak<Engine>, Arc<EventEnvelope>)>,
}

impl Followed {
    /// The event has these records, and no more will come.
    pub(crate) fn new(bus: BusId, records: impl IntoIterator<Item = Arc<Record>>) -> Arc<Self> {
        Arc::new(Self {
            bus,
            records: records.into_iter().map(known).collect(),
            early: Mutex::default(),
            awaited: None,
        })
    }

    /// The event has these records, and those that are `None` are awaited from the log.
    pub(crate) fn awaiting(
        bus: BusId,
        engine: Weak<Engine>,
        event: Arc<EventEnvelope>,
        records: impl IntoIterator<Item = Option<Arc<Record>>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            bus,
            records: records
                .into_iter()
                .map(|record| record.map_or_else(OnceLock::new, known))
                .collect(),
            early: Mutex::default(),
            awaited: Some((engine, event)),
        })
    }

    /// Gives the record of the `part`th pipeline, now that the event was read from the log.
    pub(crate) fn found(&self, part: usize, record: &Arc<Record>) {
        if let Some(place) = self.records.get(part) {
            let _ = place.set(Arc::clone(record));
        }
        let early = std::mem::take(&mut *lock(&self.early));
        early.into_iter().for_each(wake);
    }

    /// The event, where it was left to the log.
    pub(crate) fn event(&self) -> Option<&Arc<EventEnvelope>> {
        self.awaited.as_ref().map(|(_, event)| event)
    }

    fn poll(&self, waker: &Waker) -> Poll<Handled> {
        let mut all = Some(Vec::new());
        for record in &self.records {
            if record.get().is_none() {
                wait(&self.early, waker);
            }
            // The record may have come before the waker was in its place.
            let outcomes = record.get().map(|record| record.poll_outcomes(waker));
            match (&mut all, outcomes) {
                (Some(all), Some(Poll::Ready(outcomes))) => all.extend(outcomes),
                _ => all = None,
            }
        }
        all.map_or(Poll::Pending, |outcomes| Poll::Ready(Handled { outcomes }))
    }

    fn is_resolved(&self) -> bool {
        let resolved = |record: &Arc<Record>| record.is_resolved();
        self.records
            .iter()
            .all(|record| record.get().is_some_and(resolved))
    }
}

fn known(record: Arc<Record>) -> OnceLock<Arc<Record>> {
    record.set_followed(true);
    OnceLock::from(record)
}

impl Handling for Followed {
    fn handled(self: Arc<Self>) -> BoxFuture<'static, Result<Handled, WaitError>> {
        Box::pin(std::future::poll_fn(move |cx| {
            if inside::is_inside(self.bus) && !self.is_resolved() {
                return Poll::Ready(Err(WaitError::InsideHandler));
            }
            self.poll(cx.waker()).map(Ok)
        }))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        for record in self.records.iter().filter_map(OnceLock::get) {
            record.set_followed(false);
        }
        // Where a record is still to come, or a delivery of it is left to the log.
        let waits = |record: &OnceLock<Arc<Record>>| record.get().is_none_or(|it| it.is_any_left());
        if self.records.iter().any(waits)
            && let Some((engine, event)) = &self.awaited
            && let Some(engine) = engine.upgrade()
        {
            engine.forget_receipt(event);
        }
    }
}
