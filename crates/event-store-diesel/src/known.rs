//! What the writer remembers of the log between transactions.
//!
//! It holds only while `PRAGMA data_version` is unchanged: another connection may append, too.

use std::collections::{HashMap, HashSet};

use diesel::{QueryResult, SqliteConnection};
use domain_events::{AggregateRef, EventId, Position, SubscriptionId, Timestamp, Version};

use crate::{names::Names, queries, rows::unsigned};

/// How many aggregates are remembered before all are forgotten; some 20 MiB.
const LIMIT: usize = 100_000;

/// What the writer remembers of the log.
pub(crate) struct Known {
    data_version: i64,
    pub(crate) head: Position,
    latest: Timestamp,
    /// No id in the log is greater, so a greater one is new; most new ids are.
    ///
    /// Holds because it is read inside a transaction, only ever rises with what is inserted, and
    /// is forgotten with the rest when a transaction fails or another connection has committed.
    greatest_id: Option<EventId>,
    event_types: HashMap<Box<str>, i64>,
    /// Read where there is a new one.
    last_event_type: Option<i64>,
    histories: Vec<History>,
    /// Where an aggregate's history is among them.
    indexes: HashMap<AggregateRef, usize>,
    /// Read where there is a new one.
    last_aggregate: Option<i64>,
    /// The histories whose row is yet to be written, once for the whole group.
    unwritten: Vec<usize>,
    pub(crate) subscriptions: HashSet<SubscriptionId>,
}

/// An aggregate's history: its key, if it has a row or is about to, and its last version.
struct History {
    aggregate: AggregateRef,
    key: Option<i64>,
    version: Version,
    has_row: bool,
    is_unwritten: bool,
}

impl Known {
    /// What is known for the rest of a transaction.
    pub(crate) fn read(
        conn: &mut SqliteConnection,
        names: &mut Names,
        data_version: i64,
    ) -> QueryResult<Self> {
        let mut latest = queries::last_recorded_at(conn)?;
        // A time that has passed says nothing, be it damaged.
        if latest > Some(Timestamp::now().as_micros()) {
            latest = names.last_recorded_at(conn)?;
        }
        let greatest = queries::greatest_event_id(conn)?;
        Ok(Self {
            data_version,
            head: Position::new(unsigned(queries::head(conn)?)),
            latest: Timestamp::from_micros(latest.unwrap_or(i64::MIN)),
            // An id that is damaged says nothing, so all others have to be looked up.
            greatest_id: greatest
                .map(|id| EventId::from_bytes(id.try_into().unwrap_or([u8::MAX; 16]))),
            event_types: HashMap::new(),
            last_event_type: None,
            histories: Vec::new(),
            indexes: HashMap::new(),
            last_aggregate: None,
            unwritten: Vec::new(),
            subscriptions: HashSet::new(),
        })
    }

    /// What is known inside the transaction that was just begun: `known`, if it still holds.
    pub(crate) fn refresh<'a>(
        known: &'a mut Option<Self>,
        conn: &mut SqliteConnection,
        names: &mut Names,
    ) -> QueryResult<&'a mut Self> {
        let data_version = queries::data_version(conn)?;
        let holds = known.take().filter(|known| known.holds(data_version));
        let current = match holds {
            Some(holds) => holds,
            None => Self::read(conn, names, data_version)?,
        };
        Ok(known.insert(current))
    }

    /// Reads everything again: it was changed by the writer's own connection.
    pub(crate) fn read_again(
        &mut self,
        conn: &mut SqliteConnection,
        names: &mut Names,
    ) -> QueryResult<()> {
        *self = Self::read(conn, names, self.data_version)?;
        Ok(())
    }

    fn holds(&self, data_version: i64) -> bool {
        self.data_version == data_version
            && self.histories.len() < LIMIT
            && self.event_types.len() < LIMIT
            && self.subscriptions.len() < LIMIT
    }

    /// Whether an id is new for certain; otherwise it has to be looked up.
    pub(crate) fn is_new(&self, id: EventId) -> bool {
        self.greatest_id.is_none_or(|greatest| id > greatest)
    }

    /// The time to record for what is appended at `now`. It never goes back, whatever the clock
    /// does: the log is searched by it.
    pub(crate) fn time(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// Notes that an event was inserted.
    pub(crate) fn note_event(&mut self, id: EventId, position: Position) {
        self.head = position;
        self.greatest_id = self.greatest_id.max(Some(id));
    }

    pub(crate) fn event_type_key(
        &mut self,
        conn: &mut SqliteConnection,
        name: &str,
    ) -> QueryResult<i64> {
        if let Some(&key) = self.event_types.get(name) {
            return Ok(key);
        }
        let key = match queries::event_type_key(conn, name)? {
            Some(key) => key,
            None => {
                let last = self
                    .last_event_type
                    .map_or_else(|| queries::last_event_type_key(conn), Ok)?;
                queries::insert_event_type(conn, last + 1, name)?;
                self.last_event_type = Some(last + 1);
                last + 1
            }
        };
        self.event_types.insert(name.into(), key);
        Ok(key)
    }

    /// The last version of an aggregate's history, zero for none.
    pub(crate) fn version(
        &mut self,
        conn: &mut SqliteConnection,
        aggregate: &AggregateRef,
    ) -> QueryResult<Version> {
        let index = self.history(conn, aggregate)?;
        Ok(self.histories[index].version)
    }

    /// The key of an aggregate that has a history.
    pub(crate) fn aggregate_key(
        &mut self,
        conn: &mut SqliteConnection,
        aggregate: &AggregateRef,
    ) -> QueryResult<Option<i64>> {
        let index = self.history(conn, aggregate)?;
        Ok(self.histories[index].key)
    }

    /// The key of the aggregate and the version of its next event, counted as appended.
    pub(crate) fn next_version(
        &mut self,
        conn: &mut SqliteConnection,
        aggregate: &AggregateRef,
    ) -> QueryResult<(i64, Version)> {
        let index = self.history(conn, aggregate)?;
        let history = &mut self.histories[index];
        let key = match history.key {
            Some(key) => key,
            None => {
                let last = self
                    .last_aggregate
                    .map_or_else(|| queries::last_aggregate_key(conn), Ok)?;
                self.last_aggregate = Some(last + 1);
                *history.key.insert(last + 1)
            }
        };
        history.version = history.version.next();
        let version = history.version;
        let was_written = !std::mem::replace(&mut history.is_unwritten, true);
        if was_written {
            self.unwritten.push(index);
        }
        Ok((key, version))
    }

    /// Writes the rows of the aggregates that have changed.
    pub(crate) fn write_heads(&mut self, conn: &mut SqliteConnection) -> QueryResult<()> {
        for index in self.unwritten.drain(..) {
            let history = &mut self.histories[index];
            let Some(key) = history.key else { continue };
            match history.has_row {
                true => queries::update_head(conn, key, history.version)?,
                false => queries::insert_aggregate(conn, key, &history.aggregate, history.version)?,
            };
            history.has_row = true;
            history.is_unwritten = false;
        }
        Ok(())
    }

    /// The index of an aggregate's history.
    fn history(
        &mut self,
        conn: &mut SqliteConnection,
        aggregate: &AggregateRef,
    ) -> QueryResult<usize> {
        if let Some(&index) = self.indexes.get(aggregate) {
            return Ok(index);
        }
        let found = queries::aggregate_head(conn, aggregate)?;
        let index = self.histories.len();
        self.histories.push(History {
            aggregate: aggregate.clone(),
            key: found.map(|(key, _)| key),
            version: Version::new(found.map_or(0, |(_, version)| unsigned(version))),
            has_row: found.is_some(),
            is_unwritten: false,
        });
        self.indexes.insert(aggregate.clone(), index);
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use diesel::{Connection, connection::SimpleConnection};
    use domain_events::{CorrelationId, EventEnvelope, EventMetadata, Recorded, Urgency};

    use super::*;
    use crate::{
        migrations,
        pending::Pending,
        rows::{EventRow, Keys},
    };

    /// A log of one event that was recorded at a time.
    fn log_of_one(at: Timestamp) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        migrations::run(&mut conn).unwrap();
        let aggregate = AggregateRef::new("order", "1");
        queries::insert_event_type(&mut conn, 1, "placed").unwrap();
        queries::insert_aggregate(&mut conn, 1, &aggregate, Version::FIRST).unwrap();
        let recorded = Recorded {
            position: Position::FIRST,
            version: Version::FIRST,
            at,
        };
        let id = EventId::new();
        let metadata = EventMetadata {
            correlation_id: CorrelationId::from(id),
            causation_id: None,
            entries: std::collections::BTreeMap::new(),
        };
        let payload = Box::from(&b"{}"[..]);
        let event = EventEnvelope::from_log(
            id,
            &"placed".into(),
            1,
            aggregate,
            Urgency::Normal,
            metadata,
            at,
            recorded,
            payload,
        );
        let keys = Keys {
            event_type: 1,
            aggregate: 1,
        };
        let row = EventRow::new(&event, id.as_bytes(), b"{}", None, keys, recorded);
        let mut pending = Pending::default();
        pending.push(&mut conn, &row).unwrap();
        pending.write(&mut conn).unwrap();
        conn
    }

    fn time(conn: &mut SqliteConnection, now: Timestamp) -> Timestamp {
        let (mut known, mut names) = (None, Names::default());
        let known = Known::refresh(&mut known, conn, &mut names);
        known.unwrap().time(now)
    }

    #[test]
    fn recorded_times_ascend_though_the_clock_goes_back() {
        let [now, ahead] = [7, 9].map(Timestamp::from_micros);
        assert_eq!(time(&mut log_of_one(ahead), now), ahead);
        assert_eq!(time(&mut log_of_one(now), ahead), ahead);
    }

    #[test]
    fn f7_a_damaged_time_is_not_handed_on() {
        let now = Timestamp::from_micros(7);
        let mut conn = log_of_one(Timestamp::from_micros(5));
        let damage = "UPDATE de_events SET recorded_at = recorded_at + (1 << 60)";
        conn.batch_execute(damage).unwrap();
        assert_eq!(time(&mut conn, now), now);
    }
}
