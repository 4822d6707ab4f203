//! What is read: by type, by chain, by time, page after page, while others append.

use std::sync::Arc;

use domain_events::{
    CorrelationId, EventId, EventQuery, EventStream, NewEvent, Position, ReadError, Timestamp,
    Version,
};

use super::{Noted, Store, Torn, append_all, assert_each_is_itself, batch, notebook, noted};

fn torn(id: &str) -> NewEvent {
    NewEvent::new(Torn {
        notebook: id.to_owned(),
    })
}

/// Positions that a query means, read at once and checked against a stream of small pages.
async fn positions(store: &impl Store, query: EventQuery) -> Vec<u64> {
    let page = store.read(&query, Position::ZERO, 1_000).await.unwrap();
    assert_each_is_itself(store, &page).await;
    let page = page.iter().map(|event| event.position().unwrap().get());
    let page: Vec<u64> = page.collect();
    for size in [1, 2, 3, 1_000] {
        let stream = EventStream::new(store, query.clone()).page_size(size);
        assert_eq!(collect(stream).await, page, "{query:?} in pages of {size}");
    }
    let summary = store.summary(&query).await.unwrap();
    let place = |position: Option<&u64>| position.copied().map(Position::new);
    assert_eq!(summary.events, page.len() as u64, "{query:?}");
    assert_eq!(summary.first.map(|it| it.position), place(page.first()));
    assert_eq!(summary.last.map(|it| it.position), place(page.last()));
    page
}

async fn collect(mut stream: EventStream<'_, impl Store>) -> Vec<u64> {
    let mut positions = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        positions.push(event.position().unwrap().get());
    }
    positions
}

/// And of a type that nobody has used there are none.
pub async fn events_are_read_by_type(store: &impl Store) {
    append_all(
        store,
        [noted("a", ""), torn("a"), noted("b", ""), torn("b")],
    )
    .await;
    append_all(store, [noted("a", "")]).await;
    let of_type = |name: &str| EventQuery::OfType(name.into());
    assert_eq!(positions(store, of_type("testkit.noted")).await, [1, 3, 5]);
    assert_eq!(positions(store, of_type("testkit.torn")).await, [2, 4]);
    assert!(positions(store, of_type("testkit")).await.is_empty());
    let noted = of_type("testkit.noted");
    let page = store.read(&noted, Position::new(1), 1).await.unwrap();
    assert_eq!(page[0].position(), Some(Position::new(3)));
}

/// Over all aggregates, with the event that began the chain, wherever that stands.
pub async fn events_are_read_by_correlation(store: &impl Store) {
    let (root, late, given) = (EventId::new(), EventId::new(), EventId::new());
    let follows = |notebook: &str, id: EventId| {
        let text = id.to_string();
        let event = noted(notebook, &text).correlation_id(id.into());
        event.metadata("of", text)
    };
    let begins = noted("a", "begins").metadata("of", "nothing");
    append_all(store, [begins.id(root), noted("a", "")]).await;
    append_all(store, [follows("b", root), follows("c", late)]).await;
    append_all(store, [torn("a").correlation_id(root.into())]).await;
    append_all(store, [noted("a", "").id(late), follows("a", given)]).await;
    // The id of a chain, but of another one.
    append_all(store, [follows("a", root).id(given)]).await;
    let chain = |id: EventId| EventQuery::Correlated(id.into());
    assert_eq!(positions(store, chain(root)).await, [1, 3, 5, 8]);
    assert_eq!(positions(store, chain(late)).await, [4, 6]);
    assert_eq!(positions(store, chain(given)).await, [7]);
    let nobody = CorrelationId::from_bytes([7; 16]);
    let nobody = positions(store, EventQuery::Correlated(nobody)).await;
    assert!(nobody.is_empty());
}

/// Both ends included, and whatever the time is that an event says of itself.
pub async fn events_are_read_by_the_time_of_recording(store: &impl Store) {
    for number in 0..20 {
        let at = Timestamp::from_micros(1_000 - number);
        append_all(store, [noted("a", "").occurred_at(at), noted("b", "")]).await;
    }
    let log = store.read_log(Position::ZERO, 100).await.unwrap();
    let times: Vec<Timestamp> = log.iter().map(|it| it.recorded().unwrap().at).collect();
    assert!(times.is_sorted(), "recorded times ascend with positions");
    let within = |first: Timestamp, last: Timestamp| {
        let all = (1..).zip(&times);
        let meant = all.filter(|(_, at)| (first..=last).contains(at));
        meant.map(|(position, _)| position).collect::<Vec<u64>>()
    };
    let (least, most) = (i64::MIN, i64::MAX);
    let [least, most] = [least, most].map(Timestamp::from_micros);
    let before = Timestamp::from_micros(times[0].as_micros() - 1);
    let after = Timestamp::from_micros(times[39].as_micros() + 1);
    for (first, last) in [
        (least, most),
        (times[5], times[30]),
        (times[7], times[7]),
        (before, before),
        (after, most),
        (times[39], after),
        (least, times[0]),
        (times[30], times[5]),
    ] {
        let found = positions(store, EventQuery::Recorded(first..=last)).await;
        assert_eq!(found, within(first, last), "{first} to {last}");
    }
}

/// Whole or in part, and nothing of its neighbours.
pub async fn a_history_is_streamed_by_version(store: &impl Store) {
    let events = (0..20).map(|number| noted(["a", "b"][number % 2], ""));
    append_all(store, events).await;
    let of = |id, first, last| {
        let versions = Version::new(first)..=Version::new(last);
        EventQuery::History(notebook(id), versions)
    };
    let whole = (1..=10).map(|version| version * 2).collect::<Vec<u64>>();
    let history = EventQuery::history(notebook("b"));
    assert_eq!(positions(store, history).await, whole);
    assert_eq!(positions(store, of("b", 0, u64::MAX)).await, whole);
    assert_eq!(positions(store, of("b", 4, 8)).await, whole[3..8]);
    assert!(positions(store, of("b", 8, 4)).await.is_empty());
    assert!(positions(store, of("b", 11, 99)).await.is_empty());
    assert!(positions(store, of("nobody", 1, 99)).await.is_empty());
    let part = of("b", 2, 9);
    let page = store.read(&part, Position::new(10), 3).await.unwrap();
    let versions: Vec<u64> = page.iter().map(super::version).collect();
    assert_eq!(versions, [6, 7, 8]);
}

/// Everything, or what comes after a position.
pub async fn the_log_is_streamed_after_a_position(store: &impl Store) {
    assert!(positions(store, EventQuery::Log).await.is_empty());
    append_all(store, (0..10).map(|_| noted("a", ""))).await;
    let all: Vec<u64> = (1..=10).collect();
    assert_eq!(positions(store, EventQuery::Log).await, all);
    let after = |position| {
        let stream = EventStream::new(store, EventQuery::Log).page_size(3);
        collect(stream.after(Position::new(position)))
    };
    assert_eq!(after(4).await, all[4..]);
    assert!(after(10).await.is_empty());
    assert!(after(u64::MAX).await.is_empty());
}

/// Neither left out nor read twice; and what comes while it is read is read, too.
pub async fn a_stream_reads_what_is_appended_meanwhile(store: &impl Store) {
    append_all(store, (0..4).map(|_| noted("a", ""))).await;
    for query in [
        EventQuery::Log,
        EventQuery::history(notebook("a")),
        EventQuery::OfType("testkit.noted".into()),
    ] {
        let before = store.head().await.unwrap().get();
        let mut stream = EventStream::new(store, query).page_size(2);
        let mut read = Vec::new();
        while let Some(event) = stream.next().await.unwrap() {
            read.push(event.position().unwrap().get());
            if read.len() < 10 {
                append_all(store, [noted("a", "")]).await;
            }
        }
        assert!(read.len() as u64 > before);
        assert_eq!(read, (1..=read.len() as u64).collect::<Vec<_>>());
    }
}

/// A page that was read ahead may be short because that was early.
pub async fn a_stream_ends_where_the_log_does(store: &impl Store) {
    append_all(store, (0..3).map(|_| noted("a", ""))).await;
    let mut stream = EventStream::new(store, EventQuery::Log).page_size(2);
    stream.next().await.unwrap().unwrap();
    // Behind whatever is asked of the store already.
    store.head().await.unwrap();
    append_all(store, (0..3).map(|_| noted("a", ""))).await;
    assert_eq!(collect(stream).await, [2, 3, 4, 5, 6]);
}

/// In order, as far as it can be read.
pub async fn a_history_is_folded_into_a_state(store: &impl Store) {
    let texts = ["one", "two", "three"];
    append_all(store, texts.map(|text| noted("a", text))).await;
    append_all(store, [noted("b", "other")]).await;
    let history = || EventStream::new(store, EventQuery::history(notebook("a"))).page_size(2);
    let state = history().fold(String::new(), |state, event| {
        Ok::<_, ReadError>(state + &event.typed::<Noted>()?.text)
    });
    assert_eq!(state.await.unwrap(), "onetwothree");

    append_all(store, [torn("a"), noted("a", "four")]).await;
    let mut applied = 0;
    let state = history().fold((), |(), event| {
        applied += 1;
        event.typed::<Noted>().map(drop).map_err(ReadError::from)
    });
    assert!(matches!(state.await, Err(ReadError::Decode(_))));
    assert_eq!(applied, 4);
}

/// Under any name and with any text, and read by whoever asks for all of it.
pub async fn p1_odd_payloads_are_read_in_any_way(store: &impl Store) {
    let odd = [
        String::from_utf8(vec![0; 3]).unwrap(),
        "\u{feff}\u{202e}\"\\\u{2028}".to_owned(),
        "null".to_owned(),
        "💥".repeat(1_000),
    ];
    append_all(store, odd.iter().map(|text| noted("", text))).await;
    for query in [
        EventQuery::Log,
        EventQuery::history(notebook("")),
        EventQuery::OfType("testkit.noted".into()),
    ] {
        let mut stream = EventStream::new(store, query);
        for text in &odd {
            let event = stream.next().await.unwrap().unwrap();
            assert_eq!(&event.typed::<Noted>().unwrap().text, text);
        }
        assert!(stream.next().await.unwrap().is_none());
    }
}

/// Up to the byte, and its neighbours in the batch are refused with it.
pub async fn p1_a_payload_over_the_limit_is_refused_with_both_numbers(store: &impl Store) {
    use domain_events::AppendError::PayloadTooLarge;

    let frame = r#"{"notebook":"a","text":""}"#.len();
    let text = "x".repeat(1024 * 1024 - frame);
    let too_long = format!("{text}x");
    match store
        .append(batch([noted("a", ""), noted("a", &too_long)]))
        .await
    {
        Err(PayloadTooLarge { bytes, limit }) => {
            assert_eq!((bytes, limit), (1024 * 1024 + 1, 1024 * 1024));
        }
        other => panic!("appended: {other:?}"),
    }
    assert_eq!(append_all(store, [noted("a", &text)]).await, [1]);
    let event = store.read_log(Position::ZERO, 1).await.unwrap().remove(0);
    assert_eq!(Arc::new(event).typed::<Noted>().unwrap().text, text);
}
