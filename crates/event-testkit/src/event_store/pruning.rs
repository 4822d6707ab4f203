//! What a log keeps when it is pruned: everything that somebody is still to have.

use std::sync::Arc;

use domain_events::{
    BlockedAggregate, DeadLetterQuery, DeliveryChange, EventQuery, Position, Pruned, Retention,
    StartFrom, StoreErrorKind, Timestamp, Version, WaitingDelivery,
};

use super::{
    FIRST, LAST, Store, append_all, append_one, batch,
    deliveries::{begin, change, dead, register_at, registration, waiting},
    figures::progressed,
    log, notebook, noted, position, read_history, text, version,
};

async fn prune(store: &impl Store, keep: Retention) -> (u64, u64) {
    let Pruned { events, through } = store.prune(keep).await.expect("pruned");
    assert_eq!(store.pruned_through().await.expect("read"), through);
    let statistics = store.statistics().await.expect("read");
    assert_eq!(statistics.pruned_through, through);
    (events, through.get())
}

async fn ten_events(store: &impl Store) {
    append_all(store, (0..10).map(|number| noted("a", &number.to_string()))).await;
}

async fn positions(store: &impl Store) -> Vec<u64> {
    log(store).await.into_iter().map(|it| it.0).collect()
}

/// And what comes next goes on where it was: in position, version, and what is expected of both.
pub async fn r8_a_pruned_log_goes_on_where_it_was(store: &impl Store) {
    ten_events(store).await;
    let kept = Retention::Latest(3);
    assert_eq!(prune(store, kept).await, (7, 7));
    assert_eq!(prune(store, kept).await, (0, 7), "once is enough");
    assert_eq!(positions(store).await, [8, 9, 10]);
    let history = read_history(store, "a", FIRST..=LAST, 9).await;
    assert_eq!(history.iter().map(version).collect::<Vec<_>>(), [8, 9, 10]);
    let summary = store.summary(&EventQuery::Log).await.unwrap();
    let first = summary.first.map(|it| it.position.get());
    assert_eq!((summary.events, first), (3, Some(8)));

    assert_eq!(prune(store, Retention::Latest(0)).await, (3, 10));
    assert!(positions(store).await.is_empty());
    assert!(read_history(store, "a", FIRST..=LAST, 9).await.is_empty());
    assert_eq!(store.head().await.unwrap(), Position::new(10));
    let next = noted("a", "10").expect(domain_events::ExpectedVersion::Exact(Version::new(10)));
    let next = append_one(store, next).await.unwrap();
    assert_eq!((position(&next), version(&next.event)), (11, 11));
    assert_eq!(prune(store, kept).await, (0, 10), "it is not taken back");
}

/// By number, by position, and by the time of recording.
pub async fn r8_the_log_is_pruned_up_to_what_is_to_be_kept(store: &impl Store) {
    ten_events(store).await;
    assert_eq!(prune(store, Retention::Latest(99)).await, (0, 0));
    assert_eq!(
        prune(store, Retention::After(Position::new(2))).await,
        (2, 2)
    );
    let all = store.read_log(Position::ZERO, 99).await.unwrap();
    let (first, last) = (all[0].recorded().unwrap(), all[7].recorded().unwrap());
    // Events that were recorded at once go or stay together.
    assert_eq!(prune(store, Retention::Since(first.at)).await, (0, 2));
    let later = Timestamp::from_micros(last.at.as_micros() + 1);
    assert_eq!(prune(store, Retention::Since(later)).await, (8, 10));
}

/// Whatever the reason: it was not looked at, it is open, it waits, or its aggregate is blocked.
pub async fn r8_what_is_not_finished_is_kept(store: &impl Store) {
    ten_events(store).await;
    let ids = store
        .begin_run(vec![
            registration("one", StartFrom::Beginning),
            registration("two", StartFrom::After(Position::new(9))),
        ])
        .await
        .unwrap()
        .subscriptions;
    let (one, two) = (ids[0].id, ids[1].id);
    let all = Retention::Latest(0);
    assert_eq!(prune(store, all).await, (0, 0), "one has not looked at any");
    progressed(store, one, 10, &[3, 5]).await;
    assert_eq!(prune(store, all).await, (2, 2), "one has 3 open");
    let blocked = BlockedAggregate {
        aggregate: notebook("a"),
        from: Position::new(5),
        version: Version::new(5),
        parked_behind: None,
    };
    let changes = vec![
        DeliveryChange::Waiting(two, waiting(4, 1)),
        DeliveryChange::Blocked(one, blocked),
    ];
    change(store, changes).await.unwrap();
    progressed(store, one, 10, &[]).await;
    assert_eq!(prune(store, all).await, (1, 3), "4 waits for two");
    let finished = DeliveryChange::Finished(two, Position::new(4));
    change(store, vec![finished]).await.unwrap();
    assert_eq!(prune(store, all).await, (1, 4), "from 5 on one is blocked");
    let unblocked = DeliveryChange::Unblocked(one, notebook("a"));
    change(store, vec![unblocked]).await.unwrap();
    assert_eq!(prune(store, all).await, (5, 9), "two has not looked at 10");
    // Nobody needs to be there: a name that is stored holds the log.
    begin(store, &["one"]).await;
    assert_eq!(prune(store, all).await, (0, 9));
    let forgotten = DeliveryChange::Forgotten("two".into());
    change(store, vec![forgotten]).await.unwrap();
    assert_eq!(prune(store, all).await, (1, 10));
}

/// Whole, and while it is replayed, but not in the log.
pub async fn r8_the_event_of_a_dead_letter_is_kept(store: &impl Store) {
    ten_events(store).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let mut ids = Vec::new();
    for position in [3, 10] {
        let letter = dead(store, "one", position).await;
        ids.push(letter.event_id());
        let given_up = DeliveryChange::Dead(one, letter);
        change(store, vec![given_up]).await.unwrap();
    }
    let (replay, all) = (ids[0], Retention::Latest(0));
    assert_eq!(prune(store, all).await, (8, 10));
    assert!(positions(store).await.is_empty());
    assert!(read_history(store, "a", FIRST..=LAST, 9).await.is_empty());
    let statistics = store.statistics().await.unwrap();
    assert_eq!((statistics.log.events, statistics.by_type.len()), (0, 0));
    let letters = store
        .dead_letters(&DeadLetterQuery::all(), 9)
        .await
        .unwrap();
    let texts: Vec<_> = letters
        .iter()
        .map(|it| {
            let event = Arc::clone(&it.event);
            event.typed::<super::Noted>().unwrap().text.clone()
        })
        .collect();
    assert_eq!(texts, ["2", "9"]);

    let replayed = WaitingDelivery {
        is_replay: true,
        ..waiting(3, 0)
    };
    let discarded = DeliveryChange::Discarded {
        subscription: "one".into(),
        position: Position::new(10),
        reason: "of no use".to_owned(),
    };
    let changes = vec![DeliveryChange::Replayed(one, replayed), discarded];
    change(store, changes).await.unwrap();
    assert_eq!(prune(store, all).await, (1, 10), "the discarded one goes");
    assert!(store.get(ids[1]).await.unwrap().is_none());
    let kept = store.get(replay).await.unwrap().expect("still to be made");
    assert_eq!(text(kept), "2");
    let kept = store.at(Position::new(3)).await.unwrap().map(text);
    assert_eq!(kept.as_deref(), Some("2"));
    assert!(store.at(Position::new(10)).await.unwrap().is_none());
    let unfinished = store.read(&EventQuery::Unfinished, Position::ZERO, 9).await;
    assert_eq!(unfinished.unwrap().len(), 1);
    let finished = DeliveryChange::Finished(one, Position::new(3));
    change(store, vec![finished]).await.unwrap();
    assert_eq!(prune(store, all).await, (1, 10));
    assert!(store.get(replay).await.unwrap().is_none());
}

/// As long as it is not known to have ended.
pub async fn r8_the_event_of_a_delivery_that_was_started_is_kept(store: &impl Store) {
    ten_events(store).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let (started, ended) = (DeliveryChange::Started, DeliveryChange::Ended);
    change(store, vec![started(one, Position::new(4))])
        .await
        .unwrap();
    assert_eq!(prune(store, Retention::Latest(0)).await, (9, 10));
    assert!(store.at(Position::new(4)).await.unwrap().is_some());
    change(store, vec![ended(one, Position::new(4))])
        .await
        .unwrap();
    assert_eq!(prune(store, Retention::Latest(0)).await, (1, 10));
}

/// With what was handed over before it.
pub async fn r8_what_was_appended_before_is_pruned(store: &impl Store) {
    for number in 0..50 {
        let events = (0..40).map(|_| noted(&number.to_string(), "text"));
        store.submit(batch(events), Box::new(|_| ()));
    }
    let pruned = store.prune(Retention::Latest(7)).await.unwrap();
    assert_eq!(pruned.events, 50 * 40 - 7);
}

/// And neither begun, registered nor reset; one that is known goes on wherever it would have started.
pub async fn r8_a_start_before_what_is_kept_is_refused(store: &impl Store) {
    ten_events(store).await;
    begin(store, &["known"]).await;
    prune(store, Retention::Latest(4)).await;
    let (pruned, kept) = (Position::new(6), StoreErrorKind::Pruned(Position::new(6)));
    for start in [StartFrom::Beginning, StartFrom::After(Position::new(5))] {
        let all = vec![
            registration("new", StartFrom::Now),
            registration("early", start),
        ];
        let error = store.begin_run(all).await.unwrap_err();
        assert_eq!(error.kind(), kept);
        let cause = std::error::Error::source(&error)
            .expect("a cause")
            .to_string();
        assert!(
            cause.contains("\"early\"") && cause.contains('6'),
            "{cause}"
        );
        let error = register_at(store, "early", start).await.unwrap_err();
        assert_eq!(error.kind(), kept);
        let reset = DeliveryChange::Reset("known".into(), start);
        let error = change(store, vec![reset]).await.unwrap_err();
        assert_eq!(error.kind(), kept);
    }
    let stored = store.subscriptions().await.unwrap();
    let places: Vec<_> = stored.iter().map(|it| (&*it.name, it.through)).collect();
    assert_eq!(places, [("known", Position::new(10))]);

    let begun = store
        .begin_run(vec![
            registration("known", StartFrom::Beginning),
            registration("last", StartFrom::After(pruned)),
        ])
        .await
        .unwrap();
    // The run that was refused is none.
    assert!(!begun.after_clean_end);
    assert_eq!(begun.subscriptions[1].progress.through, pruned);
    let reset = DeliveryChange::Reset("known".into(), StartFrom::After(pruned));
    change(store, vec![reset]).await.unwrap();
    assert_eq!(prune(store, Retention::Latest(0)).await, (0, 6));
}

/// Wherever they start: far ahead, they have nothing to have.
pub async fn r8_who_starts_far_ahead_holds_nothing(store: &impl Store) {
    ten_events(store).await;
    let far = StartFrom::After(Position::new(u64::MAX));
    store
        .begin_run(vec![registration("far", far)])
        .await
        .unwrap();
    assert_eq!(prune(store, Retention::Latest(2)).await, (8, 8));
}

/// Reaches back as far as the log does.
pub async fn r8_an_event_that_was_pruned_is_appended_again(store: &impl Store) {
    let event = noted("a", "");
    let id = domain_events::EventId::new();
    let once = append_one(store, event.id(id)).await.unwrap();
    assert_eq!(position(&once), 1);
    prune(store, Retention::Latest(0)).await;
    let again = append_one(store, noted("a", "").id(id)).await.unwrap();
    assert!(!again.already_there);
    assert_eq!((position(&again), version(&again.event)), (2, 2));
}
