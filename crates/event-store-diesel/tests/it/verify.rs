//! A check of a whole store: what is healthy is sound, and every damage is found and named.

use std::{path::Path, sync::Arc};

use domain_events::{
    AttemptResult, BlockedAggregate, DeadLetter, DeadLetterReason, DeliveryChange, DeliveryStore,
    EventStore, PauseReason, Position, ProcessingOutcome, Progress, Registration, Retention,
    StartFrom, SubscriptionId, Timestamp, Version, WaitingDelivery,
};
use event_store_diesel::{SqliteEventStore, SqliteOptions, Verification};
use event_testkit::event_store::{append_all, notebook, noted};

use crate::support::{fresh, in_memory, open, sql};

fn blocked(id: &str, from: u64, version: u64) -> BlockedAggregate {
    BlockedAggregate {
        aggregate: notebook(id),
        from: Position::new(from),
        version: Version::new(version),
        parked_behind: None,
    }
}

fn waiting(id: &str, position: u64, attempts: u32, is_replay: bool) -> WaitingDelivery {
    let now = Timestamp::now();
    WaitingDelivery {
        position: Position::new(position),
        aggregate: notebook(id),
        attempts,
        first_attempt_at: now,
        due_at: now,
        last_error: "the secret".to_owned(),
        is_replay,
    }
}

async fn dead(store: &SqliteEventStore, position: u64) -> DeadLetter {
    let after = Position::new(position - 1);
    let event = store.read_log(after, 1).await.unwrap().remove(0);
    DeadLetter {
        number: 0,
        subscription: "one".into(),
        event: Arc::new(event),
        reason: DeadLetterReason::Permanent,
        attempts: 1,
        error: "the secret".to_owned(),
        first_attempt_at: Timestamp::now(),
        dead_at: Timestamp::now(),
    }
}

async fn change(store: &SqliteEventStore, changes: Vec<DeliveryChange>) {
    let (send, receive) = tokio::sync::oneshot::channel();
    store.submit_changes(changes, Box::new(move |end| drop(send.send(end))));
    receive.await.unwrap().unwrap();
}

/// Twelve events: 1 to 4 of aggregate "a", 5 to 8 of "b", 9 to 12 of "c"; the keys are 1, 2 and 3.
///
/// Subscription 1 has come to 12, without 9. It waits for 2 of "a"; of "b", 5 is dead and what
/// follows is parked behind it; of "c", 10 is a dead letter that is replayed, 11 one that is open,
/// 12 one that was discarded. Subscription 2 is paused at 8, with 6 and 7 unfinished.
async fn fill(store: &SqliteEventStore) {
    for id in ["a", "b", "c"] {
        append_all(store, (0..4).map(|_| noted(id, "the secret"))).await;
    }
    let registration = |name: &str| Registration {
        name: name.into(),
        start_from: StartFrom::Beginning,
        projection: None,
        former_names: Vec::new(),
    };
    let names = ["one", "two"].map(registration).into();
    let run = store.begin_run(names).await.unwrap();
    let [one, two] = [0, 1].map(|it| run.subscriptions[it].id);
    let mut parked = blocked("b", 6, 2);
    let letter = dead(store, 5).await;
    parked.parked_behind = Some(letter.event_id());
    let progressed = |id: SubscriptionId, through: u64, unfinished: &[u64]| {
        let progress = Progress {
            through: Position::new(through),
            unfinished: unfinished.iter().copied().map(Position::new).collect(),
        };
        DeliveryChange::Progressed(id, progress)
    };
    let changes = vec![
        progressed(one, 12, &[9]),
        DeliveryChange::Waiting(one, waiting("a", 2, 1, false)),
        DeliveryChange::Blocked(one, blocked("a", 2, 2)),
        DeliveryChange::Dead(one, letter),
        DeliveryChange::Blocked(one, parked),
        DeliveryChange::Dead(one, dead(store, 10).await),
        DeliveryChange::Replayed(one, waiting("c", 10, 0, true)),
        DeliveryChange::Blocked(one, blocked("c", 13, 2)),
        DeliveryChange::Dead(one, dead(store, 11).await),
        DeliveryChange::Dead(one, dead(store, 12).await),
        DeliveryChange::Discarded {
            subscription: "one".into(),
            position: Position::new(12),
            reason: "the secret".to_owned(),
        },
        DeliveryChange::Started(one, Position::new(9)),
        progressed(two, 8, &[6, 7]),
        DeliveryChange::Paused(two, Some(PauseReason::Asked)),
        DeliveryChange::Processed {
            attempts: vec![ProcessingOutcome {
                subscription: "one".into(),
                event_id: domain_events::EventId::new(),
                position: Some(Position::new(2)),
                attempt: 1,
                result: AttemptResult::Failed("the secret".to_owned()),
                ended_at: Timestamp::now(),
                took: std::time::Duration::ZERO,
            }],
            keep: 10,
        },
    ];
    change(store, changes).await;
}

fn assert_sound(found: &Verification) {
    assert!(found.is_sound(), "{found}");
    let checked: Vec<_> = found
        .checked
        .iter()
        .map(|(table, rows)| (*table, *rows))
        .collect();
    let expected = [
        ("database", 0),
        ("de_aggregates", 3),
        ("de_blocked", 3),
        ("de_dead_letters", 4),
        ("de_event_types", 1),
        ("de_events", 12),
        ("de_format", 1),
        ("de_processing", 1),
        ("de_retention", 1),
        ("de_runs", 1),
        ("de_started", 1),
        ("de_subscriptions", 2),
        ("de_waiting", 2),
    ];
    assert_eq!(checked, expected);
}

#[tokio::test]
async fn r1_a_healthy_store_of_every_kind_is_sound() {
    let store = in_memory();
    fill(&store).await;
    assert_sound(&store.verify().await.unwrap());
    let (store, folder) = fresh();
    fill(&store).await;
    assert_sound(&store.verify().await.unwrap());
    store.close().await;
    let path = folder.path().join("events.db");
    let reader = SqliteEventStore::open_to_read(&path, SqliteOptions::default()).unwrap();
    assert_sound(&reader.verify().await.unwrap());
}

#[tokio::test]
async fn an_empty_store_and_a_pruned_one_are_sound() {
    let (store, _folder) = fresh();
    assert!(store.verify().await.unwrap().is_sound());
    append_all(
        &*store,
        (0..2_600).map(|it| noted(&(it % 7).to_string(), "")),
    )
    .await;
    for (kept, events) in [(509, 2_091), (0, 509)] {
        let pruned = store.prune(Retention::Latest(kept)).await.unwrap();
        assert_eq!(pruned.events, events);
        let found = store.verify().await.unwrap();
        assert!(found.is_sound(), "{kept}: {found}");
    }
}

#[tokio::test]
async fn r8_what_dead_letters_keep_of_a_pruned_log_is_sound_and_not_missed_less() {
    let (store, folder) = fresh();
    append_all(&*store, (0..8).map(|it| noted(["a", "b"][it % 2], ""))).await;
    let registration = Registration {
        name: "one".into(),
        start_from: StartFrom::Now,
        projection: None,
        former_names: Vec::new(),
    };
    let run = store.begin_run(vec![registration]).await.unwrap();
    let one = run.subscriptions[0].id;
    for position in [2, 5] {
        let letter = DeliveryChange::Dead(one, dead(&store, position).await);
        change(&store, vec![letter]).await;
    }
    let pruned = store.prune(Retention::After(Position::new(6)));
    assert_eq!(pruned.await.unwrap().events, 4);
    let found = store.verify().await.unwrap();
    assert!(found.is_sound(), "{found}");
    let discarded = DeliveryChange::Discarded {
        subscription: "one".into(),
        position: Position::new(5),
        reason: "the secret".to_owned(),
    };
    change(&store, vec![discarded]).await;
    store
        .prune(Retention::After(Position::new(6)))
        .await
        .unwrap();
    let found = store.verify().await.unwrap();
    assert!(found.is_sound(), "{found}");
    let path = folder.path().join("events.db");
    for (damage, rule) in [
        (
            "DELETE FROM de_events WHERE position = 2",
            "de_dead_letters, row 1: the event is missing",
        ),
        (
            "DELETE FROM de_events WHERE position = 7",
            "de_events, row 8: the event before it is missing",
        ),
        (
            "UPDATE de_retention SET pruned_through = 9",
            "de_retention: there is not one position up to which the log was pruned, or it is not within 0 and 8",
        ),
        (
            "INSERT INTO de_retention VALUES (3)",
            "de_retention: there is not one position up to which the log was pruned, or it is not within 0 and 8",
        ),
    ] {
        sql(&path, damage);
        let found = store.verify().await.unwrap().to_string();
        assert!(found.contains(rule), "{damage}: {found}");
    }
}

#[tokio::test]
async fn r6_a_store_is_checked_beside_its_runner() {
    let (store, folder) = fresh();
    let path = folder.path().join("events.db");
    let writer = Arc::clone(&store);
    let appending = tokio::spawn(async move {
        for number in 0..300 {
            append_all(
                &*writer,
                (0..7).map(|it| noted(&((number + it) % 5).to_string(), "")),
            )
            .await;
        }
    });
    let reader = SqliteEventStore::open_to_read(&path, SqliteOptions::default()).unwrap();
    while !appending.is_finished() {
        let found = reader.verify().await.unwrap();
        assert!(found.is_sound(), "{found}");
    }
    appending.await.unwrap();
    assert_eq!(reader.verify().await.unwrap().checked["de_events"], 2_100);
}

/// What is found in a store to which this was done, a line each.
async fn found_after(damage: &str) -> Vec<String> {
    let (store, folder) = fresh();
    fill(&store).await;
    store.close().await;
    let path = folder.path().join("events.db");
    sql(&path, &format!("PRAGMA foreign_keys = OFF; {damage}"));
    let found = lines(&path).await;
    // What a reader finds does not depend on who runs it.
    let runner = open(&path);
    let beside = runner.verify().await.unwrap();
    assert_eq!(
        found,
        beside
            .findings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    );
    runner.close().await;
    found
}

async fn lines(path: &Path) -> Vec<String> {
    let reader = SqliteEventStore::open_to_read(path, SqliteOptions::default()).unwrap();
    let found = reader.verify().await.unwrap();
    reader.close().await;
    assert!(!found.to_string().contains("secret"), "{found}");
    found.findings.iter().map(ToString::to_string).collect()
}

/// Checks that each damage is found as what is said of it, and as nothing else.
async fn assert_found<const N: usize>(damages: [(&str, &[&str]); N]) {
    for (damage, expected) in damages {
        assert_eq!(found_after(damage).await, expected, "{damage}");
    }
}

#[tokio::test]
async fn damage_to_an_event_is_found() {
    assert_found([
        (
            "UPDATE de_events SET payload = x'00' WHERE position = 3",
            &["de_events, row 3: the checksum does not match"],
        ),
        (
            "UPDATE de_events SET checksum = checksum + 1 WHERE position = 12",
            &["de_events, row 12: the checksum does not match"],
        ),
        (
            "UPDATE de_events SET type_key = 9 WHERE position = 3",
            &[
                "de_events, row 3: the event type 9 is missing",
                "de_events, row 3: the checksum does not match",
            ],
        ),
        (
            "UPDATE de_event_types SET event_type = 'x'; DELETE FROM de_events WHERE position <> 12; \
             UPDATE de_retention SET pruned_through = 11; \
             DELETE FROM de_subscriptions; DELETE FROM de_waiting; DELETE FROM de_blocked; \
             DELETE FROM de_dead_letters; DELETE FROM de_started",
            &["de_events, row 12: the checksum does not match"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn damage_to_a_name_is_found_also_by_who_knew_it() {
    let (store, folder) = fresh();
    fill(&store).await;
    assert_sound(&store.verify().await.unwrap());
    let path = folder.path().join("events.db");
    sql(
        &path,
        "UPDATE de_aggregates SET aggregate_id = 'z' WHERE aggregate_key = 3",
    );
    let found = store.verify().await.unwrap();
    let lines: Vec<_> = found.findings.iter().map(ToString::to_string).collect();
    let damaged = (9..=12).map(|it| format!("de_events, row {it}: the checksum does not match"));
    assert_eq!(lines, damaged.collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_missing_from_the_log_or_a_history_is_found() {
    assert_found([
        (
            "DELETE FROM de_events WHERE position = 3",
            &[
                "de_events, row 4: the event before it is missing",
                "de_events, aggregate 1, version 4: the version before it is missing",
            ],
        ),
        (
            "DELETE FROM de_events WHERE position = 1",
            &[
                "de_events, row 2: the event before it is missing",
                "de_events, aggregate 1, version 2: the version before it is missing",
            ],
        ),
        (
            "UPDATE sqlite_sequence SET seq = 14 WHERE name = 'de_events'",
            &["de_events, row 12: the last position is 12, and 14 was given"],
        ),
        (
            "UPDATE de_aggregates SET head_version = 5 WHERE aggregate_key = 2",
            &["de_aggregates, row 2: the head version is 5, and the last version is 4"],
        ),
        (
            "INSERT INTO de_aggregates VALUES (4, 'notebook', 'd', 1)",
            &["de_aggregates, row 4: it has no event"],
        ),
        (
            "UPDATE de_events SET version = 9 WHERE position = 4",
            &[
                "de_events, row 4: the checksum does not match",
                "de_events, aggregate 1, version 9: the version before it is missing",
                "de_aggregates, row 1: the head version is 4, and the last version is 9",
            ],
        ),
        (
            "UPDATE de_events SET version = 0 WHERE position = 1",
            &[
                "de_events, row 1: the checksum does not match",
                "de_events, aggregate 1, version 0: the version before it is missing",
                "de_events, aggregate 1, version 2: the version before it is missing",
            ],
        ),
        (
            "UPDATE de_events SET version = version + 2 * (position = 3) + 10 * (position = 4) \
             WHERE aggregate_key = 1; \
             UPDATE de_events SET version = 3 WHERE position = 4; \
             UPDATE de_events SET version = 4 WHERE position = 3",
            &[
                "de_events, row 3: the checksum does not match",
                "de_events, row 4: the checksum does not match",
                "de_events, aggregate 1, version 4: it is not behind the version before it in the log",
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn r1_a_delivery_that_stands_in_two_places_is_found() {
    // Unfinished positions are written as the differences between them.
    let unfinished = |bytes| {
        format!("UPDATE de_subscriptions SET unfinished = x'{bytes}' WHERE subscription_id = 1")
    };
    for (bytes, expected) in [
        // What is blocked is blocked, whether or not it is listed.
        ("02", &[][..]),
        ("03", &[]),
        ("05", &["de_dead_letters, row 1: it is unfinished as well"]),
        (
            "0a",
            &["de_waiting, subscription 1, position 10: it is unfinished as well"],
        ),
        ("0b", &["de_dead_letters, row 3: it is unfinished as well"]),
        // What is settled is over.
        ("0c", &[]),
    ] {
        assert_eq!(found_after(&unfinished(bytes)).await, expected, "{bytes}");
    }
    assert_found([
        (
            "UPDATE de_blocked SET from_position = 5, from_version = 1 WHERE aggregate_key = 2",
            &["de_dead_letters, row 1: it is blocked as well"],
        ),
        (
            "UPDATE de_blocked SET from_position = 10, from_version = 2 WHERE aggregate_key = 3",
            &[
                "de_waiting, subscription 1, position 10: it is blocked as well",
                "de_dead_letters, row 3: it is blocked as well",
            ],
        ),
        (
            "UPDATE de_dead_letters SET settled_at = NULL, settled_as = NULL WHERE position = 10",
            &["de_waiting, subscription 1, position 10: it is dead as well"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn r1_what_deviates_in_a_way_that_loses_a_delivery_is_found() {
    assert_found([
        (
            "UPDATE de_subscriptions SET through = 11 WHERE subscription_id = 1; \
             UPDATE de_dead_letters SET settled_at = NULL, settled_as = NULL WHERE position = 12",
            &["de_dead_letters, row 4: it lies behind the progress of its subscription, 11"],
        ),
        (
            "UPDATE de_subscriptions SET through = 9 WHERE subscription_id = 1; \
             DELETE FROM de_dead_letters WHERE position = 11",
            &[
                "de_waiting, subscription 1, position 10: it lies behind the progress of its subscription, 9",
            ],
        ),
        (
            "DELETE FROM de_blocked WHERE aggregate_key = 1",
            &["de_waiting, subscription 1, position 2: the aggregate is not blocked"],
        ),
        // In another order than per aggregate, nothing is blocked.
        (
            "INSERT INTO de_waiting VALUES (2, 5, 2, 1, 1, 1, '', FALSE)",
            &[],
        ),
        (
            "UPDATE de_blocked SET from_position = 1, from_version = 1 WHERE aggregate_key = 1",
            &["de_waiting, subscription 1, position 2: it is not the first event that is blocked"],
        ),
        (
            "UPDATE de_blocked SET from_position = 3, from_version = 3 WHERE aggregate_key = 1",
            &["de_waiting, subscription 1, position 2: it is not the first event that is blocked"],
        ),
        (
            "UPDATE de_blocked SET from_version = 3 WHERE aggregate_key = 1",
            &["de_blocked, subscription 1, aggregate 1: its version leaves out an event that waits"],
        ),
        // An earlier version is read over.
        ("UPDATE de_blocked SET from_version = 1 WHERE aggregate_key = 1", &[]),
        // What waits may be still to come.
        (
            "UPDATE de_blocked SET from_position = 99, from_version = 5 WHERE aggregate_key = 3",
            &[],
        ),
        (
            "UPDATE de_blocked SET parked_behind = zeroblob(16) WHERE aggregate_key = 2",
            &["de_blocked, subscription 1, aggregate 2: it is parked behind no dead letter"],
        ),
        (
            "UPDATE de_dead_letters SET settled_at = 1, settled_as = 'discarded' WHERE position = 5",
            &["de_blocked, subscription 1, aggregate 2: it is parked behind no dead letter"],
        ),
        // Behind the replay of a letter.
        (
            "UPDATE de_dead_letters SET settled_at = 1, settled_as = 'replayed' WHERE position = 5; \
             INSERT INTO de_waiting VALUES (1, 5, 2, 0, 1, 1, '', TRUE)",
            &[],
        ),
        (
            "UPDATE de_waiting SET attempts = 0",
            &["de_waiting, subscription 1, position 2: no attempt was made"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_delivery_without_its_event_or_its_subscription_is_found() {
    assert_found([
        (
            "INSERT INTO de_waiting VALUES (2, 0, 1, 1, 1, 1, '', FALSE); \
             INSERT INTO de_started VALUES (2, 77, 0, TRUE); \
             INSERT INTO de_dead_letters VALUES (9, 2, 78, 'permanent', 1, '', 1, 1, NULL, NULL, NULL)",
            &[
                "de_waiting, subscription 2, position 0: the event is missing",
                "de_started, subscription 2, position 77: the event is missing",
                "de_dead_letters, row 9: the event is missing",
            ],
        ),
        (
            "UPDATE de_waiting SET aggregate_key = 2 WHERE position = 2",
            &["de_waiting, subscription 1, position 2: the event is of another aggregate"],
        ),
        (
            "INSERT INTO de_blocked VALUES (2, 9, 99, 1, NULL)",
            &["de_blocked, subscription 2, aggregate 9: the aggregate 9 is missing"],
        ),
        (
            "INSERT INTO de_blocked VALUES (7, 1, 99, 1, NULL); INSERT INTO de_started VALUES (7, 1, 0, TRUE)",
            &[
                "de_blocked: the row of de_subscriptions that it refers to is missing",
                "de_started: the row of de_subscriptions that it refers to is missing",
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn values_that_no_program_writes_are_found() {
    assert_found([
        (
            "UPDATE de_processing SET result = 'garbage', attempt = 0, event_id = x'00'",
            &[
                "de_processing, row 1: the event is missing",
                "de_processing, row 1: no attempt was made",
                "de_processing, row 1: the result is not known",
            ][..],
        ),
        (
            "INSERT INTO de_event_types VALUES (7, '')",
            &["de_event_types, row 7: the name is empty or too long"],
        ),
        (
            "UPDATE de_runs SET repeats_through = 13",
            &["de_runs, row 1: what may be a repeat does not end within 0 and 12"],
        ),
        (
            "UPDATE de_subscriptions SET unfinished = x'80' WHERE subscription_id = 2",
            &["de_subscriptions, row 2: the unfinished positions cannot be read, or do not ascend to 8"],
        ),
        (
            "UPDATE de_subscriptions SET unfinished = x'0605' WHERE subscription_id = 2",
            &["de_subscriptions, row 2: the unfinished positions cannot be read, or do not ascend to 8"],
        ),
        (
            "UPDATE de_subscriptions SET through = 99, unfinished = x'4d' WHERE subscription_id = 2",
            &["de_subscriptions, subscription 2, position 77: the event is missing"],
        ),
        (
            "UPDATE de_subscriptions SET paused = 'tired'",
            &[
                "de_subscriptions, row 1: the reason of the pause is not known",
                "de_subscriptions, row 2: the reason of the pause is not known",
            ],
        ),
        (
            "UPDATE de_dead_letters SET reason = 'tired' WHERE dead_letter_id = 1; \
             UPDATE de_dead_letters SET settled_as = 'lost' WHERE dead_letter_id = 2; \
             UPDATE de_dead_letters SET settled_as = 'replayed', attempts = -1 WHERE dead_letter_id = 3",
            &[
                "de_dead_letters, row 1: the reason is not known",
                "de_dead_letters, row 2: it is settled in part, or as something that is not known",
                "de_dead_letters, row 3: a number is below zero",
                "de_dead_letters, row 3: it is settled in part, or as something that is not known",
            ],
        ),
        (
            "UPDATE de_started SET unclean_ends = -1; UPDATE de_waiting SET attempts = -1 WHERE position = 2",
            &[
                "de_waiting, subscription 1, position 2: a number is below zero",
                "de_started, subscription 1, position 9: a number is below zero",
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn tables_that_are_not_as_they_are_made_are_found() {
    assert_found([
        (
            "DROP INDEX de_dead_letters_by_delivery",
            &["database: de_dead_letters_by_delivery is missing"],
        ),
        (
            "DROP INDEX de_events_by_id; CREATE INDEX de_events_by_id ON de_events (event_id)",
            &["database: de_events_by_id is not as this program makes it"],
        ),
        (
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = \
             (SELECT rootpage FROM sqlite_master WHERE name = 'de_events_by_id') \
             WHERE name = 'de_event_types_by_name'; PRAGMA writable_schema = RESET",
            &[
                "database: 2nd reference to page 11",
                "database: Page 6: never used",
                "database: wrong # of entries in index de_event_types_by_name",
                "database: row 1 missing from index de_event_types_by_name",
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_file_that_is_damaged_is_a_finding_and_no_error() {
    let (store, folder) = fresh();
    fill(&store).await;
    append_all(&*store, (0..2_000).map(|_| noted("d", "the secret"))).await;
    store.close().await;
    let path = folder.path().join("events.db");
    let intact = std::fs::read(&path).unwrap();
    let (mut in_part, mut refused) = (0, 0);
    for page in (0..intact.len()).step_by(4_096) {
        let mut bytes = intact.clone();
        bytes[page..][..4_096].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        // Without the definitions of its tables it is not opened.
        match SqliteEventStore::open_to_read(&path, SqliteOptions::default()) {
            Ok(_) => {
                let found = lines(&path).await;
                assert!(!found.is_empty(), "at byte {page}");
                in_part += usize::from(found.iter().any(|line| line.ends_with("not checked")));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(in_part > 0 && refused < 10, "{in_part}, {refused}");
}

#[tokio::test]
async fn a_store_of_an_older_format_is_told_and_not_checked() {
    let (store, folder) = fresh();
    store.close().await;
    let path = folder.path().join("events.db");
    sql(&path, "UPDATE de_format SET version = 1");
    let expected =
        "de_format: the format is 1, and 5 is the one of this program: nothing else was checked";
    assert_eq!(lines(&path).await, [expected]);
}

#[tokio::test]
async fn many_findings_are_counted_and_the_first_are_kept() {
    let (store, folder) = fresh();
    append_all(&*store, (0..1_500).map(|_| noted("a", ""))).await;
    let path = folder.path().join("events.db");
    sql(&path, "UPDATE de_events SET urgency = 2");
    let found = store.verify().await.unwrap();
    assert_eq!((found.findings.len(), found.more), (1_000, 500));
    let text = found.to_string();
    assert_eq!(text.lines().count(), 1_002);
    assert!(
        text.starts_with("1504 rows checked: 1500 findings\n"),
        "{text:.60}"
    );
    assert!(text.ends_with("\nand 500 more"));
}
