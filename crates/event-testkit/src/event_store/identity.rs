//! Which event it is, and what its history has to be (P6).

use domain_events::{AppendError, EventId, ExpectedVersion, NewEvent, Position, Version};

use super::{Store, Torn, append_all, append_one, batch, notebook, noted, position};

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
