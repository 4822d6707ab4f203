//! Names behind the keys of rows, kept in memory: once committed, a name never changes.

use std::{collections::HashMap, sync::Arc};

use diesel::{QueryResult, SqliteConnection};
use domain_events::{AggregateRef, EventEnvelope};

use crate::{queries, rows::FoundRow};

/// How many aggregates are kept before all are forgotten; some 20 MiB.
const LIMIT: usize = 100_000;

/// Names that one connection has read.
#[derive(Default)]
pub(crate) struct Names {
    event_types: HashMap<i64, Arc<str>>,
    aggregates: HashMap<i64, AggregateRef>,
    keys: HashMap<AggregateRef, i64>,
}

impl Names {
    /// The events of `rows`.
    pub(crate) fn envelopes(
        &mut self,
        conn: &mut SqliteConnection,
        rows: Vec<FoundRow>,
    ) -> QueryResult<Vec<EventEnvelope>> {
        rows.into_iter()
            .map(|row| self.envelope(conn, row))
            .collect()
    }

    /// The event of `row`.
    pub(crate) fn envelope(
        &mut self,
        conn: &mut SqliteConnection,
        row: FoundRow,
    ) -> QueryResult<EventEnvelope> {
        let event_type = match row.type_key() {
            Some(key) => self.event_type(conn, key)?,
            None => None,
        };
        let aggregate = match row.aggregate_key() {
            Some(key) => self.aggregate(conn, key)?,
            None => None,
        };
        Ok(row.into_envelope(event_type, aggregate))
    }

    /// The events of `rows`, all of one aggregate.
    pub(crate) fn envelopes_of(
        &mut self,
        conn: &mut SqliteConnection,
        rows: Vec<FoundRow>,
        aggregate: &AggregateRef,
    ) -> QueryResult<Vec<EventEnvelope>> {
        let envelope = |row: FoundRow| {
            let event_type = match row.type_key() {
                Some(key) => self.event_type(conn, key)?,
                None => None,
            };
            Ok(row.into_envelope(event_type, Some(aggregate.clone())))
        };
        rows.into_iter().map(envelope).collect()
    }

    fn event_type(
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
            self.keys.insert(aggregate.clone(), key);
        }
        Ok(found.map(|(key, _)| key))
    }
}

fn make_room<K, V>(known: &mut HashMap<K, V>) {
    if known.len() >= LIMIT {
        known.clear();
    }
}
