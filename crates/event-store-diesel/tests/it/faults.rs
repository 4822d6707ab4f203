//! Transactions that do not come to their end.

use std::sync::mpsc;

use domain_events::{AppendError, EventId, EventStore, StoreErrorKind};
use event_testkit::event_store::{MayFail, append_all, batch, check_identities, noted};

use crate::support::{PATIENCE, fresh, sql, submit};

#[tokio::test]
async fn p6_a_failed_commit_leaves_the_outcome_open_and_the_same_event_again_settles_it() {
    let (store, folder) = fresh();
    let path = folder.path().join("events.db");
    append_all(&*store, [noted("a", "")]).await;
    // A deferred foreign key is looked at by the commit, and fails it.
    sql(
        &path,
        "CREATE TABLE parents (id INTEGER PRIMARY KEY); CREATE TABLE children \
         (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED); \
         CREATE TRIGGER orphans AFTER INSERT ON de_events BEGIN INSERT INTO children VALUES (9); END",
    );
    let id = EventId::new();
    let event = || noted("a", "").id(id);
    match store.append(batch([event()])).await {
        Err(AppendError::OutcomeUnknown(_)) => {}
        other => panic!("not unknown: {other:?}"),
    }
    sql(&path, "DROP TRIGGER orphans");
    assert_eq!(append_all(&*store, [event()]).await, [2]);
    let event = store.get(id).await.unwrap().unwrap();
    assert_eq!(event.version().unwrap().get(), 2);
}

#[tokio::test]
async fn a_fault_that_ends_the_transaction_is_a_typed_error_and_the_store_works_on() {
    let (store, folder) = fresh();
    let path = folder.path().join("events.db");
    append_all(&*store, [noted("a", "")]).await;
    sql(
        &path,
        "CREATE TRIGGER full BEFORE INSERT ON de_events \
         BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END",
    );
    let answers = [
        submit(&store, [noted("a", "")]),
        submit(&store, [noted("b", "")]),
    ];
    for answer in answers {
        match answer.recv_timeout(PATIENCE).unwrap() {
            Err(AppendError::Store(error)) => assert_eq!(error.kind(), StoreErrorKind::Full),
            other => panic!("not full: {other:?}"),
        }
    }
    sql(&path, "DROP TRIGGER full");
    assert_eq!(
        append_all(&*store, [noted("a", ""), noted("b", "")]).await,
        [2, 3]
    );
}

#[tokio::test]
async fn p6_no_name_of_a_transaction_that_failed_is_remembered() {
    let (store, folder) = fresh();
    // The connection is kept, and so is what it has read.
    sql(
        &folder.path().join("events.db"),
        "CREATE TRIGGER full BEFORE INSERT ON de_events WHEN CAST(NEW.payload AS TEXT) LIKE '%poison%' \
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    );
    let (id, next) = (EventId::new(), EventId::new());
    let (open, gate) = mpsc::channel::<()>();
    let (send, waits) = mpsc::channel();
    let wait = move |_| {
        send.send(()).unwrap();
        let _ = gate.recv();
    };
    store.submit(batch([noted("a", "")]), Box::new(wait));
    waits.recv_timeout(PATIENCE).unwrap();
    // Meanwhile the others gather: the name of "b" is read, and then its key is free again.
    let lost = [
        submit(&store, [noted("b", "").id(id)]),
        submit(&store, [noted("b", "").id(id)]),
        submit(&store, [noted("a", "poison")]),
    ];
    drop(open);
    for answer in lost {
        answer.recv_timeout(PATIENCE).unwrap().unwrap_err();
    }
    let event = || noted("c", "").id(next);
    assert_eq!(append_all(&*store, [event()]).await, [2]);
    assert_eq!(append_all(&*store, [event()]).await, [2]);
}

#[tokio::test]
async fn p6_events_are_found_again_whatever_ends_a_transaction() {
    let (store, folder) = fresh();
    let path = folder.path().join("events.db");
    sql(
        &path,
        "CREATE TABLE parents (id INTEGER PRIMARY KEY); CREATE TABLE children \
         (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)",
    );
    let failures = [
        // One event at fault, so that its neighbours are tried again one by one.
        "SELECT RAISE(ABORT, 'no')",
        // The whole transaction, behind the back of whoever holds it.
        "SELECT RAISE(ROLLBACK, 'no')",
        "SELECT RAISE(ROLLBACK, 'database or disk is full')",
        // The commit, after which the outcome is open.
        "INSERT INTO children VALUES (9)",
    ];
    for seed in 0..4 {
        let disturb = |round: usize| {
            sql(&path, "DROP TRIGGER IF EXISTS failing");
            let Some(failure) = failures.get(round % 6) else {
                return MayFail::Nothing;
            };
            let at = round % 5;
            sql(
                &path,
                &format!(
                    "CREATE TRIGGER failing AFTER INSERT ON de_events \
                     WHEN NEW.version % 5 = {at} BEGIN {failure}; END"
                ),
            );
            MayFail::Anything
        };
        check_identities(&*store, seed, disturb).await;
    }
}
