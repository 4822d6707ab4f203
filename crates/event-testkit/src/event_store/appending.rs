//! What is appended: as it was written, dense, in order (P1, P2, P3).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;

use domain_events::{
    AppendError, Appended, CorrelationId, DomainEvent, EventId, ExpectedVersion, NewEvent,
    Position, Timestamp, Urgency,
};

use super::{
    FIRST, LAST, Noted, PATIENCE, Store, Unspeakable, append_all, append_one, batch, log, notebook,
    noted, position, read_history, text, version,
};

/// What went in comes out, to the microsecond.
pub async fn p1_an_appended_event_is_read_as_it_was_written(store: &impl Store) {
    let (id, cause) = (EventId::new(), EventId::new());
    let event = noted("a", "first")
        .id(id)
        .causation_id(cause)
        .correlation_id(CorrelationId::from(cause))
        .urgency(Urgency::High)
        .occurred_at(Timestamp::from_micros(-7))
        .metadata("user", "ü\n\"'")
        .metadata("", "");
    let before = Timestamp::now();
    let appended = append_one(store, event).await.unwrap();
    assert!(!appended.already_there);
    let read = store.get(id).await.unwrap().expect("in the log");

    for event in [&*appended.event, &read] {
        assert_eq!(event.id(), id);
        assert_eq!(event.event_type(), Noted::EVENT_TYPE);
        assert_eq!(event.schema_version(), Noted::SCHEMA_VERSION);
        assert_eq!(*event.aggregate(), notebook("a"));
        assert_eq!(event.urgency(), Urgency::High);
        assert_eq!(event.occurred_at(), Timestamp::from_micros(-7));
        assert_eq!(event.metadata().causation_id, Some(cause));
        assert_eq!(event.metadata().correlation_id, cause.into());
        assert_eq!(event.metadata().entries.len(), 2);
        assert_eq!(event.metadata().entries["user"], "ü\n\"'");
        let recorded = event.recorded().expect("recorded");
        assert!(recorded.at >= before && recorded.at <= Timestamp::now());
    }
    assert_eq!(appended.event.recorded(), read.recorded());
    assert_eq!(text(read), "first");
}

/// No text is too strange, and none is too long below the limit.
pub async fn p1_any_payload_and_any_unicode_is_kept(store: &impl Store) {
    let long = "x".repeat(100_000);
    let strange = [
        "",
        "\0",
        "'; DROP TABLE de_events --",
        "é\u{10ffff}",
        "{}",
        &long,
    ];
    for id in strange {
        append_all(store, [noted(id, id)]).await;
    }
    for id in strange {
        let history = read_history(store, id, FIRST..=LAST, 9).await;
        assert_eq!(history.len(), 1);
        assert_eq!(*history[0].aggregate(), notebook(id));
        assert_eq!(history.into_iter().map(text).collect::<Vec<_>>(), [id]);
    }
}

/// Positions are those of the log, versions those of each aggregate.
pub async fn p2_positions_and_versions_count_from_one(store: &impl Store) {
    assert_eq!(store.head().await.unwrap(), Position::ZERO);
    let mut places = Vec::new();
    for id in ["a", "b", "a", "a", "b"] {
        let appended = append_one(store, noted(id, "")).await.unwrap();
        places.push((position(&appended), version(&appended.event)));
    }
    assert_eq!(places, [(1, 1), (2, 1), (3, 2), (4, 3), (5, 2)]);
    assert_eq!(store.head().await.unwrap(), Position::new(5));
}

/// A batch has its positions to itself, whatever else is appended at the time.
pub async fn p3_a_batch_is_consecutive(store: &impl Store) {
    let (send, receive) = mpsc::channel();
    for number in 0..20 {
        let send = send.clone();
        let events = (0..10).map(|_| noted(&number.to_string(), ""));
        let done = move |result: Result<Vec<Appended>, _>| {
            let positions = result.map(|all| all.iter().map(position).collect());
            let _ = send.send(positions.unwrap_or_else(|_| Vec::new()));
        };
        store.submit(batch(events), Box::new(done));
    }
    append_all(store, []).await;
    let mut all = Vec::new();
    for _ in 0..20 {
        let positions: Vec<u64> = receive.recv_timeout(PATIENCE).unwrap();
        assert!(positions.windows(2).all(|pair| pair[1] == pair[0] + 1));
        all.extend(positions);
    }
    assert_eq!(all, (1..=200).collect::<Vec<u64>>());
}

/// The first place is answered first, and refusals and changes take their turn.
pub async fn p3_answers_come_in_the_order_of_the_log(store: &impl Store) {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let note = |number: usize| {
        let answers = Arc::clone(&answers);
        move || answers.lock().unwrap().push(number)
    };
    for number in 0..60 {
        let note = note(number);
        match number % 3 {
            0 => store.submit(batch([noted("a", "")]), Box::new(move |_| note())),
            1 => {
                let refused = noted("a", "").expect(ExpectedVersion::NoStream);
                store.submit(batch([refused]), Box::new(move |_| note()));
            }
            _ => store.submit_changes(Vec::new(), Box::new(move |_| note())),
        }
    }
    append_all(store, [noted("a", "")]).await;
    assert_eq!(*answers.lock().unwrap(), (0..60).collect::<Vec<_>>());
    assert_eq!(store.head().await.unwrap(), Position::new(21));
}

/// Nothing is appended, and that is no error.
pub async fn p3_an_empty_batch_appends_nothing(store: &impl Store) {
    assert!(append_all(store, []).await.is_empty());
    assert_eq!(store.head().await.unwrap(), Position::ZERO);
}

/// Its neighbours stay, and the positions stay dense.
pub async fn p3_a_refused_batch_leaves_no_trace_and_no_gap(store: &impl Store) {
    append_all(store, [noted("a", "1")]).await;
    let refused = [
        noted("b", "no"),
        noted("a", "no").expect(ExpectedVersion::NoStream),
    ];
    let (send, receive) = mpsc::channel();
    for events in [vec![noted("a", "2")], refused.into(), vec![noted("b", "3")]] {
        let send = send.clone();
        let done = move |result: Result<Vec<Appended>, _>| send.send(result.is_ok()).unwrap_or(());
        store.submit(batch(events), Box::new(done));
    }
    append_all(store, [noted("a", "4")]).await;
    let answers: Vec<bool> = receive.try_iter().collect();
    assert_eq!(answers, [true, false, true]);
    let expected = [(1, "1"), (2, "2"), (3, "3"), (4, "4")];
    assert_eq!(
        log(store).await,
        expected.map(|(at, text)| (at, text.to_owned()))
    );
    let history = read_history(store, "b", FIRST..=LAST, 9).await;
    assert_eq!(history.iter().map(version).collect::<Vec<_>>(), [1]);
}

/// Whether its `Serialize` fails or panics: a typed error, and the store works on.
pub async fn an_event_that_cannot_be_encoded_is_refused(store: &impl Store) {
    for panics in [false, true] {
        let events = [noted("a", ""), NewEvent::new(Unspeakable { panics })];
        match store.append(batch(events)).await {
            Err(AppendError::Encode { event_type }) => {
                assert_eq!(event_type, Unspeakable::EVENT_TYPE);
            }
            other => panic!("encoded: {other:?}"),
        }
    }
    assert_eq!(append_all(store, [noted("a", "")]).await, [1]);
}
