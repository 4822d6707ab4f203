//! An event as a row of the log, and back.

use std::{collections::BTreeMap, sync::Arc};

use diesel::{
    deserialize::{self, FromSqlRow},
    row::{Field, Row},
    sqlite::{Sqlite, SqliteValue},
};
use domain_events::{
    AggregateRef, CorrelationId, EventEnvelope, EventId, EventMetadata, Position, Recorded,
    Timestamp, Urgency, Version,
};

use crate::{checksum::checksum, schema::found_events};

/// The row of an event, as it is written.
#[derive(Debug)]
pub(crate) struct EventRow<'a> {
    pub(crate) position: i64,
    pub(crate) event_id: &'a [u8; 16],
    pub(crate) type_key: i64,
    pub(crate) aggregate_key: i64,
    pub(crate) version: i64,
    pub(crate) schema_version: i64,
    pub(crate) urgency: i64,
    pub(crate) payload: &'a [u8],
    pub(crate) metadata: Option<&'a str>,
    pub(crate) correlation_id: &'a [u8; 16],
    pub(crate) causation_id: Option<&'a [u8; 16]>,
    pub(crate) occurred_at: i64,
    pub(crate) recorded_at: i64,
    pub(crate) checksum: i64,
}

/// The keys by which a row names its event's type and aggregate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) event_type: i64,
    pub(crate) aggregate: i64,
}

impl<'a> EventRow<'a> {
    /// The row of `event`, with its checksum.
    pub(crate) fn new(
        event: &'a EventEnvelope,
        id: &'a [u8; 16],
        payload: &'a [u8],
        metadata: Option<&'a str>,
        keys: Keys,
        recorded: Recorded,
    ) -> Self {
        let links = event.metadata();
        let mut row = Self {
            position: signed(recorded.position.get()),
            event_id: id,
            type_key: keys.event_type,
            aggregate_key: keys.aggregate,
            version: signed(recorded.version.get()),
            schema_version: i64::from(event.schema_version()),
            urgency: rank(event.urgency()),
            payload,
            metadata,
            correlation_id: links.correlation_id.as_bytes(),
            causation_id: links.causation_id.as_ref().map(EventId::as_bytes),
            occurred_at: event.occurred_at().as_micros(),
            recorded_at: recorded.at.as_micros(),
            checksum: 0,
        };
        row.checksum = checksum(&row, event.event_type(), event.aggregate());
        row
    }
}

/// The row of an event, as it is found: where it is damaged, anything can be missing.
#[derive(Debug)]
pub(crate) struct FoundRow {
    position: i64,
    event_id: [u8; 16],
    type_key: i64,
    aggregate_key: i64,
    version: i64,
    schema_version: i64,
    urgency: i64,
    payload: Vec<u8>,
    metadata: Option<Vec<u8>>,
    correlation_id: [u8; 16],
    causation_id: Option<[u8; 16]>,
    occurred_at: i64,
    recorded_at: i64,
    checksum: i64,
    /// Whether nothing is missing; what is, is zero or empty.
    is_whole: bool,
}

/// Written out, because Diesel would move each column several times.
impl FromSqlRow<found_events::SqlType, Sqlite> for FoundRow {
    fn build_from_row<'a>(row: &impl Row<'a, Sqlite>) -> deserialize::Result<Self> {
        let mut columns = Columns {
            row,
            is_whole: true,
        };
        Ok(Self {
            position: columns.number(0),
            event_id: columns.id(1),
            type_key: columns.number(2),
            aggregate_key: columns.number(3),
            version: columns.number(4),
            schema_version: columns.number(5),
            urgency: columns.number(6),
            payload: columns.bytes(7),
            metadata: bytes(row, 8),
            correlation_id: columns.id(9),
            causation_id: columns.optional_id(10),
            occurred_at: columns.number(11),
            recorded_at: columns.number(12),
            checksum: columns.number(13),
            is_whole: columns.is_whole,
        })
    }
}

/// The columns of a row, and whether all of them have been what they have to be.
struct Columns<'r, R> {
    row: &'r R,
    is_whole: bool,
}

impl<'a, R: Row<'a, Sqlite>> Columns<'_, R> {
    fn number(&mut self, column: usize) -> i64 {
        let number = number(self.row, column);
        self.there(number)
    }

    fn bytes(&mut self, column: usize) -> Vec<u8> {
        let bytes = bytes(self.row, column);
        self.there(bytes)
    }

    fn id(&mut self, column: usize) -> [u8; 16] {
        let id = self.optional_id(column);
        self.there(id)
    }

    fn optional_id(&mut self, column: usize) -> Option<[u8; 16]> {
        let id = id(self.row, column)?;
        Some(self.there(id))
    }

    fn there<T: Default>(&mut self, found: Option<T>) -> T {
        self.is_whole &= found.is_some();
        found.unwrap_or_default()
    }
}

fn number<'a>(row: &impl Row<'a, Sqlite>, column: usize) -> Option<i64> {
    let field = row.get(column)?;
    field.value().map(|mut value| value.read_long())
}

fn bytes<'a>(row: &impl Row<'a, Sqlite>, column: usize) -> Option<Vec<u8>> {
    let field = row.get(column)?;
    field.value().map(|mut value| value.read_blob().to_vec())
}

/// The bytes of an id, where there is one; `None` inside where there are not 16.
fn id<'a>(row: &impl Row<'a, Sqlite>, column: usize) -> Option<Option<[u8; 16]>> {
    let field = row.get(column)?;
    let id = |mut value: SqliteValue<'_, '_, '_>| value.read_blob().try_into().ok();
    field.value().map(id)
}

impl FoundRow {
    pub(crate) fn position(&self) -> i64 {
        self.position
    }

    pub(crate) fn version(&self) -> i64 {
        self.version
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// The key of the type; zero, which is none, where it is missing.
    pub(crate) fn type_key(&self) -> i64 {
        self.type_key
    }

    /// The key of the aggregate; zero, which is none, where it is missing.
    pub(crate) fn aggregate_key(&self) -> i64 {
        self.aggregate_key
    }

    /// The event of this row, marked where it is damaged; a name is `None` if its key leads nowhere.
    fn into_envelope(
        self,
        event_type: Option<&Arc<str>>,
        aggregate: Option<AggregateRef>,
    ) -> EventEnvelope {
        let known = event_type.is_some() && aggregate.is_some();
        let no_name;
        let event_type = match event_type {
            Some(event_type) => event_type,
            None => {
                no_name = Arc::default();
                &no_name
            }
        };
        let aggregate = aggregate.unwrap_or_else(|| AggregateRef::new("", ""));
        let metadata = self.event_metadata();
        let intact = known && metadata.is_some() && self.is_intact(event_type, &aggregate);
        let envelope = EventEnvelope::from_log(
            EventId::from_bytes(self.event_id),
            event_type,
            u32::try_from(self.schema_version).unwrap_or(0),
            aggregate,
            urgency(self.urgency),
            metadata.unwrap_or_else(no_metadata),
            Timestamp::from_micros(self.occurred_at),
            Recorded {
                position: Position::new(unsigned(self.position)),
                version: Version::new(unsigned(self.version)),
                at: Timestamp::from_micros(self.recorded_at),
            },
            self.payload.into_boxed_slice(),
        );
        if intact { envelope } else { envelope.damaged() }
    }

    fn is_intact(&self, event_type: &str, aggregate: &AggregateRef) -> bool {
        self.intact_time(event_type, aggregate).is_some()
    }

    /// When the event was recorded; `None` where the row is damaged.
    pub(crate) fn intact_time(&self, event_type: &str, aggregate: &AggregateRef) -> Option<i64> {
        let row = self.as_written()?;
        let is_intact = checksum(&row, event_type, aggregate) == row.checksum;
        is_intact.then_some(row.recorded_at)
    }

    /// The row, if nothing is missing.
    fn as_written(&self) -> Option<EventRow<'_>> {
        let metadata = self.metadata.as_deref().map(std::str::from_utf8);
        self.is_whole.then_some(EventRow {
            position: self.position,
            event_id: &self.event_id,
            type_key: self.type_key,
            aggregate_key: self.aggregate_key,
            version: self.version,
            schema_version: self.schema_version,
            urgency: self.urgency,
            payload: &self.payload,
            metadata: metadata.transpose().ok()?,
            correlation_id: &self.correlation_id,
            causation_id: self.causation_id.as_ref(),
            occurred_at: self.occurred_at,
            recorded_at: self.recorded_at,
            checksum: self.checksum,
        })
    }

    fn event_metadata(&self) -> Option<EventMetadata> {
        let entries = match self.metadata.as_deref() {
            Some(json) => serde_json::from_slice(json).ok()?,
            None => BTreeMap::new(),
        };
        Some(EventMetadata {
            correlation_id: CorrelationId::from_bytes(self.correlation_id),
            causation_id: self.causation_id.map(EventId::from_bytes),
            entries,
        })
    }
}

fn no_metadata() -> EventMetadata {
    EventMetadata {
        correlation_id: CorrelationId::from_bytes([0; 16]),
        causation_id: None,
        entries: BTreeMap::new(),
    }
}

const RANK_NORMAL: i64 = 1;

/// A row with the names behind its keys, where they lead somewhere.
pub(crate) struct NamedRow {
    pub(crate) row: FoundRow,
    pub(crate) event_type: Option<Arc<str>>,
    pub(crate) aggregate: Option<AggregateRef>,
}

impl NamedRow {
    /// The event, marked where its row is damaged.
    pub(crate) fn into_envelope(self) -> EventEnvelope {
        self.row
            .into_envelope(self.event_type.as_ref(), self.aggregate)
    }
}

/// Rows with the names behind their keys: a name with the index of the first row that has it, as
/// long as the next ones have it too. To copy a name for each of them would pass its count between
/// the processors of who reads and who asked.
pub(crate) struct Page {
    pub(crate) rows: Vec<FoundRow>,
    pub(crate) event_types: Vec<(usize, Option<Arc<str>>)>,
    pub(crate) aggregates: Vec<(usize, Option<AggregateRef>)>,
}

impl Page {
    /// The events, marked where their rows are damaged.
    pub(crate) fn into_envelopes(self) -> Vec<EventEnvelope> {
        let mut event_types = self.event_types.into_iter().peekable();
        let mut aggregates = self.aggregates.into_iter().peekable();
        let (mut event_type, mut aggregate) = (None, None);
        let envelope = |(index, row): (usize, FoundRow)| {
            if let Some((_, name)) = event_types.next_if(|(first, _)| *first == index) {
                event_type = name;
            }
            if let Some((_, name)) = aggregates.next_if(|(first, _)| *first == index) {
                aggregate = name;
            }
            row.into_envelope(event_type.as_ref(), aggregate.clone())
        };
        self.rows.into_iter().enumerate().map(envelope).collect()
    }
}

/// The number under which an urgency is stored.
pub(crate) fn rank(urgency: Urgency) -> i64 {
    match urgency {
        Urgency::Low => 0,
        Urgency::Normal => RANK_NORMAL,
        Urgency::High => 2,
    }
}

fn urgency(rank: i64) -> Urgency {
    match rank {
        0 => Urgency::Low,
        2 => Urgency::High,
        _ => Urgency::Normal,
    }
}

/// A place as SQLite counts; what no log reaches is the end of all logs.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number of SQLite as a place; there is none below zero.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
