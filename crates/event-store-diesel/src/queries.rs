//! All statements, a function each. What runs often is built so that Diesel prepares it once.
//!
//! None has a `LIMIT` with a bound value, nor `first`, which is one: SQLite looks at the value when
//! it plans, and so prepares the statement again each time. Reading stops after enough rows.

use std::ops::RangeInclusive;

use diesel::{
    connection::{DefaultLoadingMode, LoadConnection, SimpleConnection},
    dsl::{count_star, max, min, sql},
    expression::{AppearsOnTable, Expression, SelectableExpression, ValidGrouping, is_aggregate},
    prelude::*,
    query_builder::{AsQuery, AstPass, Query, QueryFragment, QueryId},
    sql_types::{BigInt, Binary, Bool, Nullable, Text},
    sqlite::{Sqlite, SqliteConnection},
};
use domain_events::{AggregateRef, CorrelationId, DeadLetterQuery, EventId, Position, Version};

use crate::{
    pending::PendingRow,
    rows::{FoundRows, signed},
    schema::{
        de_aggregates, de_blocked, de_dead_letters, de_event_types, de_events, de_format, de_guard,
        de_processing, de_retention, de_runs, de_started, de_subscriptions, de_waiting,
        found_events, sqlite_master, sqlite_sequence,
    },
};

type Conn = SqliteConnection;

// The database

pub(crate) fn set_pragma(conn: &mut Conn, name: &str, value: &str) -> QueryResult<()> {
    conn.batch_execute(&format!("PRAGMA {name} = {value}"))
}

pub(crate) fn pragma_text(conn: &mut Conn, name: &str) -> QueryResult<String> {
    sql::<Text>(&format!("PRAGMA {name}")).get_result(conn)
}

pub(crate) fn pragma_number(conn: &mut Conn, name: &str) -> QueryResult<i64> {
    sql::<BigInt>(&format!("PRAGMA {name}")).get_result(conn)
}

/// A number that changes when another connection has committed.
pub(crate) fn data_version(conn: &mut Conn) -> QueryResult<i64> {
    DataVersion.get_result(conn)
}

/// Written out, because Diesel prepares what it is given as text again each time.
#[derive(Debug, Clone, Copy, QueryId)]
struct DataVersion;

impl QueryFragment<Sqlite> for DataVersion {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        pass.push_sql("PRAGMA data_version");
        Ok(())
    }
}

impl Query for DataVersion {
    type SqlType = BigInt;
}

impl RunQueryDsl<Conn> for DataVersion {}

/// Writes nothing, but makes the open transaction one that may write.
pub(crate) fn take_write_lock(conn: &mut Conn) -> QueryResult<()> {
    diesel::update(de_format::table.filter(false.into_sql::<Bool>()))
        .set(de_format::version.eq(de_format::version))
        .execute(conn)
        .map(drop)
}

/// Writes nothing, and fails where nothing can be written.
pub(crate) fn check_writable(conn: &mut Conn) -> QueryResult<()> {
    conn.batch_execute("UPDATE de_format SET version = version WHERE false")
}

pub(crate) fn sqlite_version(conn: &mut Conn) -> QueryResult<String> {
    sql::<Text>("SELECT sqlite_version()").get_result(conn)
}

/// Writes a copy of the database to a file that does not exist.
pub(crate) fn vacuum_into(conn: &mut Conn, uri: &str) -> QueryResult<()> {
    diesel::sql_query("VACUUM INTO ?")
        .bind::<Text, _>(uri)
        .execute(conn)
        .map(drop)
}

/// Names of tables and views, without SQLite's own.
pub(crate) fn object_names(conn: &mut Conn) -> QueryResult<Vec<String>> {
    sqlite_master::table
        .filter(sqlite_master::kind.eq_any(["table", "view"]))
        .filter(sqlite_master::name.not_like("sqlite\\_%").escape('\\'))
        .order(sqlite_master::name)
        .select(sqlite_master::name)
        .load(conn)
}

/// Our tables, indexes and views, each with its definition.
pub(crate) fn definitions(conn: &mut Conn) -> QueryResult<Vec<(String, String)>> {
    sqlite_master::table
        .filter(sqlite_master::name.like("de\\_%").escape('\\'))
        .filter(sqlite_master::definition.is_not_null())
        .order(sqlite_master::name)
        .select((
            sqlite_master::name,
            sqlite_master::definition.assume_not_null(),
        ))
        .load(conn)
}

/// The definition of the table, the index or the view with this name.
pub(crate) fn definition(conn: &mut Conn, name: &str) -> QueryResult<Option<String>> {
    sqlite_master::table
        .filter(sqlite_master::name.eq(name))
        .select(sqlite_master::definition.assume_not_null())
        .get_result(conn)
        .optional()
}

/// Names of a table's or view's columns; none where there is no such thing.
pub(crate) fn column_names(conn: &mut Conn, table: &str) -> QueryResult<Vec<String>> {
    #[derive(QueryableByName)]
    struct Column {
        #[diesel(sql_type = Text)]
        name: String,
    }
    diesel::sql_query("SELECT name FROM pragma_table_info(?) ORDER BY cid")
        .bind::<Text, _>(table)
        .load::<Column>(conn)
        .map(|columns| columns.into_iter().map(|column| column.name).collect())
}

pub(crate) fn application(conn: &mut Conn) -> QueryResult<Option<String>> {
    let names = de_format::table.select(de_format::application);
    names.get_result(conn).optional()
}

pub(crate) fn format(conn: &mut Conn) -> QueryResult<i64> {
    de_format::table.select(de_format::version).get_result(conn)
}

pub(crate) fn formats(conn: &mut Conn) -> QueryResult<Vec<i64>> {
    de_format::table.select(de_format::version).load(conn)
}

/// What SQLite says is wrong with the file, at most so many lines; none where nothing is.
pub(crate) fn integrity_faults(conn: &mut Conn, limit: usize) -> QueryResult<Vec<String>> {
    let lines = sql::<Text>(&format!("PRAGMA integrity_check({limit})"));
    let rows: Vec<String> = lines.load(conn)?;
    let lines = rows.iter().flat_map(|row| row.lines());
    let faults = lines.filter(|line| *line != "ok" && !line.starts_with("***"));
    Ok(faults.map(str::to_owned).collect())
}

/// How many bytes each of our tables takes with its indexes. Reads the whole database; nothing where
/// SQLite was built without the table that tells.
pub(crate) fn table_sizes(conn: &mut Conn) -> QueryResult<Vec<(String, i64)>> {
    #[derive(QueryableByName)]
    struct Size {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = BigInt)]
        bytes: i64,
    }
    let has_sizes = "SELECT count(*) FROM pragma_module_list WHERE name = 'dbstat'";
    if sql::<BigInt>(has_sizes).get_result::<i64>(conn)? == 0 {
        return Ok(Vec::new());
    }
    let sizes = diesel::sql_query(
        "SELECT m.tbl_name AS name, sum(s.pgsize) AS bytes FROM dbstat AS s \
         JOIN sqlite_master AS m ON m.name = s.name \
         WHERE s.aggregate = TRUE AND m.tbl_name LIKE 'de\\_%' ESCAPE '\\' GROUP BY m.tbl_name",
    );
    let sizes = sizes.load::<Size>(conn)?;
    Ok(sizes.into_iter().map(|it| (it.name, it.bytes)).collect())
}

/// Rows of ours that refer to one that is missing: their table, their number if they have one, and
/// the table they refer to.
pub(crate) fn orphans(
    conn: &mut Conn,
    limit: usize,
) -> QueryResult<Vec<(String, Option<i64>, String)>> {
    #[derive(QueryableByName)]
    struct Orphan {
        #[diesel(sql_type = Text)]
        child: String,
        #[diesel(sql_type = Nullable<BigInt>)]
        number: Option<i64>,
        #[diesel(sql_type = Text)]
        parent: String,
    }
    let orphans = diesel::sql_query(
        "SELECT \"table\" AS child, rowid AS number, parent FROM pragma_foreign_key_check \
         WHERE \"table\" LIKE 'de\\_%' ESCAPE '\\' ORDER BY child",
    );
    let found = orphans.load_iter::<Orphan, DefaultLoadingMode>(conn)?;
    let named = |it: Orphan| (it.child, it.number, it.parent);
    found.take(limit).map(|row| row.map(named)).collect()
}

// The log: writing

/// Inserts the first `ROWS` of `rows`, whose payloads are in `payloads`; returns how many these are.
pub(crate) fn insert_events<const ROWS: usize>(
    conn: &mut Conn,
    rows: &[PendingRow],
    payloads: &[u8],
) -> QueryResult<usize> {
    let rows = &rows[..ROWS];
    InsertEvents::<ROWS> { rows, payloads }.execute(conn)
}

/// Written out, because Diesel walks an insert of its own several times for each event, column by
/// column, and prepares one of several rows again each time.
#[derive(Clone, Copy)]
struct InsertEvents<'a, const ROWS: usize> {
    rows: &'a [PendingRow],
    payloads: &'a [u8],
}

impl<const ROWS: usize> QueryId for InsertEvents<'_, ROWS> {
    type QueryId = InsertEvents<'static, ROWS>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const ROWS: usize> QueryFragment<Sqlite> for InsertEvents<'_, ROWS> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        pass.push_sql(
            "INSERT INTO de_events (position, type_key, aggregate_key, version, schema_version, \
             urgency, occurred_at, recorded_at, checksum, event_id, correlation_id, causation_id, \
             payload, metadata) VALUES ",
        );
        for (index, row) in self.rows.iter().enumerate() {
            pass.push_sql(if index == 0 { "(" } else { ", (" });
            for number in &row.numbers {
                pass.push_bind_param::<BigInt, i64>(number)?;
                pass.push_sql(", ");
            }
            pass.push_bind_param::<Binary, [u8]>(&row.event_id)?;
            pass.push_sql(", ");
            pass.push_bind_param::<Binary, [u8]>(&row.correlation_id)?;
            pass.push_sql(", ");
            pass.push_bind_param::<Nullable<Binary>, _>(&row.causation_id)?;
            pass.push_sql(", ");
            pass.push_bind_param::<Binary, [u8]>(&self.payloads[row.payload.clone()])?;
            pass.push_sql(", ");
            match &row.metadata {
                Some(metadata) => pass.push_bind_param::<Text, str>(metadata)?,
                None => pass.push_bind_param::<Nullable<Text>, Option<&str>>(&None)?,
            }
            pass.push_sql(")");
        }
        Ok(())
    }
}

impl<const ROWS: usize> RunQueryDsl<Conn> for InsertEvents<'_, ROWS> {}

pub(crate) fn insert_event_type(conn: &mut Conn, key: i64, name: &str) -> QueryResult<usize> {
    use de_event_types::{event_type, type_key};
    diesel::insert_into(de_event_types::table)
        .values((type_key.eq(key), event_type.eq(name)))
        .execute(conn)
}

pub(crate) fn insert_aggregate(
    conn: &mut Conn,
    key: i64,
    aggregate: &AggregateRef,
    head: Version,
) -> QueryResult<usize> {
    use de_aggregates::{aggregate_id, aggregate_key, aggregate_type, head_version};
    diesel::insert_into(de_aggregates::table)
        .values((
            aggregate_key.eq(key),
            aggregate_type.eq(aggregate.aggregate_type()),
            aggregate_id.eq(aggregate.id()),
            head_version.eq(signed(head.get())),
        ))
        .execute(conn)
}

pub(crate) fn update_head(conn: &mut Conn, key: i64, head: Version) -> QueryResult<usize> {
    let head = signed(head.get());
    UpdateHead { key, head }.execute(conn)
}

/// Written out, because Diesel prepares its own updates again each time.
#[derive(Debug, QueryId)]
struct UpdateHead {
    key: i64,
    head: i64,
}

impl QueryFragment<Sqlite> for UpdateHead {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        pass.push_sql("UPDATE de_aggregates SET head_version = ");
        pass.push_bind_param::<BigInt, _>(&self.head)?;
        pass.push_sql(" WHERE aggregate_key = ");
        pass.push_bind_param::<BigInt, _>(&self.key)
    }
}

impl RunQueryDsl<Conn> for UpdateHead {}

// The log: names

pub(crate) fn event_type_key(conn: &mut Conn, name: &str) -> QueryResult<Option<i64>> {
    de_event_types::table
        .filter(de_event_types::event_type.eq(name))
        .select(de_event_types::type_key)
        .get_result(conn)
        .optional()
}

pub(crate) fn event_type(conn: &mut Conn, key: i64) -> QueryResult<Option<String>> {
    de_event_types::table
        .find(key)
        .select(de_event_types::event_type)
        .get_result(conn)
        .optional()
}

/// Keys and names of the event types behind a key.
pub(crate) fn event_types_after(
    conn: &mut Conn,
    key: i64,
    limit: usize,
) -> QueryResult<Vec<(i64, String)>> {
    let rows = de_event_types::table
        .filter(de_event_types::type_key.gt(key))
        .order(de_event_types::type_key)
        .select((de_event_types::type_key, de_event_types::event_type))
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

pub(crate) fn last_event_type_key(conn: &mut Conn) -> QueryResult<i64> {
    let key = de_event_types::table.select(max(de_event_types::type_key));
    key.get_result::<Option<i64>>(conn)
        .map(Option::unwrap_or_default)
}

/// Key and head version of an aggregate.
pub(crate) fn aggregate_head(
    conn: &mut Conn,
    aggregate: &AggregateRef,
) -> QueryResult<Option<(i64, i64)>> {
    de_aggregates::table
        .filter(de_aggregates::aggregate_type.eq(aggregate.aggregate_type()))
        .filter(de_aggregates::aggregate_id.eq(aggregate.id()))
        .select((de_aggregates::aggregate_key, de_aggregates::head_version))
        .get_result(conn)
        .optional()
}

/// Type and id of the aggregate with this key.
pub(crate) fn aggregate(conn: &mut Conn, key: i64) -> QueryResult<Option<(String, String)>> {
    de_aggregates::table
        .find(key)
        .select((de_aggregates::aggregate_type, de_aggregates::aggregate_id))
        .get_result(conn)
        .optional()
}

pub(crate) fn last_aggregate_key(conn: &mut Conn) -> QueryResult<i64> {
    let key = de_aggregates::table.select(max(de_aggregates::aggregate_key));
    key.get_result::<Option<i64>>(conn)
        .map(Option::unwrap_or_default)
}

// The log: reading

/// The greatest position ever given, also where the log was pruned since.
pub(crate) fn head(conn: &mut Conn) -> QueryResult<i64> {
    sqlite_sequence::table
        .find("de_events")
        .select(sqlite_sequence::seq)
        .get_result(conn)
        .optional()
        .map(Option::unwrap_or_default)
}

/// When the last event was recorded, as its row says.
pub(crate) fn last_recorded_at(conn: &mut Conn) -> QueryResult<Option<i64>> {
    de_events::table
        .order(de_events::position.desc())
        .select(de_events::recorded_at)
        .get_result(conn)
        .optional()
}

pub(crate) fn greatest_event_id(conn: &mut Conn) -> QueryResult<Option<Vec<u8>>> {
    de_events::table
        .order(de_events::event_id.desc())
        .select(de_events::event_id)
        .get_result(conn)
        .optional()
}

pub(crate) fn event(conn: &mut Conn, id: &EventId) -> QueryResult<FoundRows> {
    let event = found_events::table
        .filter(found_events::event_id.eq(&id.as_bytes()[..]))
        .select(found_events::all_columns);
    found(conn, event, 1)
}

pub(crate) fn event_at(conn: &mut Conn, position: i64) -> QueryResult<FoundRows> {
    let event = found_events::table
        .find(position)
        .select(found_events::all_columns);
    found(conn, event, 1)
}

/// The first event at or after a position.
pub(crate) fn event_from(conn: &mut Conn, position: i64) -> QueryResult<FoundRows> {
    let event = found_events::table
        .filter(found_events::position.ge(position))
        .order(found_events::position)
        .select(found_events::all_columns);
    found(conn, event, 1)
}

/// The last event before a position.
pub(crate) fn event_before(conn: &mut Conn, position: i64) -> QueryResult<FoundRows> {
    let event = found_events::table
        .filter(found_events::position.lt(position))
        .order(found_events::position.desc())
        .select(found_events::all_columns);
    found(conn, event, 1)
}

/// Events after a position, up to another one.
pub(crate) fn events_between(
    conn: &mut Conn,
    after: i64,
    last: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let events = found_events::table
        .filter(found_events::position.gt(after))
        .filter(found_events::position.le(last))
        .filter(found_events::position.gt(PrunedThrough))
        .order(found_events::position)
        .select(found_events::all_columns);
    found(conn, events, limit)
}

/// Events after a position: so many, or as many as it takes for them to have so many bytes.
pub(crate) fn events_after(
    conn: &mut Conn,
    after: i64,
    limit: usize,
    bytes: usize,
) -> QueryResult<FoundRows> {
    let events = found_events::table
        .filter(found_events::position.gt(after))
        .order(found_events::position)
        .select(found_events::all_columns);
    let mut rows = FoundRows::default();
    for row in conn.load(events.as_query())?.take(limit) {
        rows.push(&row?);
        if rows.bytes() > bytes {
            break;
        }
    }
    Ok(rows)
}

/// The first `limit` of the events that a query means.
fn found<'query, Q>(conn: &mut Conn, query: Q, limit: usize) -> QueryResult<FoundRows>
where
    Q: AsQuery<SqlType = found_events::SqlType>,
    Q::Query: QueryFragment<Sqlite> + QueryId + 'query,
{
    let mut rows = FoundRows::default();
    for row in conn.load(query.as_query())?.take(limit) {
        rows.push(&row?);
    }
    Ok(rows)
}

pub(crate) fn events_of_aggregate(
    conn: &mut Conn,
    key: i64,
    versions: &RangeInclusive<i64>,
    after: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let events = found_events::table
        .filter(found_events::aggregate_key.eq(key))
        .filter(found_events::version.ge(versions.start()))
        .filter(found_events::version.le(versions.end()))
        .filter(found_events::position.gt(after))
        .filter(found_events::position.gt(PrunedThrough))
        .order(found_events::version)
        .select(found_events::all_columns);
    found(conn, events, limit)
}

/// The last version of the aggregate with this key, zero for none.
pub(crate) fn head_version(conn: &mut Conn, key: i64) -> QueryResult<i64> {
    de_aggregates::table
        .find(key)
        .select(de_aggregates::head_version)
        .get_result(conn)
        .optional()
        .map(Option::unwrap_or_default)
}

pub(crate) fn has_version(conn: &mut Conn, key: i64, version: i64) -> QueryResult<bool> {
    let found = found_events::table
        .filter(found_events::aggregate_key.eq(key))
        .filter(found_events::version.eq(version))
        .select(found_events::position);
    let found = found.get_result::<i64>(conn).optional();
    found.map(|position| position.is_some())
}

/// An event as the index of histories has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VersionRow {
    pub(crate) aggregate: i64,
    pub(crate) version: i64,
    pub(crate) position: i64,
}

/// Versions behind one of an aggregate, of that aggregate and of those with greater keys.
pub(crate) fn versions_after(
    conn: &mut Conn,
    (key, last): (i64, i64),
    limit: usize,
) -> QueryResult<Vec<VersionRow>> {
    use found_events::{aggregate_key, position, version};
    let columns = (
        aggregate_key.assume_not_null(),
        version.assume_not_null(),
        position,
    );
    let named = |row: QueryResult<(i64, i64, i64)>| {
        row.map(|(aggregate, number, at)| VersionRow {
            aggregate,
            version: number,
            position: at,
        })
    };
    let same = found_events::table
        .filter(aggregate_key.eq(key).and(version.gt(last)))
        .order(version)
        .select(columns)
        .load_iter::<(i64, i64, i64), DefaultLoadingMode>(conn)?;
    let mut page: Vec<_> = same.take(limit).map(named).collect::<QueryResult<_>>()?;
    let others = found_events::table
        .filter(aggregate_key.gt(key).and(version.is_not_null()))
        .order((aggregate_key, version))
        .select(columns)
        .load_iter::<(i64, i64, i64), DefaultLoadingMode>(conn)?;
    for row in others.take(limit - page.len()).map(named) {
        page.push(row?);
    }
    Ok(page)
}

/// The position of the last version of an aggregate below this one.
pub(crate) fn position_below(conn: &mut Conn, key: i64, version: i64) -> QueryResult<Option<i64>> {
    found_events::table
        .filter(found_events::aggregate_key.eq(key))
        .filter(found_events::version.lt(version))
        .order(found_events::version.desc())
        .select(found_events::position)
        .get_result(conn)
        .optional()
}

/// The last version of an aggregate that is in the log, and its position.
pub(crate) fn last_version(conn: &mut Conn, key: i64) -> QueryResult<Option<(i64, i64)>> {
    found_events::table
        .filter(found_events::aggregate_key.eq(key))
        .filter(found_events::version.is_not_null())
        .order(found_events::version.desc())
        .select((
            found_events::version.assume_not_null(),
            found_events::position,
        ))
        .get_result(conn)
        .optional()
}

/// Keys and head versions of the aggregates behind a key.
pub(crate) fn aggregates_after(
    conn: &mut Conn,
    key: i64,
    limit: usize,
) -> QueryResult<Vec<(i64, i64)>> {
    let rows = de_aggregates::table
        .filter(de_aggregates::aggregate_key.gt(key))
        .order(de_aggregates::aggregate_key)
        .select((de_aggregates::aggregate_key, de_aggregates::head_version))
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

/// Key of the aggregate and version of the event at a position; zero, which is none, where the row
/// has lost them.
pub(crate) fn version_at(conn: &mut Conn, position: i64) -> QueryResult<Option<(i64, i64)>> {
    let found = found_events::table
        .find(position)
        .select((found_events::aggregate_key, found_events::version))
        .get_result::<(Option<i64>, Option<i64>)>(conn)
        .optional()?;
    Ok(found.map(|(key, version)| (key.unwrap_or_default(), version.unwrap_or_default())))
}

/// The key of the aggregate of the event at a position.
pub(crate) fn aggregate_at(conn: &mut Conn, position: i64) -> QueryResult<Option<i64>> {
    version_at(conn, position).map(|found| found.map(|(key, _)| key))
}

/// The position of the event with this id, and the key of its aggregate.
pub(crate) fn place_of(conn: &mut Conn, id: &[u8]) -> QueryResult<Option<(i64, i64)>> {
    let found = found_events::table
        .filter(found_events::event_id.eq(id))
        .select((found_events::position, found_events::aggregate_key))
        .get_result::<(i64, Option<i64>)>(conn)
        .optional()?;
    Ok(found.map(|(position, key)| (position, key.unwrap_or_default())))
}

/// The last positions, within a stretch of the log, of each type in each schema version: key,
/// schema version, position.
pub(crate) fn last_of_each_schema(
    conn: &mut Conn,
    after: i64,
    last: i64,
) -> QueryResult<Vec<(i64, i64, i64)>> {
    use found_events::{position, schema_version, type_key};
    let found = found_events::table
        .filter(position.gt(after).and(position.le(last)))
        .group_by((type_key, schema_version))
        .select((type_key, schema_version, max(position)))
        .load::<(Option<i64>, Option<i64>, Option<i64>)>(conn)?;
    let known = |(key, schema, at): (Option<i64>, Option<i64>, Option<i64>)| {
        let (key, schema) = (key.unwrap_or_default(), schema.unwrap_or_default());
        (key, schema, at.unwrap_or_default())
    };
    Ok(found.into_iter().map(known).collect())
}

/// Events of a type after a position, up to another one.
pub(crate) fn events_of_type(
    conn: &mut Conn,
    key: i64,
    after: i64,
    last: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let events = found_events::table
        .filter(found_events::type_key.eq(key))
        .filter(found_events::position.gt(after))
        .filter(found_events::position.le(last))
        .filter(found_events::position.gt(PrunedThrough))
        .order(found_events::position)
        .select(found_events::all_columns);
    found(conn, events, limit)
}

/// The event that began a chain, if it is after a position.
pub(crate) fn beginning(
    conn: &mut Conn,
    chain: CorrelationId,
    after: i64,
) -> QueryResult<FoundRows> {
    let id = &chain.as_bytes()[..];
    let event = found_events::table
        .filter(found_events::event_id.eq(id))
        .filter(found_events::correlation_id.eq(id))
        .filter(found_events::position.gt(after))
        .filter(found_events::position.gt(PrunedThrough))
        .select(found_events::all_columns);
    found(conn, event, 1)
}

/// The events of a chain without the one that began it, which is not in the index.
pub(crate) fn events_of_chain(
    conn: &mut Conn,
    chain: CorrelationId,
    after: i64,
    limit: usize,
) -> QueryResult<FoundRows> {
    let id = &chain.as_bytes()[..];
    let events = found_events::table
        .filter(found_events::correlation_id.eq(id))
        .filter(found_events::correlation_id.ne(found_events::event_id))
        .filter(found_events::position.gt(after))
        .filter(found_events::position.gt(PrunedThrough))
        .order(found_events::position)
        .select(found_events::all_columns);
    found(conn, events, limit)
}

// The log: counting

/// A number of events, and the positions of the first and the last.
pub(crate) type Span = (i64, Option<i64>, Option<i64>);

/// What counts the rows of a query.
macro_rules! span {
    ($conn:expr, $($condition:expr),+ $(,)?) => {
        found_events::table
            $(.filter($condition))+
            .select((count_star(), min(found_events::position), max(found_events::position)))
            .get_result::<Span>($conn)
    };
}

pub(crate) fn span_between(conn: &mut Conn, range: &RangeInclusive<i64>) -> QueryResult<Span> {
    use found_events::position;
    span!(conn, position.ge(range.start()), position.le(range.end()))
}

pub(crate) fn span_of_aggregate(
    conn: &mut Conn,
    key: i64,
    versions: &RangeInclusive<i64>,
    after: i64,
) -> QueryResult<Span> {
    use found_events::{aggregate_key, position, version};
    let (first, last) = (versions.start(), versions.end());
    span!(
        conn,
        aggregate_key.eq(key),
        version.ge(first),
        version.le(last),
        position.gt(after),
    )
}

pub(crate) fn span_of_type(conn: &mut Conn, key: i64, after: i64) -> QueryResult<Span> {
    use found_events::{position, type_key};
    span!(conn, type_key.eq(key), position.gt(after))
}

/// The events of a chain without the one that began it.
pub(crate) fn span_of_chain(
    conn: &mut Conn,
    chain: CorrelationId,
    after: i64,
) -> QueryResult<Span> {
    use found_events::{correlation_id, event_id, position};
    let id = &chain.as_bytes()[..];
    span!(
        conn,
        correlation_id.eq(id),
        correlation_id.ne(event_id),
        position.gt(after),
    )
}

/// How many events after a position each type has, by its key.
pub(crate) fn events_by_type(conn: &mut Conn, after: i64) -> QueryResult<Vec<(Option<i64>, i64)>> {
    found_events::table
        .filter(found_events::position.gt(after))
        .group_by(found_events::type_key)
        .select((found_events::type_key, count_star()))
        .load(conn)
}

pub(crate) fn count_aggregates(conn: &mut Conn) -> QueryResult<i64> {
    de_aggregates::table.select(count_star()).get_result(conn)
}

// The log: pruning

/// The position up to which the log was pruned, within a statement that reads behind it: so both are of
/// one moment. Written out, because Diesel prepares what it is given as text again each time.
#[derive(Debug, Clone, Copy, QueryId)]
struct PrunedThrough;

impl<G> ValidGrouping<G> for PrunedThrough {
    type IsAggregate = is_aggregate::Never;
}

impl Expression for PrunedThrough {
    type SqlType = BigInt;
}

impl QueryFragment<Sqlite> for PrunedThrough {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        pass.push_sql("(SELECT pruned_through FROM de_retention)");
        Ok(())
    }
}

impl<T> AppearsOnTable<T> for PrunedThrough {}

impl<T> SelectableExpression<T> for PrunedThrough {}

/// The position up to which the log was pruned, zero where it never was.
pub(crate) fn pruned_through(conn: &mut Conn) -> QueryResult<i64> {
    let position = de_retention::table.select(de_retention::pruned_through);
    position.get_result(conn)
}

/// The positions of all rows, of which there should be one.
pub(crate) fn all_pruned_through(conn: &mut Conn) -> QueryResult<Vec<i64>> {
    let positions = de_retention::table.select(de_retention::pruned_through);
    positions.load(conn)
}

pub(crate) fn update_pruned_through(conn: &mut Conn, position: i64) -> QueryResult<usize> {
    diesel::update(de_retention::table)
        .set(de_retention::pruned_through.eq(position))
        .execute(conn)
}

/// The position of the last of so many events after a position, up to another one; `None` where there
/// are fewer.
pub(crate) fn last_of_stretch(
    conn: &mut Conn,
    after: i64,
    last: i64,
    events: usize,
) -> QueryResult<Option<i64>> {
    let mut positions = de_events::table
        .filter(de_events::position.gt(after))
        .filter(de_events::position.le(last))
        .order(de_events::position)
        .select(de_events::position)
        .load_iter::<i64, DefaultLoadingMode>(conn)?;
    positions.nth(events - 1).transpose()
}

/// Removes the events after a position, up to another one, but those of dead letters that are open or
/// replayed, and of what was started and may not have ended.
pub(crate) fn prune_events(conn: &mut Conn, after: i64, last: i64) -> QueryResult<usize> {
    use de_events::position;
    let letters = de_dead_letters::table
        .filter(de_dead_letters::settled_at.is_null())
        .filter(de_dead_letters::position.gt(after))
        .filter(de_dead_letters::position.le(last))
        .select(de_dead_letters::position);
    let replays = de_waiting::table
        .filter(de_waiting::position.gt(after))
        .filter(de_waiting::position.le(last))
        .select(de_waiting::position);
    let started = de_started::table
        .filter(de_started::position.gt(after))
        .filter(de_started::position.le(last))
        .select(de_started::position);
    let events = de_events::table
        .filter(position.gt(after))
        .filter(position.le(last))
        .filter(position.ne_all(letters))
        .filter(position.ne_all(replays))
        .filter(position.ne_all(started));
    diesel::delete(events).execute(conn)
}

/// Removes the dead letters after a position, up to another one, whose events are gone.
pub(crate) fn prune_settled_letters(conn: &mut Conn, after: i64, last: i64) -> QueryResult<usize> {
    use de_dead_letters::position;
    let events = de_events::table
        .filter(de_events::position.gt(after))
        .filter(de_events::position.le(last))
        .select(de_events::position);
    let letters = de_dead_letters::table
        .filter(position.gt(after))
        .filter(position.le(last))
        .filter(position.ne_all(events));
    diesel::delete(letters).execute(conn)
}

/// The first position at which something waits or is blocked; replays do not count.
pub(crate) fn first_of_exceptions(conn: &mut Conn) -> QueryResult<Option<i64>> {
    let waiting = de_waiting::table
        .filter(de_waiting::is_replay.eq(false))
        .select(min(de_waiting::position))
        .get_result::<Option<i64>>(conn)?;
    let blocked = de_blocked::table
        .select(min(de_blocked::from_position))
        .get_result::<Option<i64>>(conn)?;
    Ok(waiting.into_iter().chain(blocked).min())
}

// Subscriptions

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = de_subscriptions)]
pub(crate) struct SubscriptionRow {
    pub(crate) subscription_id: i64,
    pub(crate) through: i64,
    pub(crate) unfinished: Vec<u8>,
    pub(crate) paused: Option<String>,
    pub(crate) version: Option<i64>,
}

pub(crate) fn subscription(conn: &mut Conn, name: &str) -> QueryResult<Option<SubscriptionRow>> {
    de_subscriptions::table
        .filter(de_subscriptions::name.eq(name))
        .select(SubscriptionRow::as_select())
        .get_result(conn)
        .optional()
}

/// Every subscription with its name, in the order in which they became known.
pub(crate) fn named_subscriptions(conn: &mut Conn) -> QueryResult<Vec<(SubscriptionRow, String)>> {
    de_subscriptions::table
        .order(de_subscriptions::subscription_id)
        .select((SubscriptionRow::as_select(), de_subscriptions::name))
        .load(conn)
}

pub(crate) fn rename_subscription(conn: &mut Conn, id: i64, name: &str) -> QueryResult<usize> {
    diesel::update(de_subscriptions::table.find(id))
        .set(de_subscriptions::name.eq(name))
        .execute(conn)
}

pub(crate) fn delete_subscription(conn: &mut Conn, id: i64) -> QueryResult<usize> {
    diesel::delete(de_subscriptions::table.find(id)).execute(conn)
}

/// Deletes whatever waits, is blocked or was started of a subscription.
pub(crate) fn delete_exceptions(conn: &mut Conn, id: i64) -> QueryResult<usize> {
    let waiting = de_waiting::table.filter(de_waiting::subscription_id.eq(id));
    let blocked = de_blocked::table.filter(de_blocked::subscription_id.eq(id));
    let started = de_started::table.filter(de_started::subscription_id.eq(id));
    Ok(diesel::delete(waiting).execute(conn)?
        + diesel::delete(blocked).execute(conn)?
        + diesel::delete(started).execute(conn)?)
}

/// Deletes the dead letters of a subscription after a position, those settled too.
pub(crate) fn delete_dead_letters(conn: &mut Conn, id: i64, after: i64) -> QueryResult<usize> {
    let of = de_dead_letters::table.filter(de_dead_letters::subscription_id.eq(id));
    diesel::delete(of.filter(de_dead_letters::position.gt(after))).execute(conn)
}

/// Sets a subscription to a place, and forgets what was behind that.
pub(crate) fn reset_subscription(conn: &mut Conn, id: i64, through: Position) -> QueryResult<()> {
    delete_exceptions(conn, id)?;
    delete_dead_letters(conn, id, signed(through.get()))?;
    update_progress(conn, id, through, &[]).map(drop)
}

pub(crate) fn count_dead_letters(conn: &mut Conn, id: i64) -> QueryResult<i64> {
    de_dead_letters::table
        .filter(de_dead_letters::subscription_id.eq(id))
        .filter(de_dead_letters::settled_at.is_null())
        .count()
        .get_result(conn)
}

pub(crate) fn subscriptions(conn: &mut Conn) -> QueryResult<Vec<SubscriptionRow>> {
    de_subscriptions::table
        .select(SubscriptionRow::as_select())
        .load(conn)
}

/// The first subscription with this number or a greater one.
pub(crate) fn subscription_from(conn: &mut Conn, id: i64) -> QueryResult<Option<SubscriptionRow>> {
    de_subscriptions::table
        .filter(de_subscriptions::subscription_id.ge(id))
        .order(de_subscriptions::subscription_id)
        .select(SubscriptionRow::as_select())
        .get_result(conn)
        .optional()
}

/// How far a subscription has come, and what is unfinished of that.
pub(crate) fn progress(conn: &mut Conn, id: i64) -> QueryResult<Option<(i64, Vec<u8>)>> {
    de_subscriptions::table
        .find(id)
        .select((de_subscriptions::through, de_subscriptions::unfinished))
        .get_result(conn)
        .optional()
}

pub(crate) fn insert_subscription(
    conn: &mut Conn,
    name: &str,
    through: Position,
) -> QueryResult<i64> {
    diesel::insert_into(de_subscriptions::table)
        .values((
            de_subscriptions::name.eq(name),
            de_subscriptions::through.eq(signed(through.get())),
            de_subscriptions::unfinished.eq(&[][..]),
        ))
        .returning(de_subscriptions::subscription_id)
        .get_result(conn)
}

/// Keeps the open transaction from being committed.
pub(crate) fn put_guard(conn: &mut Conn) -> QueryResult<usize> {
    diesel::insert_into(de_guard::table)
        .values(de_guard::nobody.eq(0))
        .execute(conn)
}

/// Lets the open transaction be committed again. Returns whether it is still the one that was kept from it.
pub(crate) fn take_guard(conn: &mut Conn) -> QueryResult<bool> {
    let taken = diesel::delete(de_guard::table).execute(conn);
    taken.map(|rows| rows == 1)
}

/// Notes the version of a projection's tables; `None` for what is no projection.
pub(crate) fn update_version(conn: &mut Conn, id: i64, version: Option<u32>) -> QueryResult<usize> {
    diesel::update(de_subscriptions::table.find(id))
        .set(de_subscriptions::version.eq(version.map(i64::from)))
        .execute(conn)
}

pub(crate) fn has_subscription(conn: &mut Conn, id: i64) -> QueryResult<bool> {
    let found = de_subscriptions::table
        .find(id)
        .select(de_subscriptions::subscription_id);
    found
        .get_result::<i64>(conn)
        .optional()
        .map(|id| id.is_some())
}

pub(crate) fn update_progress(
    conn: &mut Conn,
    id: i64,
    through: Position,
    unfinished: &[u8],
) -> QueryResult<usize> {
    diesel::update(de_subscriptions::table.find(id))
        .set((
            de_subscriptions::through.eq(signed(through.get())),
            de_subscriptions::unfinished.eq(unfinished),
        ))
        .execute(conn)
}

pub(crate) fn update_paused(conn: &mut Conn, id: i64, why: Option<&str>) -> QueryResult<usize> {
    diesel::update(de_subscriptions::table.find(id))
        .set(de_subscriptions::paused.eq(why))
        .execute(conn)
}

// Deliveries that deviate

#[derive(Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = de_waiting)]
pub(crate) struct WaitingRow {
    pub(crate) subscription_id: i64,
    pub(crate) position: i64,
    pub(crate) aggregate_key: i64,
    pub(crate) attempts: i64,
    pub(crate) first_attempt_at: i64,
    pub(crate) due_at: i64,
    pub(crate) last_error: String,
    pub(crate) is_replay: bool,
}

pub(crate) fn put_waiting(conn: &mut Conn, row: &WaitingRow) -> QueryResult<usize> {
    diesel::replace_into(de_waiting::table)
        .values(row)
        .execute(conn)
}

pub(crate) fn waiting(conn: &mut Conn, subscription: i64) -> QueryResult<Vec<WaitingRow>> {
    de_waiting::table
        .filter(de_waiting::subscription_id.eq(subscription))
        .order(de_waiting::position)
        .select(WaitingRow::as_select())
        .load(conn)
}

/// Deliveries that wait, behind the one of a subscription at a position.
pub(crate) fn waiting_after(
    conn: &mut Conn,
    (subscription, at): (i64, i64),
    limit: usize,
) -> QueryResult<Vec<WaitingRow>> {
    use de_waiting::{position, subscription_id};
    let same = subscription_id.eq(subscription).and(position.gt(at));
    let rows = de_waiting::table
        .filter(subscription_id.gt(subscription).or(same))
        .order((subscription_id, position))
        .select(WaitingRow::as_select())
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

/// Whether a delivery that waits is a replay; `None` where it does not wait.
pub(crate) fn waits(conn: &mut Conn, subscription: i64, at: i64) -> QueryResult<Option<bool>> {
    de_waiting::table
        .find((subscription, at))
        .select(de_waiting::is_replay)
        .get_result(conn)
        .optional()
}

/// Positions that wait for an attempt, of one subscription or of any.
pub(crate) fn waiting_positions(conn: &mut Conn, of: Option<i64>) -> QueryResult<Vec<i64>> {
    let mut waiting = de_waiting::table.select(de_waiting::position).into_boxed();
    if let Some(id) = of {
        waiting = waiting.filter(de_waiting::subscription_id.eq(id));
    }
    waiting.load(conn)
}

pub(crate) fn delete_waiting(conn: &mut Conn, subscription: i64, at: i64) -> QueryResult<usize> {
    diesel::delete(de_waiting::table.find((subscription, at))).execute(conn)
}

#[derive(Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = de_blocked)]
#[diesel(treat_none_as_default_value = false)]
pub(crate) struct BlockedRow {
    pub(crate) subscription_id: i64,
    pub(crate) aggregate_key: i64,
    pub(crate) from_position: i64,
    pub(crate) from_version: i64,
    pub(crate) parked_behind: Option<Vec<u8>>,
}

pub(crate) fn put_blocked(conn: &mut Conn, row: &BlockedRow) -> QueryResult<usize> {
    diesel::replace_into(de_blocked::table)
        .values(row)
        .execute(conn)
}

pub(crate) fn blocked(conn: &mut Conn, subscription: i64) -> QueryResult<Vec<BlockedRow>> {
    de_blocked::table
        .filter(de_blocked::subscription_id.eq(subscription))
        .order(de_blocked::from_position)
        .select(BlockedRow::as_select())
        .load(conn)
}

/// Blocked aggregates, behind one of a subscription.
pub(crate) fn blocked_after(
    conn: &mut Conn,
    (subscription, aggregate): (i64, i64),
    limit: usize,
) -> QueryResult<Vec<BlockedRow>> {
    use de_blocked::{aggregate_key, subscription_id};
    let same = subscription_id
        .eq(subscription)
        .and(aggregate_key.gt(aggregate));
    let rows = de_blocked::table
        .filter(subscription_id.gt(subscription).or(same))
        .order((subscription_id, aggregate_key))
        .select(BlockedRow::as_select())
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

/// Whether any aggregate is blocked for a subscription.
pub(crate) fn has_blocked(conn: &mut Conn, subscription: i64) -> QueryResult<bool> {
    let found = de_blocked::table
        .filter(de_blocked::subscription_id.eq(subscription))
        .select(de_blocked::aggregate_key);
    let found = found.get_result::<i64>(conn).optional();
    found.map(|aggregate| aggregate.is_some())
}

/// The position from which an aggregate is blocked, if it is.
pub(crate) fn blocked_from(
    conn: &mut Conn,
    subscription: i64,
    aggregate: i64,
) -> QueryResult<Option<i64>> {
    de_blocked::table
        .find((subscription, aggregate))
        .select(de_blocked::from_position)
        .get_result(conn)
        .optional()
}

/// Lets a block begin at another position, which has this version or an earlier one.
pub(crate) fn move_blocked(
    conn: &mut Conn,
    subscription: i64,
    aggregate: i64,
    (position, version): (Position, Version),
) -> QueryResult<usize> {
    diesel::update(de_blocked::table.find((subscription, aggregate)))
        .set((
            de_blocked::from_position.eq(signed(position.get())),
            de_blocked::from_version.eq(signed(version.get())),
        ))
        .execute(conn)
}

/// Positions that wait behind another one, for one subscription or for any.
pub(crate) fn blocked_positions(conn: &mut Conn, of: Option<i64>) -> QueryResult<Vec<i64>> {
    let behind = found_events::aggregate_key
        .eq(de_blocked::aggregate_key.nullable())
        .and(found_events::version.ge(de_blocked::from_version.nullable()))
        // The version may be an earlier one, where the first that waits is not known.
        .and(found_events::position.ge(de_blocked::from_position));
    let mut positions = de_blocked::table
        .inner_join(found_events::table.on(behind))
        .select(found_events::position)
        .into_boxed();
    if let Some(id) = of {
        positions = positions.filter(de_blocked::subscription_id.eq(id));
    }
    positions.load(conn)
}

pub(crate) fn delete_blocked(
    conn: &mut Conn,
    subscription: i64,
    aggregate: i64,
) -> QueryResult<usize> {
    diesel::delete(de_blocked::table.find((subscription, aggregate))).execute(conn)
}

pub(crate) fn put_started(conn: &mut Conn, subscription: i64, at: i64) -> QueryResult<usize> {
    use de_started::{is_running, position, subscription_id, unclean_ends};
    diesel::insert_into(de_started::table)
        .values((
            subscription_id.eq(subscription),
            position.eq(at),
            unclean_ends.eq(0),
            is_running.eq(true),
        ))
        .on_conflict((subscription_id, position))
        .do_update()
        .set(is_running.eq(true))
        .execute(conn)
}

pub(crate) fn delete_started(conn: &mut Conn, subscription: i64, at: i64) -> QueryResult<usize> {
    diesel::delete(de_started::table.find((subscription, at))).execute(conn)
}

/// Position and number of unclean ends of what was running at one.
pub(crate) fn started(conn: &mut Conn, subscription: i64) -> QueryResult<Vec<(i64, i64)>> {
    de_started::table
        .filter(de_started::subscription_id.eq(subscription))
        .select((de_started::position, de_started::unclean_ends))
        .load(conn)
}

/// Subscription, position and number of unclean ends of what was started, behind one.
pub(crate) fn started_after(
    conn: &mut Conn,
    (subscription, at): (i64, i64),
    limit: usize,
) -> QueryResult<Vec<(i64, i64, i64)>> {
    use de_started::{position, subscription_id, unclean_ends};
    let same = subscription_id.eq(subscription).and(position.gt(at));
    let rows = de_started::table
        .filter(subscription_id.gt(subscription).or(same))
        .order((subscription_id, position))
        .select((subscription_id, position, unclean_ends))
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

/// Counts the end of the last run for what it had started, and has nothing running.
pub(crate) fn count_unclean_end(conn: &mut Conn) -> QueryResult<usize> {
    diesel::update(de_started::table.filter(de_started::is_running))
        .set((
            de_started::unclean_ends.eq(de_started::unclean_ends + 1),
            de_started::is_running.eq(false),
        ))
        .execute(conn)
}

pub(crate) fn delete_all_started(conn: &mut Conn) -> QueryResult<usize> {
    diesel::delete(de_started::table).execute(conn)
}

/// Has an aggregate be parked no more behind the dead letter of the event at a position.
pub(crate) fn unpark(conn: &mut Conn, subscription: i64, at: i64) -> QueryResult<usize> {
    let letter = de_events::table
        .filter(de_events::position.eq(at))
        .select(de_events::event_id.nullable());
    let parked = de_blocked::table
        .filter(de_blocked::subscription_id.eq(subscription))
        .filter(de_blocked::parked_behind.eq_any(letter));
    diesel::update(parked)
        .set(de_blocked::parked_behind.eq(None::<Vec<u8>>))
        .execute(conn)
}

#[derive(Debug, Insertable, AsChangeset)]
#[diesel(table_name = de_dead_letters)]
pub(crate) struct NewDeadLetter<'a> {
    pub(crate) subscription_id: i64,
    pub(crate) position: i64,
    pub(crate) reason: &'a str,
    pub(crate) attempts: i64,
    pub(crate) error: &'a str,
    pub(crate) first_attempt_at: i64,
    pub(crate) dead_at: i64,
}

pub(crate) fn put_dead_letter(conn: &mut Conn, letter: &NewDeadLetter<'_>) -> QueryResult<usize> {
    let open = open_letter(letter.subscription_id, letter.position);
    match diesel::update(open).set(letter).execute(conn)? {
        0 => diesel::insert_into(de_dead_letters::table)
            .values(letter)
            .execute(conn),
        updated => Ok(updated),
    }
}

/// The dead letter of a delivery that is not settled.
#[diesel::dsl::auto_type(no_type_alias)]
fn open_letter(subscription: i64, at: i64) -> _ {
    de_dead_letters::table
        .filter(de_dead_letters::subscription_id.eq(subscription))
        .filter(de_dead_letters::position.eq(at))
        .filter(de_dead_letters::settled_at.is_null())
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = de_dead_letters)]
pub(crate) struct DeadLetterRow {
    pub(crate) dead_letter_id: i64,
    pub(crate) position: i64,
    pub(crate) reason: String,
    pub(crate) attempts: i64,
    pub(crate) error: String,
    pub(crate) first_attempt_at: i64,
    pub(crate) dead_at: i64,
}

/// A dead letter, open or settled, without its error.
#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = de_dead_letters)]
pub(crate) struct KeptLetter {
    pub(crate) dead_letter_id: i64,
    pub(crate) subscription_id: i64,
    pub(crate) position: i64,
    pub(crate) reason: String,
    pub(crate) attempts: i64,
    pub(crate) settled_at: Option<i64>,
    pub(crate) settled_as: Option<String>,
}

/// Dead letters, open or settled, behind one.
pub(crate) fn letters_after(
    conn: &mut Conn,
    id: i64,
    limit: usize,
) -> QueryResult<Vec<KeptLetter>> {
    let rows = de_dead_letters::table
        .filter(de_dead_letters::dead_letter_id.gt(id))
        .order(de_dead_letters::dead_letter_id)
        .select(KeptLetter::as_select())
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

pub(crate) fn has_open_letter(conn: &mut Conn, subscription: i64, at: i64) -> QueryResult<bool> {
    let open = open_letter(subscription, at).select(de_dead_letters::dead_letter_id);
    let found = open.get_result::<i64>(conn).optional();
    found.map(|letter| letter.is_some())
}

/// How a dead letter was settled.
#[derive(Debug, AsChangeset)]
#[diesel(table_name = de_dead_letters)]
pub(crate) struct Settlement<'a> {
    pub(crate) settled_at: i64,
    pub(crate) settled_as: &'a str,
    pub(crate) note: Option<&'a str>,
}

/// Settles the dead letter of a delivery: subscription and position.
pub(crate) fn settle_dead_letter(
    conn: &mut Conn,
    subscription: i64,
    at: i64,
    settlement: &Settlement<'_>,
) -> QueryResult<usize> {
    diesel::update(open_letter(subscription, at))
        .set(settlement)
        .execute(conn)
}

/// A query of dead letters, with the keys of its event type and of its aggregate.
pub(crate) struct LetterFilter<'a> {
    pub(crate) query: &'a DeadLetterQuery,
    pub(crate) event_type: Option<i64>,
    pub(crate) aggregate: Option<i64>,
}

/// Dead letters with the names of their subscriptions, oldest first.
pub(crate) fn dead_letters(
    conn: &mut Conn,
    filter: &LetterFilter<'_>,
    limit: usize,
) -> QueryResult<Vec<(DeadLetterRow, String)>> {
    de_dead_letters::table
        .inner_join(de_subscriptions::table)
        .filter(de_dead_letters::dead_letter_id.eq_any(filter.letters()))
        .order(de_dead_letters::dead_letter_id)
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .select((DeadLetterRow::as_select(), de_subscriptions::name))
        .load(conn)
}

/// A group of dead letters: the name, the error, how many, and the first and the last time.
pub(crate) type GroupRow = (String, String, i64, Option<i64>, Option<i64>);

/// The groups of dead letters, in the order of the first letter of each.
pub(crate) fn dead_letter_groups(
    conn: &mut Conn,
    filter: &LetterFilter<'_>,
) -> QueryResult<Vec<GroupRow>> {
    de_dead_letters::table
        .inner_join(de_subscriptions::table)
        .filter(de_dead_letters::dead_letter_id.eq_any(filter.letters()))
        .group_by((de_subscriptions::name, de_dead_letters::error))
        .order(min(de_dead_letters::dead_letter_id))
        .select((
            de_subscriptions::name,
            de_dead_letters::error,
            count_star(),
            min(de_dead_letters::dead_at),
            max(de_dead_letters::dead_at),
        ))
        .load(conn)
}

type LetterIds<'a> = de_dead_letters::BoxedQuery<'a, Sqlite, BigInt>;

impl<'a> LetterFilter<'a> {
    /// The numbers of the open dead letters that are meant.
    fn letters(&self) -> LetterIds<'a> {
        let Self {
            query,
            event_type,
            aggregate,
        } = *self;
        let mut letters = de_dead_letters::table
            .select(de_dead_letters::dead_letter_id)
            .filter(de_dead_letters::settled_at.is_null())
            .into_boxed();
        if let Some(name) = &query.subscription {
            let named = de_subscriptions::table
                .filter(de_subscriptions::name.eq(&**name))
                .select(de_subscriptions::subscription_id);
            letters = letters.filter(de_dead_letters::subscription_id.eq_any(named));
        }
        if let Some(error) = &query.error {
            letters = letters.filter(de_dead_letters::error.eq(&**error));
        }
        if let Some(times) = &query.dead_at {
            let (first, last) = (times.start().as_micros(), times.end().as_micros());
            letters = letters.filter(de_dead_letters::dead_at.between(first, last));
        }
        if query.after > 0 {
            letters = letters.filter(de_dead_letters::dead_letter_id.gt(signed(query.after)));
        }
        let events = || de_events::table.select(de_events::position);
        if let Some(event) = &query.event {
            let one = events().filter(de_events::event_id.eq(event.as_bytes()));
            letters = letters.filter(de_dead_letters::position.eq_any(one));
        }
        if let Some(key) = event_type {
            let of_type = events().filter(de_events::type_key.eq(key));
            letters = letters.filter(de_dead_letters::position.eq_any(of_type));
        }
        if let Some(key) = aggregate {
            let of_aggregate = events().filter(de_events::aggregate_key.eq(key));
            letters = letters.filter(de_dead_letters::position.eq_any(of_aggregate));
        }
        letters
    }
}

// The processing log

#[derive(Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = de_processing)]
#[diesel(treat_none_as_default_value = false)]
pub(crate) struct ProcessingRow {
    pub(crate) subscription: String,
    pub(crate) event_id: Vec<u8>,
    pub(crate) position: i64,
    pub(crate) attempt: i64,
    pub(crate) result: String,
    pub(crate) note: Option<String>,
    pub(crate) ended_at: i64,
    pub(crate) took: i64,
}

pub(crate) fn insert_processing(conn: &mut Conn, row: &ProcessingRow) -> QueryResult<usize> {
    diesel::insert_into(de_processing::table)
        .values(row)
        .execute(conn)
}

/// An attempt: its row, event, number and result.
pub(crate) type AttemptRow = (i64, Vec<u8>, i64, String);

/// Attempts behind one.
pub(crate) fn processing_after(
    conn: &mut Conn,
    id: i64,
    limit: usize,
) -> QueryResult<Vec<AttemptRow>> {
    use de_processing::{attempt, event_id, processing_id, result};
    let rows = de_processing::table
        .filter(processing_id.gt(id))
        .order(processing_id)
        .select((processing_id, event_id, attempt, result))
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

/// Deletes all but the latest rows.
pub(crate) fn keep_processing(conn: &mut Conn, latest: i64) -> QueryResult<usize> {
    let last = de_processing::table
        .select(max(de_processing::processing_id))
        .get_result::<Option<i64>>(conn)?;
    let older = last.unwrap_or(0).saturating_sub(latest);
    let older = de_processing::table.filter(de_processing::processing_id.le(older));
    diesel::delete(older).execute(conn)
}

/// The latest attempts, of one subscription or of all, the last one first.
pub(crate) fn processing(
    conn: &mut Conn,
    subscription: Option<&str>,
    limit: usize,
) -> QueryResult<Vec<ProcessingRow>> {
    let mut rows = de_processing::table
        .order(de_processing::processing_id.desc())
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .select(ProcessingRow::as_select())
        .into_boxed();
    if let Some(name) = subscription {
        rows = rows.filter(de_processing::subscription.eq(name));
    }
    rows.load(conn)
}

// Runs

/// The last run's number, when it ended, and up to where a delivery may be a repeat.
pub(crate) fn last_run(conn: &mut Conn) -> QueryResult<Option<(i64, Option<i64>, i64)>> {
    de_runs::table
        .order(de_runs::run_id.desc())
        .select((de_runs::run_id, de_runs::ended_at, de_runs::repeats_through))
        .get_result(conn)
        .optional()
}

/// Runs behind one: number, and up to where a delivery may be a repeat.
pub(crate) fn runs_after(conn: &mut Conn, id: i64, limit: usize) -> QueryResult<Vec<(i64, i64)>> {
    let rows = de_runs::table
        .filter(de_runs::run_id.gt(id))
        .order(de_runs::run_id)
        .select((de_runs::run_id, de_runs::repeats_through))
        .load_iter::<_, DefaultLoadingMode>(conn)?;
    rows.take(limit).collect()
}

pub(crate) fn insert_run(
    conn: &mut Conn,
    started_at: i64,
    repeats_through: i64,
) -> QueryResult<usize> {
    diesel::insert_into(de_runs::table)
        .values((
            de_runs::started_at.eq(started_at),
            de_runs::repeats_through.eq(repeats_through),
        ))
        .execute(conn)
}

pub(crate) fn end_run(conn: &mut Conn, run: i64, ended_at: i64) -> QueryResult<usize> {
    diesel::update(de_runs::table.find(run))
        .set(de_runs::ended_at.eq(ended_at))
        .execute(conn)
}
