//! The events of a store in memory.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use domain_events::{
    AggregateRef, Append, AppendError, Appended, EventEnvelope, EventId, EventMetadata, EventQuery,
    Position, Recorded, Retention, Timestamp, Urgency, Version,
};
use serde_json::Value;

use super::deliveries::Deliveries;

const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// Events in the order of their positions.
#[derive(Clone, Default)]
pub(super) struct Log {
    rows: BTreeMap<Position, Row>,
    /// The greatest position that was given.
    head: Position,
    pub(super) pruned_through: Position,
    by_id: BTreeMap<EventId, Position>,
    versions: HashMap<AggregateRef, Version>,
}

/// An event as a disk would have it.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) id: EventId,
    event_type: Arc<str>,
    schema_version: u32,
    pub(super) aggregate: AggregateRef,
    urgency: Urgency,
    metadata: EventMetadata,
    occurred_at: Timestamp,
    pub(super) recorded: Recorded,
    payload: Box<[u8]>,
}

impl Row {
    fn new(event: &EventEnvelope, payload: &[u8], recorded: Recorded) -> Self {
        Self {
            id: event.id(),
            event_type: event.event_type().into(),
            schema_version: event.schema_version(),
            aggregate: event.aggregate().clone(),
            urgency: event.urgency(),
            metadata: event.metadata().clone(),
            occurred_at: event.occurred_at(),
            recorded,
            payload: payload.into(),
        }
    }

    pub(super) fn envelope(&self) -> EventEnvelope {
        EventEnvelope::from_log(
            self.id,
            &self.event_type,
            self.schema_version,
            self.aggregate.clone(),
            self.urgency,
            self.metadata.clone(),
            self.occurred_at,
            self.recorded,
            self.payload.clone(),
        )
    }

    /// Whether it is one of the events that `query` means.
    pub(super) fn is_meant(&self, query: &EventQuery, deliveries: &Deliveries) -> bool {
        match query {
            EventQuery::Log => true,
            EventQuery::History(aggregate, versions) => {
                self.aggregate == *aggregate && versions.contains(&self.recorded.version)
            }
            EventQuery::OfType(name) => self.event_type == *name,
            EventQuery::Correlated(id) => self.metadata.correlation_id == *id,
            EventQuery::Recorded(time) => time.contains(&self.recorded.at),
            EventQuery::Unfinished => deliveries.has_unfinished(self),
        }
    }
}

/// Encodes every payload of a batch, so that it can be stored.
pub(super) fn encode(batch: Vec<Append>) -> Result<Vec<Append>, AppendError> {
    for Append { event, .. } in &batch {
        let payload = event.payload().map_err(|error| AppendError::Encode {
            event_type: error.event_type,
        })?;
        let (bytes, limit) = (payload.len(), MAX_PAYLOAD_BYTES);
        if bytes > limit {
            return Err(AppendError::PayloadTooLarge { bytes, limit });
        }
    }
    Ok(batch)
}

impl Log {
    pub(super) fn head(&self) -> Position {
        self.head
    }

    /// The last position that is not to be kept.
    pub(super) fn not_kept(&self, keep: Retention) -> Position {
        let not_kept = match keep {
            Retention::Latest(events) => self.head.get().saturating_sub(events),
            Retention::Since(time) => {
                let mut kept = self.rows.values().filter(|row| row.recorded.at >= time);
                let first = kept.next().map(|row| row.recorded.position);
                first.map_or(self.head, Position::previous).get()
            }
            Retention::After(position) => position.get(),
        };
        Position::new(not_kept).min(self.head)
    }

    /// Removes all up to a position but those that are kept for somebody. Returns how many.
    pub(super) fn prune(&mut self, through: Position, is_kept: impl Fn(Position) -> bool) -> u64 {
        let all = self.rows.len();
        self.rows
            .retain(|position, _| *position > through || is_kept(*position));
        self.by_id
            .retain(|_, position| *position > through || is_kept(*position));
        self.pruned_through = self.pruned_through.max(through);
        (all - self.rows.len()) as u64
    }

    pub(super) fn after(&self, position: Position) -> impl Iterator<Item = &Row> {
        let after = (Bound::Excluded(position), Bound::Unbounded);
        self.rows.range(after).map(|(_, row)| row)
    }

    /// Events up to here are none that `query` means, be it that some are kept.
    pub(super) fn not_read(&self, query: &EventQuery) -> Position {
        match query {
            EventQuery::Unfinished => Position::ZERO,
            _ => self.pruned_through,
        }
    }

    pub(super) fn get(&self, id: EventId) -> Option<EventEnvelope> {
        Some(self.rows[self.by_id.get(&id)?].envelope())
    }

    /// The event at a position.
    pub(super) fn at(&self, position: Position) -> Option<&Row> {
        self.rows.get(&position)
    }

    pub(super) fn has(&self, position: Position) -> bool {
        self.rows.contains_key(&position)
    }

    pub(super) fn knows(&self, aggregate: &AggregateRef) -> bool {
        self.versions.contains_key(aggregate)
    }

    pub(super) fn aggregates(&self) -> u64 {
        self.versions.len() as u64
    }

    pub(super) fn by_type(&self) -> BTreeMap<String, u64> {
        let mut by_type = BTreeMap::new();
        for row in self.after(self.pruned_through) {
            *by_type.entry(row.event_type.to_string()).or_default() += 1;
        }
        by_type
    }

    /// Checks everything before the first event is appended.
    pub(super) fn append(&mut self, batch: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        self.check_ids(&batch)?;
        let is_there = |it: &&Append| self.by_id.contains_key(&it.event.id());
        let (present, all) = (batch.iter().filter(is_there).count(), batch.len());
        if present > 0 && present < all {
            let batch = all;
            return Err(AppendError::PartlyThere { present, batch });
        }
        if present == 0 {
            self.check_versions(&batch)?;
        }
        let mut events = HashMap::new();
        Ok(batch
            .into_iter()
            .map(|Append { event, .. }| self.append_one(event, &mut events))
            .collect())
    }

    /// Appends an event, unless it is there; `events` are the ones of its batch so far.
    fn append_one(
        &mut self,
        event: Arc<EventEnvelope>,
        events: &mut HashMap<EventId, Arc<EventEnvelope>>,
    ) -> Appended {
        let id = event.id();
        if let Some(position) = self.by_id.get(&id) {
            let found = || Arc::new(self.rows[position].envelope());
            let event = Arc::clone(events.entry(id).or_insert_with(found));
            let already_there = true;
            return Appended {
                event,
                already_there,
            };
        }
        let event = self.insert(event);
        events.insert(id, Arc::clone(&event));
        Appended {
            event,
            already_there: false,
        }
    }

    fn insert(&mut self, event: Arc<EventEnvelope>) -> Arc<EventEnvelope> {
        let latest = self.rows.last_key_value().map(|(_, row)| row.recorded.at);
        let version = self.versions.entry(event.aggregate().clone()).or_default();
        *version = version.next();
        self.head = self.head.next();
        let recorded = Recorded {
            position: self.head,
            version: self.versions[event.aggregate()],
            // However the clock is set, times ascend with positions.
            at: latest
                .max(Some(Timestamp::now()))
                .unwrap_or_else(Timestamp::now),
        };
        let payload = event.payload().unwrap_or_default();
        let row = Row::new(&event, payload, recorded);
        self.by_id.insert(row.id, recorded.position);
        self.rows.insert(recorded.position, row);
        event.with_recorded(recorded)
    }

    /// No id belongs to another event, neither in the log nor in the batch.
    fn check_ids(&self, batch: &[Append]) -> Result<(), AppendError> {
        let mut earlier: HashMap<EventId, &EventEnvelope> = HashMap::new();
        for Append { event, .. } in batch {
            let id = event.id();
            let taken = |position| Err(AppendError::IdTaken { id, position });
            if !same(earlier.entry(id).or_insert(event), event) {
                return taken(Position::ZERO);
            }
            match self.by_id.get(&id) {
                Some(at) if !same(&self.rows[at].envelope(), event) => return taken(*at),
                _ => {}
            }
        }
        Ok(())
    }

    /// Each event finds the version that it expects, with those before it in the batch.
    fn check_versions(&self, batch: &[Append]) -> Result<(), AppendError> {
        let mut versions = HashMap::new();
        let mut ids = HashMap::new();
        for Append { event, expected } in batch {
            if ids.insert(event.id(), ()).is_some() {
                continue;
            }
            let aggregate = event.aggregate();
            let known = || self.versions.get(aggregate).copied().unwrap_or_default();
            let actual = versions.entry(aggregate).or_insert_with(known);
            if !expected.allows(*actual) {
                return Err(AppendError::WrongVersion {
                    aggregate: aggregate.clone(),
                    expected: *expected,
                    actual: *actual,
                });
            }
            *actual = actual.next();
        }
        Ok(())
    }
}

/// Whether two events with the same id are the same event: in type, aggregate and payload.
fn same(one: &EventEnvelope, other: &EventEnvelope) -> bool {
    let names = one.event_type() == other.event_type() && one.aggregate() == other.aggregate();
    let [one, other] = [one, other].map(|event| event.payload().unwrap_or_default());
    names && (one == other || members(one).is_some_and(|it| Some(it) == members(other)))
}

/// What stays of a payload when the order of its members, which is another one each time where they
/// come from a hash map, is forgotten; `None` where a number was not read as it was written.
fn members(payload: &[u8]) -> Option<(Value, Vec<u8>)> {
    let sorted = |mut bytes: Vec<u8>| {
        bytes.sort_unstable();
        bytes
    };
    let value: Value = serde_json::from_slice(payload).ok()?;
    let (bytes, read) = (payload.to_vec(), serde_json::to_vec(&value).ok()?);
    let bytes = sorted(bytes);
    (sorted(read) == bytes).then_some((value, bytes))
}
