//! An event as a row of the log, and back.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use diesel::{
    row::Field,
    sqlite::{Sqlite, SqliteValue},
};
use domain_events::{
    AggregateRef, CorrelationId, EventEnvelope, EventId, EventMetadata, Position, Recorded,
    Timestamp, Urgency, Version,
};

use crate::checksum::checksum;

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

/// Rows of events, as they are found: where one is damaged, anything can be missing.
///
/// Their bytes are kept together: what one thread allocates piece by piece and another one frees
/// costs both of them more than to read it.
#[derive(Debug, Default)]
pub(crate) struct FoundRows {
    list: Vec<Row>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Row {
    position: i64,
    event_id: [u8; 16],
    type_key: i64,
    aggregate_key: i64,
    version: i64,
    schema_version: i64,
    urgency: i64,
    payload: Range<usize>,
    metadata: Option<Range<usize>>,
    correlation_id: [u8; 16],
    causation_id: Option<[u8; 16]>,
    occurred_at: i64,
    recorded_at: i64,
    checksum: i64,
    /// Whether nothing is missing; what is, is zero or empty.
    is_whole: bool,
}

impl FoundRows {
    /// Adds a row of the table of found events, with all its columns.
    pub(crate) fn push<'a>(&mut self, row: &impl diesel::row::Row<'a, Sqlite>) {
        let mut columns = Columns {
            row,
            bytes: &mut self.bytes,
            is_whole: true,
        };
        self.list.push(Row {
            position: columns.number(0),
            event_id: columns.id(1),
            type_key: columns.number(2),
            aggregate_key: columns.number(3),
            version: columns.number(4),
            schema_version: columns.number(5),
            urgency: columns.number(6),
            payload: columns.bytes(7),
            metadata: columns.optional_bytes(8),
            correlation_id: columns.id(9),
            causation_id: columns.optional_id(10),
            occurred_at: columns.number(11),
            recorded_at: columns.number(12),
            checksum: columns.number(13),
            is_whole: columns.is_whole,
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many bytes payloads and metadata have.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn first(&self) -> Option<FoundRow<'_>> {
        self.iter().next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = FoundRow<'_>> {
        let bytes = &self.bytes[..];
        self.list.iter().map(move |row| FoundRow { row, bytes })
    }

    /// Adds `others` behind these.
    pub(crate) fn append(&mut self, others: Self) {
        let start = self.bytes.len();
        let shift = |range: Range<usize>| range.start + start..range.end + start;
        self.list.extend(others.list.into_iter().map(|row| Row {
            payload: shift(row.payload),
            metadata: row.metadata.map(shift),
            ..row
        }));
        self.bytes.extend(others.bytes);
    }

    /// Puts the last row at its place among the others, which are in the order of the log.
    pub(crate) fn sort_in_last(&mut self) {
        if let Some(last) = self.list.pop() {
            let place = |row: &Row| row.position < last.position;
            self.list.insert(self.list.partition_point(place), last);
        }
    }

    pub(crate) fn truncate(&mut self, rows: usize) {
        self.list.truncate(rows);
    }
}

/// The columns of a row, and whether all of them have been what they have to be.
struct Columns<'r, R> {
    row: &'r R,
    bytes: &'r mut Vec<u8>,
    is_whole: bool,
}

impl<'a, R: diesel::row::Row<'a, Sqlite>> Columns<'_, R> {
    fn number(&mut self, column: usize) -> i64 {
        let number = self.read(column, |mut value| value.read_long());
        self.there(number)
    }

    fn bytes(&mut self, column: usize) -> Range<usize> {
        let bytes = self.optional_bytes(column);
        self.there(bytes)
    }

    fn optional_bytes(&mut self, column: usize) -> Option<Range<usize>> {
        let start = self.bytes.len();
        let field = self.row.get(column)?;
        self.bytes.extend_from_slice(field.value()?.read_blob());
        Some(start..self.bytes.len())
    }

    fn id(&mut self, column: usize) -> [u8; 16] {
        let id = self.optional_id(column);
        self.there(id)
    }

    /// The bytes of an id, where there is one; zero where there are not 16.
    fn optional_id(&mut self, column: usize) -> Option<[u8; 16]> {
        let id = self.read(column, |mut value| value.read_blob().try_into().ok())?;
        Some(self.there(id))
    }

    fn read<T>(&self, column: usize, read: impl FnOnce(SqliteValue<'_, '_, '_>) -> T) -> Option<T> {
        let field = self.row.get(column)?;
        field.value().map(read)
    }

    fn there<T: Default>(&mut self, found: Option<T>) -> T {
        self.is_whole &= found.is_some();
        found.unwrap_or_default()
    }
}

/// The row of an event, as it is found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundRow<'a> {
    row: &'a Row,
    bytes: &'a [u8],
}

impl<'a> FoundRow<'a> {
    pub(crate) fn position(self) -> i64 {
        self.row.position
    }

    pub(crate) fn version(self) -> i64 {
        self.row.version
    }

    /// The key of the type; zero, which is none, where it is missing.
    pub(crate) fn type_key(self) -> i64 {
        self.row.type_key
    }

    /// The key of the aggregate; zero, which is none, where it is missing.
    pub(crate) fn aggregate_key(self) -> i64 {
        self.row.aggregate_key
    }

    /// The event of this row, marked where it is damaged; a name is `None` if its key leads nowhere.
    pub(crate) fn envelope(
        self,
        event_type: Option<&Arc<str>>,
        aggregate: Option<AggregateRef>,
    ) -> EventEnvelope {
        let row = self.row;
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
            EventId::from_bytes(row.event_id),
            event_type,
            u32::try_from(row.schema_version).unwrap_or(0),
            aggregate,
            urgency(row.urgency),
            metadata.unwrap_or_else(no_metadata),
            Timestamp::from_micros(row.occurred_at),
            Recorded {
                position: Position::new(unsigned(row.position)),
                version: Version::new(unsigned(row.version)),
                at: Timestamp::from_micros(row.recorded_at),
            },
            self.payload().into(),
        );
        if intact { envelope } else { envelope.damaged() }
    }

    fn is_intact(self, event_type: &str, aggregate: &AggregateRef) -> bool {
        self.intact_time(event_type, aggregate).is_some()
    }

    /// When the event was recorded; `None` where the row is damaged.
    pub(crate) fn intact_time(self, event_type: &str, aggregate: &AggregateRef) -> Option<i64> {
        let row = self.as_written()?;
        let is_intact = checksum(&row, event_type, aggregate) == row.checksum;
        is_intact.then_some(row.recorded_at)
    }

    /// The row, if nothing is missing.
    fn as_written(self) -> Option<EventRow<'a>> {
        let row = self.row;
        let metadata = self.metadata().map(std::str::from_utf8);
        row.is_whole.then_some(EventRow {
            position: row.position,
            event_id: &row.event_id,
            type_key: row.type_key,
            aggregate_key: row.aggregate_key,
            version: row.version,
            schema_version: row.schema_version,
            urgency: row.urgency,
            payload: self.payload(),
            metadata: metadata.transpose().ok()?,
            correlation_id: &row.correlation_id,
            causation_id: row.causation_id.as_ref(),
            occurred_at: row.occurred_at,
            recorded_at: row.recorded_at,
            checksum: row.checksum,
        })
    }

    fn payload(self) -> &'a [u8] {
        &self.bytes[self.row.payload.clone()]
    }

    fn metadata(self) -> Option<&'a [u8]> {
        Some(&self.bytes[self.row.metadata.clone()?])
    }

    fn event_metadata(self) -> Option<EventMetadata> {
        let entries = match self.metadata() {
            Some(json) => serde_json::from_slice(json).ok()?,
            None => BTreeMap::new(),
        };
        Some(EventMetadata {
            correlation_id: CorrelationId::from_bytes(self.row.correlation_id),
            causation_id: self.row.causation_id.map(EventId::from_bytes),
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

/// Rows with the names behind their keys: a name with the index of the first row that has it, as
/// long as the next ones have it too. To copy a name for each of them would pass its count between
/// the processors of who reads and who asked.
pub(crate) struct Page {
    pub(crate) rows: FoundRows,
    pub(crate) event_types: Vec<(usize, Option<Arc<str>>)>,
    pub(crate) aggregates: Vec<(usize, Option<AggregateRef>)>,
}

impl Page {
    /// The events, marked where their rows are damaged.
    pub(crate) fn into_envelopes(self) -> Vec<EventEnvelope> {
        let mut event_types = self.event_types.into_iter().peekable();
        let mut aggregates = self.aggregates.into_iter().peekable();
        let (mut event_type, mut aggregate) = (None, None);
        let envelope = |(index, row): (usize, FoundRow<'_>)| {
            if let Some((_, name)) = event_types.next_if(|(first, _)| *first == index) {
                event_type = name;
            }
            if let Some((_, name)) = aggregates.next_if(|(first, _)| *first == index) {
                aggregate = name;
            }
            // The last row that has a name takes it along.
            let is_last = aggregates
                .peek()
                .is_some_and(|(next, _)| *next == index + 1);
            let aggregate = match is_last {
                true => aggregate.take(),
                false => aggregate.clone(),
            };
            row.envelope(event_type.as_ref(), aggregate)
        };
        self.rows.iter().enumerate().map(envelope).collect()
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
