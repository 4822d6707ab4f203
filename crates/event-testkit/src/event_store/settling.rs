//! What is kept of pauses, parking, dead letters that are settled, attempts, and of names that go.

use std::{sync::Arc, time::Duration};

use domain_events::{
    AttemptResult, BlockedAggregate, DeadLetterQuery, DeliveryChange, PauseReason, Position,
    ProcessingOutcome, Progress, Registration, StartFrom, Timestamp, Version, WaitingDelivery,
};

use super::{
    Store, append_all,
    deliveries::{begin, change, dead, waiting},
    notebook, noted,
};

/// Until it is taken back, with its reason.
pub async fn f5_a_pause_is_kept(store: &impl Store) {
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    for why in [
        Some(PauseReason::Asked),
        Some(PauseReason::DeadLetter),
        None,
    ] {
        let paused = DeliveryChange::Paused(one, why);
        change(store, vec![paused]).await.unwrap();
        let states = begin(store, &["one", "two"]).await.subscriptions;
        assert_eq!((states[0].paused, states[1].paused), (why, None));
        assert_eq!(store.subscriptions().await.unwrap()[0].paused, why);
    }
}

/// With the event behind whose dead letter it is.
pub async fn f5_a_parked_aggregate_is_kept(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("a", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let letter = dead(store, "one", 1).await;
    for parked_behind in [Some(letter.event_id()), None] {
        let parked = BlockedAggregate {
            aggregate: notebook("a"),
            from: Position::new(2),
            version: Version::new(2),
            parked_behind,
        };
        let parks = DeliveryChange::Blocked(one, parked.clone());
        change(store, vec![parks]).await.unwrap();
        let state = begin(store, &["one"]).await.subscriptions.remove(0);
        assert_eq!(state.blocked, [parked]);
    }
}

/// In place of the letter; and the same delivery may be given up once more.
pub async fn f6_a_letter_that_is_replayed_waits(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("a", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let letter = dead(store, "one", 1).await;
    let replay = WaitingDelivery {
        is_replay: true,
        ..waiting(1, 0)
    };
    let all = DeadLetterQuery::all();
    // Without a letter there is nothing to deliver again.
    let replayed = || vec![DeliveryChange::Replayed(one, replay.clone())];
    change(store, replayed()).await.unwrap();
    let states = begin(store, &["one"]).await.subscriptions;
    assert_eq!(states[0].waiting, []);
    for _ in 0..2 {
        let given_up = DeliveryChange::Dead(one, letter.clone());
        change(store, vec![given_up]).await.unwrap();
        assert_eq!(store.dead_letters(&all, 9).await.unwrap().len(), 1);
        change(store, replayed()).await.unwrap();
        assert_eq!(store.dead_letters(&all, 9).await.unwrap(), []);
        let states = begin(store, &["one"]).await.subscriptions;
        assert_eq!(states[0].waiting, std::slice::from_ref(&replay));
    }
    let finished = DeliveryChange::Finished(one, Position::new(1));
    change(store, vec![finished]).await.unwrap();
    let states = begin(store, &["one"]).await.subscriptions;
    assert_eq!(states[0].waiting, []);
}

/// By name, whether or not anybody is registered by it; twice is harmless.
pub async fn f6_a_discarded_letter_is_gone(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("b", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    for position in [1, 2] {
        let letter = dead(store, "one", position).await;
        let given_up = DeliveryChange::Dead(one, letter);
        change(store, vec![given_up]).await.unwrap();
    }
    let second = Some(dead(store, "one", 2).await.event_id());
    for (aggregate, position) in [("a", 1), ("b", 2)] {
        let letter = dead(store, "one", position).await;
        let parked = BlockedAggregate {
            aggregate: notebook(aggregate),
            from: Position::new(position + 2),
            version: Version::new(2),
            parked_behind: Some(letter.event_id()),
        };
        let parks = DeliveryChange::Blocked(one, parked);
        change(store, vec![parks]).await.unwrap();
    }
    let discarded = |name: &str| DeliveryChange::Discarded {
        subscription: name.into(),
        position: Position::new(1),
        reason: "of no use".to_owned(),
    };
    let changes = vec![discarded("nobody"), discarded("one"), discarded("one")];
    change(store, changes).await.unwrap();
    let left = store.dead_letters(&DeadLetterQuery::of("one"), 9).await;
    let left: Vec<_> = left.unwrap().iter().map(|it| it.position()).collect();
    assert_eq!(left, [Some(Position::new(2))]);
    // What was parked behind it is so no more, also where nobody is subscribed who would say so.
    let state = begin(store, &["one"]).await.subscriptions.remove(0);
    let parked = state.blocked.iter().map(|it| it.parked_behind);
    assert_eq!(parked.collect::<Vec<_>>(), [None, second]);
}

/// Page by page, whatever is settled and given up between two.
pub async fn f6_letters_are_listed_in_pages(store: &impl Store) {
    append_all(store, (0..5).map(|_| noted("a", ""))).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    for position in 1..=4 {
        let letter = dead(store, "one", position).await;
        let given_up = DeliveryChange::Dead(one, letter);
        change(store, vec![given_up]).await.unwrap();
    }
    let positions = async |query: &DeadLetterQuery| {
        let page = store.dead_letters(query, 2).await.unwrap();
        let positions = page.iter().map(|it| it.position().map_or(0, Position::get));
        (positions.collect::<Vec<_>>(), page.last().cloned())
    };
    let all = DeadLetterQuery::all();
    let (first, last) = positions(&all).await;
    assert_eq!(first, [1, 2]);
    // The last of the page is delivered again, and dies again.
    let replay = WaitingDelivery {
        is_replay: true,
        ..waiting(2, 0)
    };
    let letter = dead(store, "one", 2).await;
    let changes = vec![
        DeliveryChange::Replayed(one, replay),
        DeliveryChange::Dead(one, letter),
    ];
    change(store, changes).await.unwrap();
    let mut query = all.after(&last.unwrap());
    for expected in [&[3, 4][..], &[2], &[]] {
        let (page, last) = positions(&query).await;
        assert_eq!(page, expected);
        query = last.map_or(query.clone(), |last| query.after(&last));
    }
}

/// By subscription and error, in the order of their first letters.
pub async fn f6_letters_are_grouped_and_found_by_event(store: &impl Store) {
    append_all(store, ["a", "b", "c"].map(|id| noted(id, ""))).await;
    let ids = begin(store, &["one", "two"]).await.subscriptions;
    let errors = [
        (0, 1, "bounced"),
        (1, 1, "bounced"),
        (0, 2, "full"),
        (0, 3, "bounced"),
    ];
    for (subscription, position, error) in errors {
        let name = ["one", "two"][subscription];
        let mut letter = dead(store, name, position).await;
        letter.error = error.to_owned();
        letter.dead_at = Timestamp::from_micros(position as i64);
        let given_up = DeliveryChange::Dead(ids[subscription].id, letter);
        change(store, vec![given_up]).await.unwrap();
    }
    let groups = store
        .dead_letter_groups(&DeadLetterQuery::all())
        .await
        .unwrap();
    let told: Vec<_> = groups
        .iter()
        .map(|it| (&*it.subscription, &*it.error, it.letters))
        .collect();
    assert_eq!(
        told,
        [
            ("one", "bounced", 2),
            ("two", "bounced", 1),
            ("one", "full", 1)
        ]
    );
    let times = Timestamp::from_micros(1)..=Timestamp::from_micros(3);
    assert_eq!(groups[0].dead_at, times);
    let of_two = store
        .dead_letter_groups(&DeadLetterQuery::of("two"))
        .await
        .unwrap();
    assert_eq!(of_two.len(), 1);
    let event = dead(store, "one", 2).await.event_id();
    let found = store
        .dead_letters(&DeadLetterQuery::all().event(event), 9)
        .await
        .unwrap();
    assert_eq!((found.len(), found[0].event_id()), (1, event));
}

/// The first that is known of the former names; and its letters with it.
pub async fn d8_a_former_name_becomes_the_new_one(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("a", "")]).await;
    let old = begin(store, &["old", "other"]).await.subscriptions[0].id;
    let letter = dead(store, "old", 1).await;
    let given_up = DeliveryChange::Dead(old, letter);
    change(store, vec![given_up]).await.unwrap();
    let renamed = || Registration {
        name: "new".into(),
        former_names: ["oldest", "old"].map(Arc::from).into(),
        start_from: StartFrom::Beginning,
        projection: None,
    };
    for _ in 0..2 {
        let state = store.begin_run(vec![renamed()]).await.unwrap();
        assert_eq!(state.subscriptions[0].id, old);
        assert_eq!(state.subscriptions[0].progress.through, Position::new(2));
    }
    let letters = store.dead_letters(&DeadLetterQuery::of("new"), 9).await;
    assert_eq!(letters.unwrap().len(), 1);
    let stored = store.subscriptions().await.unwrap();
    let names: Vec<_> = stored.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["new", "other"]);
}

/// With its lag, counted once an event, and its letters.
pub async fn d8_every_name_is_told_with_its_lag(store: &impl Store) {
    append_all(store, ["a", "a", "b", "c"].map(|id| noted(id, ""))).await;
    let ids = begin(store, &["one", "two"]).await.subscriptions;
    let progress = Progress {
        through: Position::new(3),
        unfinished: vec![Position::new(3)],
    };
    let blocked = BlockedAggregate {
        aggregate: notebook("a"),
        from: Position::new(1),
        version: Version::new(1),
        parked_behind: None,
    };
    let changes = vec![
        DeliveryChange::Progressed(ids[0].id, progress),
        DeliveryChange::Blocked(ids[0].id, blocked),
        DeliveryChange::Waiting(ids[0].id, waiting(1, 1)),
        DeliveryChange::Dead(ids[1].id, dead(store, "two", 2).await),
    ];
    change(store, changes).await.unwrap();
    let stored = store.subscriptions().await.unwrap();
    let told: Vec<_> = stored
        .iter()
        .map(|it| (&*it.name, it.through.get(), it.lag, it.dead))
        .collect();
    // Positions 1 and 2 are blocked, 3 is open, 4 was not looked at.
    assert_eq!(told, [("one", 3, 4, 0), ("two", 4, 0, 1)]);
}

/// Begun anew at another place, all that was known behind it is forgotten; forgotten, it is new.
pub async fn d8_a_subscription_is_reset_and_forgotten(store: &impl Store) {
    append_all(store, ["a", "a", "b", "c"].map(|id| noted(id, ""))).await;
    let one = begin(store, &["one", "two"]).await.subscriptions[0].id;
    let blocked = BlockedAggregate {
        aggregate: notebook("b"),
        from: Position::new(3),
        version: Version::new(1),
        parked_behind: None,
    };
    let changes = vec![
        DeliveryChange::Dead(one, dead(store, "one", 1).await),
        DeliveryChange::Dead(one, dead(store, "one", 4).await),
        DeliveryChange::Blocked(one, blocked),
        DeliveryChange::Waiting(one, waiting(3, 1)),
        DeliveryChange::Started(one, Position::new(3)),
    ];
    change(store, changes).await.unwrap();
    let resets = |start| DeliveryChange::Reset("one".into(), start);
    change(store, vec![resets(StartFrom::After(Position::new(2)))])
        .await
        .unwrap();
    let state = begin(store, &["one"]).await.subscriptions.remove(0);
    assert_eq!(state.id, one);
    assert_eq!(state.progress.through, Position::new(2));
    assert!(state.waiting.is_empty() && state.blocked.is_empty() && state.started.is_empty());
    let all = DeadLetterQuery::all();
    let letters = || store.dead_letters(&all, 9);
    let left: Vec<_> = letters()
        .await
        .unwrap()
        .iter()
        .map(|it| it.position())
        .collect();
    assert_eq!(left, [Some(Position::new(1))], "that of an event before");
    change(
        store,
        vec![
            resets(StartFrom::Now),
            DeliveryChange::Reset("no".into(), StartFrom::Now),
        ],
    )
    .await
    .unwrap();
    let state = begin(store, &["one"]).await.subscriptions.remove(0);
    assert_eq!(state.progress.through, Position::new(4));

    let forgotten = || vec![DeliveryChange::Forgotten("one".into())];
    for _ in 0..2 {
        change(store, forgotten()).await.unwrap();
    }
    assert_eq!(letters().await.unwrap(), []);
    let names: Vec<_> = store.subscriptions().await.unwrap();
    assert_eq!(names.len(), 1);
    let gone = DeliveryChange::Finished(one, Position::new(1));
    change(store, vec![gone]).await.unwrap_err();
    append_all(store, [noted("a", "")]).await;
    let anew = begin(store, &["one"]).await.subscriptions.remove(0);
    assert_ne!(anew.id, one);
    assert_eq!(
        anew.progress.through,
        Position::new(5),
        "where a new one starts"
    );
}

/// The latest so many, the last one first, of one subscription or of all.
pub async fn a_processing_log_keeps_the_latest(store: &impl Store) {
    append_all(store, [noted("a", "")]).await;
    let event = dead(store, "one", 1).await.event_id();
    let results = [
        AttemptResult::Handled,
        AttemptResult::Skipped(None),
        AttemptResult::Skipped(Some("not needed".to_owned())),
        AttemptResult::Failed("ü".to_owned()),
        AttemptResult::Unreadable("torn".to_owned()),
    ];
    let attempt = |(place, result): (usize, &AttemptResult)| ProcessingOutcome {
        subscription: ["one", "two"][place % 2].into(),
        event_id: event,
        position: Some(Position::new(1)),
        attempt: place as u32 + 1,
        result: result.clone(),
        ended_at: Timestamp::from_micros(place as i64),
        took: Duration::from_micros(place as u64),
    };
    let attempts: Vec<_> = results.iter().enumerate().map(attempt).collect();
    for part in attempts.chunks(3) {
        let attempts = part.to_vec();
        let processed = DeliveryChange::Processed { attempts, keep: 4 };
        change(store, vec![processed]).await.unwrap();
    }
    let latest: Vec<_> = attempts.iter().rev().take(4).cloned().collect();
    assert_eq!(store.processing_log(None, 9).await.unwrap(), latest);
    assert_eq!(store.processing_log(None, 2).await.unwrap(), latest[..2]);
    let of_two = store.processing_log(Some("two"), 9).await.unwrap();
    assert_eq!(of_two, [attempts[3].clone(), attempts[1].clone()]);
}
