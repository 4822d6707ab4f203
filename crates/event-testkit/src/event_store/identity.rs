//! Which event it is, and what its history has to be (P6).

use std::sync::mpsc;

use domain_events::{
    AppendError, Appended, EventId, ExpectedVersion, NewEvent, Position, Timestamp, Version,
};

use super::{
    Numbered, PATIENCE, Store, Torn, append_all, append_one, batch, notebook, noted, position,
};

/// Each event sees the ones before it.
pub async fn p6_expected_versions_are_checked_in_order_within_a_batch(store: &impl Store) {
    let exact = |number| ExpectedVersion::Exact(Version::new(number));
    let events = [
        noted("a", "").expect(ExpectedVersion::NoStream),
        noted("a", "").expect(ExpectedVersion::Exists),
        noted("b", "").expect(exact(0)),
        noted("a", "").expect(exact(2)),
    ];
    assert_eq!(append_all(store, events).await, [1, 2, 3, 4]);
    let refused = [
        noted("a", "").expect(exact(3)),
        noted("a", "").expect(exact(3)),
    ];
    store.append(batch(refused)).await.unwrap_err();
    assert_eq!(
        append_all(store, [noted("a", "").expect(exact(3))]).await,
        [5]
    );
}

/// With zero for an aggregate that has no history.
pub async fn p6_a_conflict_names_expected_and_actual_version(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("a", "")]).await;
    let exact = ExpectedVersion::Exact(Version::new(3));
    for (id, wanted, found) in [
        ("a", ExpectedVersion::NoStream, 2),
        ("a", exact, 2),
        ("b", ExpectedVersion::Exists, 0),
        ("b", exact, 0),
    ] {
        match append_one(store, noted(id, "").expect(wanted)).await {
            Err(AppendError::WrongVersion {
                aggregate,
                expected,
                actual,
            }) => {
                assert_eq!((aggregate, expected), (notebook(id), wanted));
                assert_eq!(actual, Version::new(found));
            }
            other => panic!("not a conflict: {other:?}"),
        }
    }
}

/// The call returns the event's place, and says that it was there.
pub async fn p6_the_same_event_again_is_not_appended_again(store: &impl Store) {
    let id = EventId::new();
    let event = || noted("a", "once").id(id);
    let first = append_one(store, event()).await.unwrap();
    append_all(store, [noted("a", "later")]).await;
    let again = append_one(store, event()).await.unwrap();
    assert!(!first.already_there && again.already_there);
    assert_eq!(again.event.recorded(), first.event.recorded());
    assert_eq!(store.head().await.unwrap(), Position::new(2));
    assert_eq!(append_all(store, [noted("a", "next")]).await, [3]);
}

/// A repeated attempt finds its event although the version has moved on.
pub async fn p6_the_id_is_checked_before_the_version(store: &impl Store) {
    let id = EventId::new();
    let event = || noted("a", "").id(id).expect(ExpectedVersion::NoStream);
    append_one(store, event()).await.unwrap();
    assert!(append_one(store, event()).await.unwrap().already_there);
}

/// Other payload, other aggregate or other type.
pub async fn p6_an_id_with_other_content_is_taken(store: &impl Store) {
    let id = EventId::new();
    append_all(store, [noted("z", ""), noted("a", "mine").id(id)]).await;
    let torn = NewEvent::new(Torn {
        notebook: "a".to_owned(),
    });
    for other in [noted("a", "other"), noted("b", "mine"), torn] {
        match append_one(store, other.id(id)).await {
            Err(AppendError::IdTaken {
                id: taken,
                position,
            }) => {
                assert_eq!((taken, position.get()), (id, 2));
            }
            other => panic!("not taken: {other:?}"),
        }
    }
    assert_eq!(store.head().await.unwrap(), Position::new(2));
}

/// Though a reader of JSON may take two large ones for the same.
pub async fn p6_numbers_of_any_size_tell_contents_apart(store: &impl Store) {
    let id = EventId::new();
    let numbered = |number| NewEvent::new(Numbered { number }).id(id);
    let number = u128::from(u64::MAX) + 1;
    append_all(store, [numbered(number)]).await;
    // The last of them has the same digits.
    for other in [number + 1, number + 45] {
        match append_one(store, numbered(other)).await {
            Err(AppendError::IdTaken { position, .. }) => assert_eq!(position, Position::FIRST),
            end => panic!("{other}: {end:?}"),
        }
    }
    assert!(
        append_one(store, numbered(number))
            .await
            .unwrap()
            .already_there
    );
}

/// All or nothing, also where some of it was there before.
pub async fn p6_a_batch_that_is_partly_there_is_refused(store: &impl Store) {
    let ids = [EventId::new(), EventId::new(), EventId::new()];
    let event = |index: usize| noted("a", "").id(ids[index]);
    append_all(store, [event(1)]).await;
    match store.append(batch([event(0), event(1), event(2)])).await {
        Err(AppendError::PartlyThere {
            present: 1,
            batch: 3,
        }) => {}
        other => panic!("not partly there: {other:?}"),
    }
    assert_eq!(store.head().await.unwrap(), Position::new(1));
}

/// Whatever the order in which it comes again.
pub async fn p6_a_batch_that_is_wholly_there_returns_its_places(store: &impl Store) {
    let ids = [EventId::new(), EventId::new()];
    let event = |index: usize| noted("a", "").id(ids[index]);
    append_all(store, [event(0), event(1)]).await;
    let again = store.append(batch([event(1), event(0)])).await.unwrap();
    assert!(again.iter().all(|event| event.already_there));
    assert_eq!(again.iter().map(position).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(store.head().await.unwrap(), Position::new(2));
}

/// The second is there already, at the place of the first.
pub async fn p6_an_event_twice_in_a_batch_is_appended_once(store: &impl Store) {
    let id = EventId::new();
    let events = || [noted("a", "").id(id), noted("b", ""), noted("a", "").id(id)];
    let appended = store.append(batch(events())).await.unwrap();
    assert_eq!(appended.iter().map(position).collect::<Vec<_>>(), [1, 2, 1]);
    let there: Vec<bool> = appended.iter().map(|it| it.already_there).collect();
    assert_eq!(there, [false, false, true]);
    assert_eq!(append_all(store, [noted("a", "")]).await, [3]);
}

/// Neither can be the one that has the id.
pub async fn p6_two_contents_under_one_id_in_a_batch_are_refused(store: &impl Store) {
    let id = EventId::new();
    let events = [noted("a", "one").id(id), noted("a", "other").id(id)];
    match store.append(batch(events)).await {
        Err(AppendError::IdTaken {
            position: Position::ZERO,
            ..
        }) => {}
        other => panic!("not taken: {other:?}"),
    }
    assert_eq!(store.head().await.unwrap(), Position::ZERO);
}

/// An id says nothing of when its event comes: neither the first time nor the second.
pub async fn p6_an_event_with_an_older_id_than_others_is_found_again(store: &impl Store) {
    let newest = EventId::from_key(Timestamp::from_micros(i64::MAX), "newest");
    let oldest = EventId::from_key(Timestamp::from_micros(0), "oldest");
    let cause = EventId::new();
    let ids = [
        newest,
        cause,
        EventId::derived(cause, "one", 1),
        EventId::derived(cause, "one", 2),
        oldest,
        EventId::from_bytes([0; 16]),
    ];
    for (id, at) in ids.into_iter().zip(1..) {
        assert_eq!(append_all(store, [noted("a", "").id(id)]).await, [at]);
    }
    for (id, at) in ids.into_iter().zip(1..) {
        let again = append_one(store, noted("a", "").id(id)).await.unwrap();
        assert!(again.already_there, "{id}");
        assert_eq!(position(&again), at);
    }
    assert_eq!(store.head().await.unwrap(), Position::new(6));
}

/// What was refused is not there, and what was not refused is.
pub async fn p6_an_event_is_found_again_after_a_refused_neighbour(store: &impl Store) {
    let (kept, refused) = (EventId::new(), EventId::new());
    let no = || {
        let events = [noted("b", ""), noted("b", "").id(refused)];
        events.map(|event| event.expect(ExpectedVersion::Exists))
    };
    let event = || noted("a", "").id(kept);
    let answers = answers(
        store,
        vec![no().into(), vec![event()], no().into(), vec![event()]],
    );
    assert_eq!(answers, [None, Some((1, false)), None, Some((1, true))]);
    assert_eq!(append_all(store, [noted("b", "").id(refused)]).await, [2]);
}

/// Whatever shares the commit with it, and in whatever order its id stands to theirs.
pub async fn p6_an_event_is_found_again_within_one_group(store: &impl Store) {
    let mut ids: Vec<EventId> = (0..20).map(|_| EventId::new()).collect();
    ids.reverse();
    let twice = ids
        .iter()
        .chain(&ids)
        .map(|id| vec![noted("a", "").id(*id)]);
    let places = answers(store, twice.collect());
    let expected = (1..=20).map(|at| Some((at, false)));
    let expected = expected.chain((1..=20).map(|at| Some((at, true))));
    assert_eq!(places, expected.collect::<Vec<_>>());
    assert_eq!(store.head().await.unwrap(), Position::new(20));
}

/// Hands batches over without waiting: where the first event of each is, and whether it was there.
fn answers(store: &impl Store, batches: Vec<Vec<NewEvent>>) -> Vec<Option<(u64, bool)>> {
    let (send, receive) = mpsc::channel();
    let count = batches.len();
    for events in batches {
        let send = send.clone();
        let done = move |end: Result<Vec<Appended>, AppendError>| {
            let first = end
                .ok()
                .map(|all| (position(&all[0]), all[0].already_there));
            send.send(first).unwrap_or(());
        };
        store.submit(batch(events), Box::new(done));
    }
    let answer = |_| receive.recv_timeout(PATIENCE).expect("an answer");
    (0..count).map(answer).collect()
}
