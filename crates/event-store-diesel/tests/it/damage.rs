//! Rows that are not what was written.

use std::sync::Arc;

use domain_events::{
    AggregateRef, DecodeError, DeliveryStore, EventEnvelope, EventQuery, EventStore, Position,
    Retention, StoreErrorKind, Urgency, Version,
};
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
        // Read as zero, this one is the event that was written.
        "urgency = NULL",
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
            [
                noted("a", "one"),
                noted("a", "two").urgency(Urgency::Low),
                noted("a", "three"),
            ],
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

#[tokio::test]
async fn f7_a_summary_says_nothing_of_an_event_that_is_damaged() {
    let (store, folder) = fresh();
    append_all(
        &*store,
        ["one", "two", "three"].map(|text| noted("a", text)),
    )
    .await;
    let before = store.summary(&EventQuery::Log).await.unwrap();
    let log = store.read_log(Position::ZERO, 9).await.unwrap();
    assert_eq!(
        (before.first, before.last),
        (log[0].recorded(), log[2].recorded())
    );
    let path = folder.path().join("events.db");
    for (damage, first, last) in [
        (
            "recorded_at = recorded_at - 7 WHERE position = 1",
            None,
            before.last,
        ),
        ("version = version + 7 WHERE position = 3", None, None),
    ] {
        sql(&path, &format!("UPDATE de_events SET {damage}"));
        let summary = store.summary(&EventQuery::Log).await.unwrap();
        assert_eq!(
            (summary.events, summary.first, summary.last),
            (3, first, last)
        );
        assert_eq!(store.statistics().await.unwrap().log, summary);
    }
}

/// How many events are read of each part of a history of five, or that it is corrupt.
async fn histories(store: &SqliteEventStore, aggregate: &AggregateRef) -> Vec<Result<usize, ()>> {
    let read = async |first, last, limit| {
        let versions = Version::new(first)..=Version::new(last);
        let history = store.read_aggregate(aggregate, versions, limit).await;
        history.map(|it| it.len()).map_err(|error| {
            assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
        })
    };
    vec![
        read(1, u64::MAX, 100).await,
        read(1, 5, 5).await,
        read(1, 2, 2).await,
        read(1, 3, 3).await,
        read(2, 4, 2).await,
        read(4, 5, 9).await,
        read(5, 9, 9).await,
    ]
}

#[tokio::test]
async fn f7_no_event_is_left_out_of_a_history_without_an_error() {
    let whole = [Ok(5), Ok(5), Ok(2), Ok(3), Ok(2), Ok(2), Ok(1)];
    for (damage, told) in [
        ("SELECT 1", whole),
        // In the middle: its version, its aggregate, or all of it.
        (
            "UPDATE de_events SET version = 99 WHERE position = 5",
            [Err(()), Err(()), Ok(2), Err(()), Err(()), Ok(2), Ok(1)],
        ),
        (
            "UPDATE de_events SET aggregate_key = 77 WHERE position = 5",
            [Err(()), Err(()), Ok(2), Err(()), Err(()), Ok(2), Ok(1)],
        ),
        (
            "DELETE FROM de_events WHERE position = 5",
            [Err(()), Err(()), Ok(2), Err(()), Err(()), Ok(2), Ok(1)],
        ),
        // The first.
        (
            "UPDATE de_events SET version = 0 WHERE position = 1",
            [Err(()), Err(()), Err(()), Err(()), Ok(2), Ok(2), Ok(1)],
        ),
        // The last.
        (
            "UPDATE de_events SET aggregate_key = 2 WHERE position = 9",
            [Err(()), Err(()), Ok(2), Ok(3), Ok(2), Err(()), Err(())],
        ),
    ] {
        let (store, folder) = fresh();
        append_all(
            &*store,
            (0..5).flat_map(|_| [noted("a", ""), noted("b", "")]),
        )
        .await;
        sql(
            &folder.path().join("events.db"),
            &format!(
                "DROP INDEX de_events_by_aggregate; CREATE INDEX de_events_by_aggregate ON de_events (aggregate_key, version); {damage}"
            ),
        );
        assert_eq!(histories(&store, &notebook("a")).await, told, "{damage}");
    }
}

#[tokio::test]
async fn r8_a_history_whose_beginning_was_pruned_is_whole() {
    let (store, _folder) = fresh();
    append_all(
        &*store,
        (0..5).flat_map(|_| [noted("a", ""), noted("b", "")]),
    )
    .await;
    let pruned = store.prune(Retention::Latest(6)).await;
    assert_eq!(pruned.unwrap().events, 4);
    let kept = [Ok(3), Ok(3), Ok(0), Ok(1), Ok(2), Ok(2), Ok(1)];
    assert_eq!(histories(&store, &notebook("a")).await, kept);
    store.prune(Retention::Latest(0)).await.unwrap();
    assert_eq!(histories(&store, &notebook("a")).await, [Ok(0); 7]);
}
