//! What is known of deliveries: starts, progress, retries, dead letters, runs.

use std::sync::{Arc, mpsc};

use domain_events::{
    BlockedAggregate, DeadLetter, DeadLetterQuery, DeadLetterReason, DeliveryChange, DeliveryStore,
    Position, Progress, Recorded, Registration, RunState, StartFrom, StoreError, SubscriptionId,
    SubscriptionState, Timestamp, Version, WaitingDelivery,
};

use super::{Store, append_all, batch, notebook, noted};

pub(super) fn registration(name: &str, start_from: StartFrom) -> Registration {
    Registration {
        former_names: Vec::new(),
        name: name.into(),
        start_from,
        projection: None,
    }
}

pub(super) async fn begin(store: &impl DeliveryStore, names: &[&str]) -> RunState {
    let names = names.iter().map(|name| registration(name, StartFrom::Now));
    store.begin_run(names.collect()).await.expect("begun")
}

/// Registers a name during a run.
async fn register(store: &impl DeliveryStore, name: &str) -> SubscriptionState {
    let registered = register_at(store, name, StartFrom::Now).await;
    registered.expect("registered")
}

pub(super) async fn register_at(
    store: &impl DeliveryStore,
    name: &str,
    start_from: StartFrom,
) -> Result<SubscriptionState, StoreError> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let done = move |state| drop(send.send(state));
    store.submit_registration(registration(name, start_from), Box::new(done));
    receive.await.expect("answered")
}

pub(super) async fn change(
    store: &impl DeliveryStore,
    changes: Vec<DeliveryChange>,
) -> Result<(), StoreError> {
    let (send, receive) = tokio::sync::oneshot::channel();
    store.submit_changes(changes, Box::new(move |end| drop(send.send(end))));
    receive.await.expect("answered")
}

/// Now, at the beginning, or after a position; committed with the answer.
pub async fn d8_a_new_subscription_starts_where_it_says(store: &impl Store) {
    append_all(store, (0..5).map(|_| noted("a", ""))).await;
    let after = StartFrom::After(Position::new(2));
    let state = store
        .begin_run(vec![
            registration("now", StartFrom::Now),
            registration("beginning", StartFrom::Beginning),
            registration("after", after),
        ])
        .await
        .unwrap();
    assert_eq!(state.head, Position::new(5));
    let through: Vec<u64> = state
        .subscriptions
        .iter()
        .map(|it| it.progress.through.get())
        .collect();
    assert_eq!(through, [5, 0, 2]);
    assert!(
        state
            .subscriptions
            .iter()
            .all(|it| it.waiting.is_empty() && it.blocked.is_empty())
    );
    append_all(store, [noted("a", "")]).await;
    assert_eq!(
        register(store, "late").await.progress.through,
        Position::new(6)
    );
}

/// So that its `Now` is the end of what was handed over before.
pub async fn d8_a_registration_is_answered_in_the_order_of_the_log(store: &impl Store) {
    begin(store, &[]).await;
    let (send, receive) = mpsc::channel();
    for number in 0..10 {
        store.submit(batch([noted("a", ""), noted("b", "")]), Box::new(|_| ()));
        let send = send.clone();
        let done = move |state: Result<SubscriptionState, _>| drop(send.send(state));
        let name = format!("late-{number}");
        store.submit_registration(registration(&name, StartFrom::Now), Box::new(done));
    }
    append_all(store, []).await;
    let answers: Vec<u64> = receive
        .try_iter()
        .map(|state| state.unwrap().progress.through.get())
        .collect();
    assert_eq!(
        answers,
        (1..=10).map(|number| number * 2).collect::<Vec<u64>>()
    );
}

/// Under its number, and wherever a new one would start.
pub async fn d8_a_known_subscription_goes_on(store: &impl Store) {
    append_all(store, [noted("a", "")]).await;
    let first = begin(store, &["one", "two"]).await.subscriptions;
    assert_ne!(first[0].id, first[1].id);
    append_all(store, [noted("a", "")]).await;
    let again = begin(store, &["two", "one"]).await.subscriptions;
    assert_eq!((again[0].id, again[1].id), (first[1].id, first[0].id));
    assert_eq!(again[0].progress.through, Position::new(1));
    assert_eq!(register(store, "one").await.id, first[0].id);
}

/// Every position of it.
pub async fn r3_progress_is_kept_with_what_is_unfinished(store: &impl Store) {
    let id = begin(store, &["one"]).await.subscriptions[0].id;
    let unfinished = [1, 2, 3, 200, 70_000, 70_001].map(Position::new).to_vec();
    for progress in [
        Progress {
            through: Position::new(70_002),
            unfinished,
        },
        Progress {
            through: Position::new(70_003),
            unfinished: Vec::new(),
        },
    ] {
        change(
            store,
            vec![DeliveryChange::Progressed(id, progress.clone())],
        )
        .await
        .unwrap();
        assert_eq!(
            begin(store, &["one"]).await.subscriptions[0].progress,
            progress
        );
    }
}

/// An error of that change, and what was known stays.
pub async fn r3_progress_that_makes_no_sense_is_refused(store: &impl Store) {
    let id = begin(store, &["one"]).await.subscriptions[0].id;
    for unfinished in [vec![3, 2], vec![2, 2], vec![0], vec![6]] {
        let progress = Progress {
            through: Position::new(5),
            unfinished: unfinished.into_iter().map(Position::new).collect(),
        };
        change(store, vec![DeliveryChange::Progressed(id, progress)])
            .await
            .unwrap_err();
    }
    let kept = begin(store, &["one"])
        .await
        .subscriptions
        .remove(0)
        .progress;
    assert_eq!(kept, Progress::default());
}

pub(super) fn waiting(position: u64, attempts: u32) -> WaitingDelivery {
    WaitingDelivery {
        is_replay: false,
        position: Position::new(position),
        aggregate: notebook("a"),
        attempts,
        first_attempt_at: Timestamp::from_micros(1_000),
        due_at: Timestamp::from_micros(2_000 + i64::from(attempts)),
        last_error: format!("attempt {attempts} failed: ü"),
    }
}

/// With attempts, times and error; a later one takes its place.
pub async fn f4_a_waiting_delivery_is_kept_until_it_is_finished(store: &impl Store) {
    append_all(store, (0..3).map(|_| noted("a", ""))).await;
    let ids = begin(store, &["one", "two"]).await.subscriptions;
    let (one, two) = (ids[0].id, ids[1].id);
    let waits = |id, position, attempts| DeliveryChange::Waiting(id, waiting(position, attempts));
    let changes = vec![
        waits(one, 3, 1),
        waits(one, 1, 1),
        waits(two, 3, 1),
        waits(one, 3, 2),
    ];
    change(store, changes).await.unwrap();
    let states = begin(store, &["one", "two"]).await.subscriptions;
    assert_eq!(states[0].waiting, [waiting(1, 1), waiting(3, 2)]);
    assert_eq!(states[1].waiting, [waiting(3, 1)]);

    let finished = DeliveryChange::Finished(one, Position::new(3));
    change(store, vec![finished.clone(), finished])
        .await
        .unwrap();
    let states = begin(store, &["one", "two"]).await.subscriptions;
    assert_eq!(states[0].waiting, [waiting(1, 1)]);
    assert_eq!(states[1].waiting, [waiting(3, 1)]);
}

/// Until it has ended, or a run has ended cleanly.
pub async fn f4_an_unclean_end_counts_for_what_its_own_run_has_started(store: &impl Store) {
    append_all(store, (0..3).map(|_| noted("a", ""))).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let started = |position| DeliveryChange::Started(one, Position::new(position));
    let ends = async |changes| {
        change(store, changes).await.unwrap();
        let state = begin(store, &["one"]).await.subscriptions.remove(0);
        let started = state.started.iter();
        let ends = started.map(|it| (it.position.get(), it.unclean_ends));
        ends.collect::<Vec<_>>()
    };
    assert_eq!(ends(vec![started(1), started(2)]).await, [(1, 1), (2, 1)]);
    assert_eq!(
        ends(vec![started(2), started(3), started(2)]).await,
        [(1, 1), (2, 2), (3, 1)]
    );
    assert_eq!(ends(vec![]).await, [(1, 1), (2, 2), (3, 1)]);
    let ended = DeliveryChange::Ended(one, Position::new(2));
    assert_eq!(ends(vec![ended, started(3)]).await, [(1, 1), (3, 2)]);
    assert_eq!(ends(vec![started(2)]).await, [(1, 1), (2, 1), (3, 2)]);
    assert_eq!(ends(vec![DeliveryChange::RunEnded]).await, []);
}

/// One row, however many events wait.
pub async fn f5_a_blocked_aggregate_is_kept_until_it_is_unblocked(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("b", ""), noted("a", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let blocked = |id: &str, from| BlockedAggregate {
        parked_behind: None,
        aggregate: notebook(id),
        from: Position::new(from),
        version: Version::new(from + 10),
    };
    let blocks = [blocked("a", 1), blocked("b", 2), blocked("a", 3)];
    let changes = blocks.map(|it| DeliveryChange::Blocked(one, it));
    change(store, changes.into()).await.unwrap();
    let state = begin(store, &["one"]).await.subscriptions.remove(0);
    assert_eq!(state.blocked, [blocked("b", 2), blocked("a", 3)]);

    let unblocked = ["a", "nobody"].map(|id| DeliveryChange::Unblocked(one, notebook(id)));
    change(store, unblocked.into()).await.unwrap();
    let state = begin(store, &["one"]).await.subscriptions.remove(0);
    assert_eq!(state.blocked, [blocked("b", 2)]);
}

pub(super) async fn dead(store: &impl Store, subscription: &str, position: u64) -> DeadLetter {
    let after = Position::new(position - 1);
    let event = store.read_log(after, 1).await.unwrap().remove(0);
    DeadLetter {
        number: 0,
        subscription: subscription.into(),
        event: Arc::new(event),
        reason: DeadLetterReason::AttemptsExhausted,
        attempts: 4,
        error: "gave up".to_owned(),
        first_attempt_at: Timestamp::from_micros(5),
        dead_at: Timestamp::from_micros(6),
    }
}

/// With all that is known of it.
pub async fn f6_a_dead_letter_is_kept_and_waits_no_longer(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("a", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let letter = dead(store, "one", 2).await;
    change(store, vec![DeliveryChange::Waiting(one, waiting(2, 1))])
        .await
        .unwrap();
    change(store, vec![DeliveryChange::Dead(one, letter.clone())])
        .await
        .unwrap();
    assert!(
        begin(store, &["one"]).await.subscriptions[0]
            .waiting
            .is_empty()
    );
    let kept = store
        .dead_letters(&DeadLetterQuery::all(), 10)
        .await
        .unwrap();
    assert_eq!(kept, std::slice::from_ref(&letter));

    let again = DeadLetter {
        reason: DeadLetterReason::Permanent,
        attempts: 5,
        ..letter
    };
    change(store, vec![DeliveryChange::Dead(one, again.clone())])
        .await
        .unwrap();
    let kept = store
        .dead_letters(&DeadLetterQuery::of("one"), 10)
        .await
        .unwrap();
    assert_eq!(kept, std::slice::from_ref(&again));

    // Nor can it be told later which event an event beyond the log was.
    for nowhere in [None, Some(Position::new(3)), Some(Position::ZERO)] {
        let event = noted("a", "").seal();
        let recorded = nowhere.map(|position| Recorded {
            position,
            version: Version::FIRST,
            at: Timestamp::now(),
        });
        let event = match recorded {
            Some(recorded) => event.with_recorded(recorded),
            None => event,
        };
        let letter = DeadLetter {
            event,
            ..again.clone()
        };
        change(store, vec![DeliveryChange::Dead(one, letter)])
            .await
            .unwrap_err();
    }
    let kept = store
        .dead_letters(&DeadLetterQuery::all(), 10)
        .await
        .unwrap();
    assert_eq!(kept, [again]);
}

/// Of one subscription or of all, up to a limit.
pub async fn f6_dead_letters_are_listed_oldest_first(store: &impl Store) {
    append_all(store, (0..4).map(|_| noted("a", ""))).await;
    let ids = begin(store, &["one", "two"]).await.subscriptions;
    for (index, position) in [(0, 3), (1, 1), (0, 2), (0, 4)] {
        let letter = dead(store, ["one", "two"][index], position).await;
        change(store, vec![DeliveryChange::Dead(ids[index].id, letter)])
            .await
            .unwrap();
    }
    let list = async |query: DeadLetterQuery, limit| {
        let letters = store.dead_letters(&query, limit).await.unwrap();
        letters
            .iter()
            .map(|it| it.position().unwrap().get())
            .collect::<Vec<_>>()
    };
    assert_eq!(list(DeadLetterQuery::all(), 10).await, [3, 1, 2, 4]);
    assert_eq!(list(DeadLetterQuery::all(), 2).await, [3, 1]);
    assert_eq!(list(DeadLetterQuery::of("one"), 2).await, [3, 2]);
    assert!(list(DeadLetterQuery::of("nobody"), 10).await.is_empty());
}

/// With all changes beside it, while its neighbours are committed.
pub async fn a_change_of_an_unknown_subscription_fails_alone(store: &impl Store) {
    append_all(store, [noted("a", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let unknown = SubscriptionId::new(one.get() + 1_000);
    let progressed = |id, through| {
        let through = Position::new(through);
        DeliveryChange::Progressed(
            id,
            Progress {
                through,
                unfinished: Vec::new(),
            },
        )
    };
    let (send, receive) = mpsc::channel();
    for changes in [
        vec![progressed(one, 2)],
        vec![progressed(one, 3), progressed(unknown, 3)],
        vec![DeliveryChange::Waiting(unknown, waiting(1, 1))],
    ] {
        let send = send.clone();
        store.submit_changes(
            changes,
            Box::new(move |end| send.send(end.is_ok()).unwrap_or(())),
        );
    }
    append_all(store, [noted("a", "")]).await;
    assert_eq!(receive.try_iter().collect::<Vec<_>>(), [true, false, false]);
    let progress = begin(store, &["one"])
        .await
        .subscriptions
        .remove(0)
        .progress;
    assert_eq!(progress.through, Position::new(2));
}

/// The first run has none before it, and so follows a clean end.
pub async fn a_clean_end_is_told_from_an_unclean_one(store: &impl Store) {
    assert!(begin(store, &[]).await.after_clean_end);
    assert!(!begin(store, &[]).await.after_clean_end);
    change(store, vec![DeliveryChange::RunEnded]).await.unwrap();
    assert!(begin(store, &[]).await.after_clean_end);
    assert!(!begin(store, &[]).await.after_clean_end);
}
