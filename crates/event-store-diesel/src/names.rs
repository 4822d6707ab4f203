//! Names behind the keys of rows, kept in memory: once committed, a name never changes.

use std::{collections::HashMap, sync::Arc};

use diesel::{QueryResult, SqliteConnection};
use domain_events::AggregateRef;

use crate::{
    queries,
    rows::{FoundRow, NamedRow, Page},
};

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
    /// `rows` with their names.
    pub(crate) fn page(
        &mut self,
        conn: &mut SqliteConnection,
        rows: Vec<FoundRow>,
    ) -> QueryResult<Page> {
        let (mut event_types, mut aggregates) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| &rows[before]);
            if before.is_none_or(|before| before.type_key() != row.type_key()) {
                event_types.push((index, self.event_type(conn, row.type_key())?));
            }
            if before.is_none_or(|before| before.aggregate_key() != row.aggregate_key()) {
                aggregates.push((index, self.aggregate(conn, row.aggregate_key())?));
            }
        }
        Ok(Page {
            rows,
            event_types,
            aggregates,
        })
    }

    /// `row` with its names.
    pub(crate) fn named(
        &mut self,
        conn: &mut SqliteConnection,
        row: FoundRow,
    ) -> QueryResult<NamedRow> {
        let (event_type, aggregate) = self.of_row(conn, &row)?;
        Ok(NamedRow {
            row,
            event_type,
            aggregate,
        })
    }

    /// When the event of `row` was recorded; `None` where it is damaged.
    pub(crate) fn intact_time(
        &mut self,
        conn: &mut SqliteConnection,
        row: &FoundRow,
    ) -> QueryResult<Option<i64>> {
        let (event_type, aggregate) = self.of_row(conn, row)?;
        let names = event_type.as_deref().zip(aggregate.as_ref());
        Ok(names.and_then(|(event_type, aggregate)| row.intact_time(event_type, aggregate)))
    }

    /// The names behind the keys of `row`, where they lead somewhere.
    fn of_row(
        &mut self,
        conn: &mut SqliteConnection,
        row: &FoundRow,
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

fn make_room<K, V>(known: &mut HashMap<K, V>) {
    if known.len() >= LIMIT {
        known.clear();
    }
}
