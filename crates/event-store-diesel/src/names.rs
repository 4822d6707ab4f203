//! Names behind the keys of rows, kept in memory: once committed, a name never changes.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use diesel::{QueryResult, SqliteConnection};
use domain_events::{AggregateRef, EventEnvelope, EventId};

use crate::{
    queries,
    rows::{FoundRow, FoundRows, Page},
};

/// How many aggregates are kept before all are forgotten; some 20 MiB.
const LIMIT: usize = 100_000;

type ByKey<T> = HashMap<i64, T, BuildHasherDefault<Spread>>;

/// The hash of a key. We have given the keys ourselves, in turn, so nobody can choose ones that
/// meet; a hash that is proof against that takes longer than all else that is done for a row.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|&byte| self.write_i64(i64::from(byte)));
    }

    fn write_i64(&mut self, key: i64) {
        // Of an odd factor: the table looks at both ends of a hash.
        let product = (self.0 ^ key.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Names that one connection has read.
#[derive(Default)]
pub(crate) struct Names {
    event_types: ByKey<Arc<str>>,
    aggregates: ByKey<AggregateRef>,
    keys: HashMap<AggregateRef, i64>,
}

impl Names {
    /// `rows` with their names.
    pub(crate) fn page(
        &mut self,
        conn: &mut SqliteConnection,
        rows: FoundRows,
    ) -> QueryResult<Page> {
        let (mut event_types, mut aggregates) = (Vec::new(), Vec::new());
        let mut before = (None, None);
        for (index, row) in rows.iter().enumerate() {
            let (event_type, aggregate) = (row.type_key(), row.aggregate_key());
            if before.0 != Some(event_type) {
                event_types.push((index, self.event_type(conn, event_type)?));
            }
            if before.1 != Some(aggregate) {
                aggregates.push((index, self.aggregate(conn, aggregate)?));
            }
            before = (Some(event_type), Some(aggregate));
        }
        Ok(Page {
            rows,
            event_types,
            aggregates,
        })
    }

    /// The event with this id, if it is in the log.
    pub(crate) fn event(
        &mut self,
        conn: &mut SqliteConnection,
        id: EventId,
    ) -> QueryResult<Option<EventEnvelope>> {
        let found = queries::event(conn, &id)?;
        self.first(conn, &found)
    }

    /// The event of the first row, if there is one.
    pub(crate) fn first(
        &mut self,
        conn: &mut SqliteConnection,
        found: &FoundRows,
    ) -> QueryResult<Option<EventEnvelope>> {
        let row = found.first();
        row.map(|row| self.envelope(conn, row)).transpose()
    }

    /// When the last event that is not damaged was recorded.
    pub(crate) fn last_recorded_at(
        &mut self,
        conn: &mut SqliteConnection,
    ) -> QueryResult<Option<i64>> {
        let mut before = i64::MAX;
        while let Some(row) = queries::event_before(conn, before)?.first() {
            let time = self.intact_time(conn, row)?;
            if time.is_some() {
                return Ok(time);
            }
            before = row.position();
        }
        Ok(None)
    }

    /// The event of `row`, marked where it is damaged.
    pub(crate) fn envelope(
        &mut self,
        conn: &mut SqliteConnection,
        row: FoundRow<'_>,
    ) -> QueryResult<EventEnvelope> {
        let (event_type, aggregate) = self.of_row(conn, row)?;
        Ok(row.envelope(event_type.as_ref(), aggregate))
    }

    /// When the event of `row` was recorded; `None` where it is damaged.
    pub(crate) fn intact_time(
        &mut self,
        conn: &mut SqliteConnection,
        row: FoundRow<'_>,
    ) -> QueryResult<Option<i64>> {
        let (event_type, aggregate) = self.of_row(conn, row)?;
        let names = event_type.as_deref().zip(aggregate.as_ref());
        Ok(names.and_then(|(event_type, aggregate)| row.intact_time(event_type, aggregate)))
    }

    /// The names behind the keys of `row`, where they lead somewhere.
    fn of_row(
        &mut self,
        conn: &mut SqliteConnection,
        row: FoundRow<'_>,
    ) -> QueryResult<(Option<Arc<str>>, Option<AggregateRef>)> {
        Ok((
            self.event_type(conn, row.type_key())?,
            self.aggregate(conn, row.aggregate_key())?,
        ))
    }

    /// The type with this key.
    pub(crate) fn event_type(
        &mut self,
        conn: &mut SqliteConnection,
        key: i64,
    ) -> QueryResult<Option<Arc<str>>> {
        if let Some(name) = self.event_types.get(&key) {
            return Ok(Some(Arc::clone(name)));
        }
        let found = queries::event_type(conn, key)?.map(Arc::<str>::from);
        if let Some(name) = &found {
            make_room(&mut self.event_types);
            self.event_types.insert(key, Arc::clone(name));
        }
        Ok(found)
    }

    /// The aggregate with this key.
    pub(crate) fn aggregate(
        &mut self,
        conn: &mut SqliteConnection,
        key: i64,
    ) -> QueryResult<Option<AggregateRef>> {
        if let Some(aggregate) = self.aggregates.get(&key) {
            return Ok(Some(aggregate.clone()));
        }
        let found = queries::aggregate(conn, key)?;
        let found = found.map(|(kind, id)| AggregateRef::new(&kind, &id));
        if let Some(aggregate) = &found {
            make_room(&mut self.aggregates);
            self.aggregates.insert(key, aggregate.clone());
        }
        Ok(found)
    }

    /// The key of an aggregate.
    pub(crate) fn key(
        &mut self,
        conn: &mut SqliteConnection,
        aggregate: &AggregateRef,
    ) -> QueryResult<Option<i64>> {
        if let Some(&key) = self.keys.get(aggregate) {
            return Ok(Some(key));
        }
        let found = queries::aggregate_head(conn, aggregate)?;
        if let Some((key, _)) = found {
            make_room(&mut self.keys);
            make_room(&mut self.aggregates);
            self.keys.insert(aggregate.clone(), key);
            self.aggregates.insert(key, aggregate.clone());
        }
        Ok(found.map(|(key, _)| key))
    }
}

fn make_room<K, V, S>(known: &mut HashMap<K, V, S>) {
    if known.len() >= LIMIT {
        known.clear();
    }
}
