//! Rows that are not what was written.

use std::sync::Arc;

use domain_events::{DecodeError, EventEnvelope, EventStore, Position, Version};
use event_store_diesel::SqliteEventStore;
use event_testkit::event_store::{Noted, append_all, notebook, noted};

use crate::support::{fresh, sql};

async fn log(store: &SqliteEventStore) -> Vec<Result<String, DecodeError>> {
    let events = store.read_log(Position::ZERO, 100).await.unwrap();
    let typed = |event: EventEnvelope| {
        Arc::new(event)
            .typed::<Noted>()
            .map(|event| event.text.clone())
    };
    events.into_iter().map(typed).collect()
}

#[tokio::test]
async fn f7_a_damaged_row_is_marked_and_its_neighbours_are_read() {
    for damage in [
        "payload = CAST(replace(payload, 'two', 'toe') AS BLOB)",
        "payload = NULL",
        "payload = 7",
        "metadata = '{}'",
        "metadata = x'ff'",
        "metadata = 5",
        "version = 9",
        "schema_version = -1",
        "urgency = 7",
        "correlation_id = x'00'",
        "causation_id = zeroblob(16)",
        "occurred_at = occurred_at + 1",
        "recorded_at = 'yesterday'",
        "checksum = 0",
        "event_id = x'01'",
    ] {
        let (store, folder) = fresh();
        append_all(
            &*store,
            [noted("a", "one"), noted("a", "two"), noted("a", "three")],
        )
        .await;
        // What is damaged is not held to what a table allows.
        let damage = format!(
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') \
             WHERE name = 'de_events'; PRAGMA writable_schema = RESET; \
             UPDATE de_events SET {damage} WHERE position = 2"
        );
        sql(&folder.path().join("events.db"), &damage);
        let events = log(&store).await;
        assert!(
            matches!(&*events, [Ok(one), Err(DecodeError::Damaged), Ok(three)]
            if one == "one" && three == "three"),
            "{damage}: {events:?}"
        );
    }
}

#[tokio::test]
async fn f7_a_damaged_name_shows_in_every_event_that_has_it() {
    let (store, folder) = fresh();
    append_all(&*store, [noted("a", "one"), noted("b", "two")]).await;
    let path = folder.path().join("events.db");
    sql(
        &path,
        "UPDATE de_aggregates SET aggregate_id = 'c' WHERE aggregate_id = 'a'",
    );
    assert!(matches!(
        &*log(&store).await,
        [Err(DecodeError::Damaged), Ok(_)]
    ));
}

#[tokio::test]
async fn f7_a_name_that_is_missing_is_a_damage_too() {
    let (store, folder) = fresh();
    append_all(&*store, [noted("a", "one"), noted("b", "two")]).await;
    let path = folder.path().join("events.db");
    sql(&path, "DELETE FROM de_aggregates WHERE aggregate_id = 'a'");
    assert!(matches!(
        &*log(&store).await,
        [Err(DecodeError::Damaged), Ok(_)]
    ));
    sql(
        &path,
        "UPDATE de_events SET type_key = 99 WHERE position = 2",
    );
    let events = store.read_log(Position::ZERO, 100).await.unwrap();
    assert_eq!(events[1].event_type(), "");
}

#[tokio::test]
async fn f7_a_damaged_event_is_told_in_a_history_and_by_its_id() {
    let (store, folder) = fresh();
    append_all(&*store, [noted("a", "one")]).await;
    sql(
        &folder.path().join("events.db"),
        "UPDATE de_events SET payload = CAST(replace(payload, 'one', 'two') AS BLOB)",
    );
    let versions = Version::FIRST..=Version::new(9);
    let mut history = store
        .read_aggregate(&notebook("a"), versions, 9)
        .await
        .unwrap();
    let event = Arc::new(history.remove(0));
    assert!(matches!(event.typed::<Noted>(), Err(DecodeError::Damaged)));
    let event = Arc::new(store.get(event.id()).await.unwrap().unwrap());
    assert!(matches!(event.typed::<Noted>(), Err(DecodeError::Damaged)));
}
