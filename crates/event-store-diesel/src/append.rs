//! A batch of events on its way into the log.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use diesel::{QueryResult, result::Error};
use domain_events::{
    AggregateRef, Append, AppendDone, AppendError, Appended, EventEnvelope, ExpectedVersion,
    Recorded, Timestamp, Version,
};

use crate::{
    identity::{self, Presence},
    transaction::Transaction,
    writer::{Fault, Request},
};

/// An event whose payload and metadata are encoded.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) event: Arc<EventEnvelope>,
    expected: ExpectedVersion,
    metadata: Option<String>,
}

/// Why a batch is not appended: it is at fault, or the database is.
pub(crate) enum Stop {
    Refused(AppendError),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What became of an event of a batch.
pub(crate) enum Slot {
    New(Recorded),
    There(Box<EventEnvelope>),
    Twin(usize),
}

/// A batch of events on its way into the log.
pub(crate) struct AppendRequest {
    batch: Result<Vec<Prepared>, AppendError>,
    slots: Result<Vec<Slot>, AppendError>,
    done: AppendDone,
}

impl AppendRequest {
    /// Encodes the batch, on the thread of the caller: the writer only writes.
    pub(crate) fn new(batch: Vec<Append>, max_payload_bytes: usize, done: AppendDone) -> Self {
        Self {
            batch: prepare_all(batch, max_payload_bytes),
            slots: Ok(Vec::new()),
            done,
        }
    }
}

impl Request for AppendRequest {
    fn events(&self) -> usize {
        self.batch.as_ref().map_or(0, Vec::len)
    }

    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        let slots = match &self.batch {
            Ok(batch) => append(tx, batch),
            Err(refusal) => Err(Stop::Refused(refusal.clone())),
        };
        self.slots = match slots {
            Ok(slots) => Ok(slots),
            Err(Stop::Refused(refusal)) => Err(refusal),
            Err(Stop::Failed(error)) => return Err(error),
        };
        Ok(())
    }

    fn answer(self: Box<Self>, end: Result<(), Fault>) {
        let Self { batch, slots, done } = *self;
        done(match end {
            Ok(()) => slots.and_then(|slots| Ok(appended(batch?, slots))),
            Err(Fault::NotCommitted(error)) => Err(AppendError::Store(error)),
            Err(Fault::Refused(error) | Fault::Unknown(error)) => {
                Err(AppendError::OutcomeUnknown(error))
            }
        });
    }
}

/// Encodes a batch.
pub(crate) fn prepare_all(
    batch: Vec<Append>,
    max_payload_bytes: usize,
) -> Result<Vec<Prepared>, AppendError> {
    let prepare = |append| prepare(append, max_payload_bytes);
    batch.into_iter().map(prepare).collect()
}

fn prepare(append: Append, max_payload_bytes: usize) -> Result<Prepared, AppendError> {
    let Append { event, expected } = append;
    let not_encoded = || AppendError::Encode {
        event_type: event.event_type().to_owned(),
    };
    // A panic in the event's `Serialize` must not cost the caller its answer.
    let bytes = match catch_unwind(AssertUnwindSafe(|| event.payload().map(<[u8]>::len))) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) | Err(_) => return Err(not_encoded()),
    };
    if bytes > max_payload_bytes {
        return Err(AppendError::PayloadTooLarge {
            bytes,
            limit: max_payload_bytes,
        });
    }
    let entries = &event.metadata().entries;
    let metadata = match entries.is_empty() {
        true => None,
        false => Some(serde_json::to_string(entries).map_err(|_| not_encoded())?),
    };
    Ok(Prepared {
        event,
        expected,
        metadata,
    })
}

/// Checks everything before the first row is written, so that a refused batch leaves no trace.
pub(crate) fn append(tx: &mut Transaction<'_>, batch: &[Prepared]) -> Result<Vec<Slot>, Stop> {
    let presences = identity::presences(tx, batch)?;
    check_versions(tx, batch, &presences)?;
    let at = tx.time();
    let slot = |(prepared, presence): (&Prepared, Presence)| {
        Ok(match presence {
            Presence::New => Slot::New(write(tx, prepared, at)?),
            Presence::There(event) => Slot::There(event),
            Presence::Twin(first) => Slot::Twin(first),
        })
    };
    batch.iter().zip(presences).map(slot).collect()
}

fn check_versions(
    tx: &mut Transaction<'_>,
    batch: &[Prepared],
    presences: &[Presence],
) -> Result<(), Stop> {
    if batch.iter().all(|it| it.expected == ExpectedVersion::Any) {
        return Ok(());
    }
    let mut ahead: HashMap<&AggregateRef, u64> = HashMap::new();
    for (
        Prepared {
            event, expected, ..
        },
        presence,
    ) in batch.iter().zip(presences)
    {
        if !matches!(presence, Presence::New) {
            continue;
        }
        let aggregate = event.aggregate();
        let before = ahead.entry(aggregate).or_default();
        let actual = Version::new(tx.version(aggregate)?.get() + *before);
        if !expected.allows(actual) {
            return Err(Stop::Refused(AppendError::WrongVersion {
                aggregate: aggregate.clone(),
                expected: *expected,
                actual,
            }));
        }
        *before += 1;
    }
    Ok(())
}

fn write(tx: &mut Transaction<'_>, prepared: &Prepared, at: Timestamp) -> Result<Recorded, Stop> {
    let Prepared {
        event, metadata, ..
    } = prepared;
    // Encoded before, so this cannot fail; if it did, the batch would not be half written.
    let payload = event.payload();
    let payload = payload.map_err(|error| Error::SerializationError(Box::new(error)))?;
    Ok(tx.append(event, payload, metadata.as_deref(), at)?)
}

/// The events of a batch as they are in the log.
pub(crate) fn appended(batch: Vec<Prepared>, slots: Vec<Slot>) -> Vec<Appended> {
    let mut all: Vec<Appended> = Vec::with_capacity(batch.len());
    for (Prepared { event, .. }, slot) in batch.into_iter().zip(slots) {
        let (event, already_there) = match slot {
            Slot::New(recorded) => (event.with_recorded(recorded), false),
            Slot::There(found) => (Arc::new(*found), true),
            Slot::Twin(first) => (Arc::clone(&all[first].event), true),
        };
        all.push(Appended {
            event,
            already_there,
        });
    }
    all
}
