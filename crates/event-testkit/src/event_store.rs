//! What every store has to do: one fact a function, named after the promise it checks.
//!
//! [`event_store_conformance!`](crate::event_store_conformance) makes a test of each.

use std::{
    borrow::Cow,
    ops::RangeInclusive,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use domain_events::{
    AggregateRef, Append, AppendError, Appended, BlockedAggregate, CorrelationId, DeadLetter,
    DeadLetterReason, DecodeError, DeliveryChange, DeliveryStore, DomainEvent, EventEnvelope,
    EventId, EventStore, ExpectedVersion, NewEvent, Position, Progress, Registration, RunState,
    StartFrom, StoreError, SubscriptionId, SubscriptionState, Timestamp, Urgency, Version,
    WaitingDelivery,
};
use serde::{Deserialize, Serialize};

/// A store of events and of deliveries.
pub trait Store: EventStore + DeliveryStore {}

impl<S: EventStore + DeliveryStore + ?Sized> Store for S {}

/// Makes a test of every fact in this module, in a module `$name`.
///
/// `$fresh` is an expression that makes an empty store, `Arc<S>`, with whatever must outlive it:
/// a pair. The crate needs tokio with `rt` and `macros`.
///
/// ```ignore
/// event_testkit::event_store_conformance!(in_memory, (Arc::new(MyStore::new()), ()));
/// ```
#[macro_export]
macro_rules! event_store_conformance {
    ($name:ident, $fresh:expr) => {
        $crate::event_store_conformance! {
            @facts $name, $fresh,
            p1_an_appended_event_is_read_as_it_was_written
            p1_any_payload_and_any_unicode_is_kept
            p2_positions_and_versions_count_from_one
            p3_a_batch_is_consecutive
            p3_answers_come_in_the_order_of_the_log
            p3_an_empty_batch_appends_nothing
            p3_a_refused_batch_leaves_no_trace_and_no_gap
            p6_expected_versions_are_checked_in_order_within_a_batch
            p6_a_conflict_names_expected_and_actual_version
            p6_the_same_event_again_is_not_appended_again
            p6_the_id_is_checked_before_the_version
            p6_an_id_with_other_content_is_taken
            p6_a_batch_that_is_partly_there_is_refused
            p6_a_batch_that_is_wholly_there_returns_its_places
            p6_an_event_twice_in_a_batch_is_appended_once
            p6_two_contents_under_one_id_in_a_batch_are_refused
            an_event_that_cannot_be_encoded_is_refused
            the_log_is_read_in_pages
            a_history_is_read_by_version
            an_event_is_found_by_its_id
            an_event_of_another_type_is_not_decoded
            d8_a_new_subscription_starts_where_it_says
            d8_a_registration_is_answered_in_the_order_of_the_log
            d8_a_known_subscription_goes_on
            r3_progress_is_kept_with_what_is_unfinished
            r3_progress_that_makes_no_sense_is_refused
            f4_a_waiting_delivery_is_kept_until_it_is_finished
            f5_a_blocked_aggregate_is_kept_until_it_is_unblocked
            f6_a_dead_letter_is_kept_and_waits_no_longer
            f6_dead_letters_are_listed_oldest_first
            a_change_of_an_unknown_subscription_fails_alone
            a_clean_end_is_told_from_an_unclean_one
        }
    };
    (@facts $name:ident, $fresh:expr, $($fact:ident)*) => {
        mod $name {
            #[allow(unused_imports, reason = "what the expression names")]
            use super::*;
            $(
                #[tokio::test]
                async fn $fact() {
                    let (store, _outlives) = $fresh;
                    $crate::event_store::$fact(&*store).await;
                }
            )*
        }
    };
}

/// An event to be stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    /// The id of the aggregate.
    pub notebook: String,
    /// Anything.
    pub text: String,
}

impl DomainEvent for Noted {
    const EVENT_TYPE: &'static str = "testkit.noted";
    const AGGREGATE_TYPE: &'static str = "notebook";
    const SCHEMA_VERSION: u32 = 3;

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.notebook)
    }
}

/// Another event of the same aggregates.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Torn {
    notebook: String,
}

impl DomainEvent for Torn {
    const EVENT_TYPE: &'static str = "testkit.torn";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.notebook)
    }
}

/// An event that cannot be written as JSON.
#[derive(Clone, Debug, Deserialize)]
struct Unspeakable {
    panics: bool,
}

impl Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        assert!(!self.panics, "an event's own panic");
        Err(serde::ser::Error::custom("no words"))
    }
}

impl DomainEvent for Unspeakable {
    const EVENT_TYPE: &'static str = "testkit.unspeakable";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed("a")
    }
}

/// An event of the aggregate `notebook`.
pub fn noted(notebook: &str, text: &str) -> NewEvent {
    NewEvent::new(Noted {
        notebook: notebook.to_owned(),
        text: text.to_owned(),
    })
}

/// The aggregate of [`noted`] events.
pub fn notebook(id: &str) -> AggregateRef {
    AggregateRef::new(Noted::AGGREGATE_TYPE, id)
}

/// `events` as a batch.
pub fn batch(events: impl IntoIterator<Item = NewEvent>) -> Vec<Append> {
    let append = |event: NewEvent| Append {
        expected: event.expected(),
        event: event.seal(),
    };
    events.into_iter().map(append).collect()
}

/// Appends `events` to `store` and returns their positions.
///
/// # Panics
/// When they are not appended.
pub async fn append_all(
    store: &(impl EventStore + ?Sized),
    events: impl IntoIterator<Item = NewEvent>,
) -> Vec<u64> {
    let appended = store.append(batch(events)).await.expect("appended");
    appended.iter().map(position).collect()
}

fn position(appended: &Appended) -> u64 {
    appended.event.position().map_or(0, Position::get)
}

fn version(envelope: &EventEnvelope) -> u64 {
    envelope.version().map_or(0, Version::get)
}

fn text(envelope: EventEnvelope) -> String {
    Arc::new(envelope)
        .typed::<Noted>()
        .expect("typed")
        .text
        .clone()
}

async fn append_one(store: &impl EventStore, event: NewEvent) -> Result<Appended, AppendError> {
    store
        .append(batch([event]))
        .await
        .map(|mut all| all.remove(0))
}

/// Every position of the log, with the text of its event.
async fn log(store: &impl EventStore) -> Vec<(u64, String)> {
    let log = store.read_log(Position::ZERO, 10_000).await.expect("read");
    log.into_iter()
        .map(|event| (event.position().map_or(0, Position::get), text(event)))
        .collect()
}

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

const FIRST: Version = Version::FIRST;
const LAST: Version = Version::new(u64::MAX);

async fn read_history(
    store: &impl EventStore,
    id: &str,
    versions: RangeInclusive<Version>,
    limit: usize,
) -> Vec<EventEnvelope> {
    let aggregate = notebook(id);
    store
        .read_aggregate(&aggregate, versions, limit)
        .await
        .expect("read")
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

/// How long an answer may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// By position, and short only at the end.
pub async fn the_log_is_read_in_pages(store: &impl Store) {
    append_all(store, (0..25).map(|number| noted(&number.to_string(), ""))).await;
    let (mut after, mut pages) = (Position::ZERO, Vec::new());
    loop {
        let page = store.read_log(after, 10).await.unwrap();
        pages.push(page.len());
        let Some(last) = page.last() else { break };
        let positions: Vec<u64> = page.iter().map(|it| it.position().unwrap().get()).collect();
        assert_eq!(
            positions,
            (after.get() + 1..=last.position().unwrap().get()).collect::<Vec<_>>()
        );
        after = last.position().unwrap();
    }
    assert_eq!(pages, [10, 10, 5, 0]);
    assert!(
        store
            .read_log(Position::new(u64::MAX), 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(store.read_log(Position::ZERO, 0).await.unwrap().is_empty());
    assert_eq!(
        store
            .read_log(Position::ZERO, usize::MAX)
            .await
            .unwrap()
            .len(),
        25
    );
}

/// In order, both ends included, and no event of another aggregate.
pub async fn a_history_is_read_by_version(store: &impl Store) {
    let events = (0..20).map(|number| noted(["a", "b"][number % 2], &number.to_string()));
    append_all(store, events).await;
    let read = async |first, last, limit| {
        let versions = Version::new(first)..=Version::new(last);
        let history = read_history(store, "b", versions, limit).await;
        assert!(
            history
                .iter()
                .all(|event| *event.aggregate() == notebook("b"))
        );
        history.iter().map(version).collect::<Vec<_>>()
    };
    assert_eq!(read(1, 10, 100).await, (1..=10).collect::<Vec<u64>>());
    assert_eq!(read(0, u64::MAX, usize::MAX).await.len(), 10);
    assert_eq!(read(4, 6, 100).await, [4, 5, 6]);
    assert_eq!(read(4, 6, 2).await, [4, 5]);
    assert!(read(11, 20, 100).await.is_empty());
    assert!(
        read_history(store, "nobody", FIRST..=LAST, 9)
            .await
            .is_empty()
    );
}

/// Or is not there.
pub async fn an_event_is_found_by_its_id(store: &impl Store) {
    let id = EventId::new();
    append_all(
        store,
        [noted("a", "1"), noted("a", "2").id(id), noted("a", "3")],
    )
    .await;
    let found = store.get(id).await.unwrap().expect("in the log");
    assert_eq!(found.position(), Some(Position::new(2)));
    assert_eq!(text(found), "2");
    assert!(store.get(EventId::new()).await.unwrap().is_none());
}

/// What is read back has its type, and answers to no other.
pub async fn an_event_of_another_type_is_not_decoded(store: &impl Store) {
    append_all(
        store,
        [NewEvent::new(Torn {
            notebook: "a".to_owned(),
        })],
    )
    .await;
    let event = store.read_log(Position::ZERO, 1).await.unwrap().remove(0);
    let event = Arc::new(event);
    assert!(matches!(
        event.typed::<Noted>(),
        Err(DecodeError::OtherType { .. })
    ));
    assert_eq!(event.typed::<Torn>().unwrap().notebook, "a");
}

fn registration(name: &str, start_from: StartFrom) -> Registration {
    Registration {
        name: name.into(),
        start_from,
    }
}

async fn begin(store: &impl DeliveryStore, names: &[&str]) -> RunState {
    let names = names.iter().map(|name| registration(name, StartFrom::Now));
    store.begin_run(names.collect()).await.expect("begun")
}

/// Registers a name during a run.
async fn register(store: &impl DeliveryStore, name: &str) -> SubscriptionState {
    let (send, receive) = tokio::sync::oneshot::channel();
    let done = move |state| drop(send.send(state));
    store.submit_registration(registration(name, StartFrom::Now), Box::new(done));
    receive.await.expect("answered").expect("registered")
}

async fn change(
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

fn waiting(position: u64, attempts: u32) -> WaitingDelivery {
    WaitingDelivery {
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

/// One row, however many events wait.
pub async fn f5_a_blocked_aggregate_is_kept_until_it_is_unblocked(store: &impl Store) {
    append_all(store, [noted("a", ""), noted("b", ""), noted("a", "")]).await;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    let blocked = |id: &str, from| BlockedAggregate {
        aggregate: notebook(id),
        from: Position::new(from),
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

async fn dead(store: &impl Store, subscription: &str, position: u64) -> DeadLetter {
    let after = Position::new(position - 1);
    let event = store.read_log(after, 1).await.unwrap().remove(0);
    DeadLetter {
        subscription: subscription.into(),
        position: event.position(),
        event_id: event.id(),
        event_type: event.event_type().to_owned(),
        aggregate: event.aggregate().clone(),
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
    let kept = store.dead_letters(None, 10).await.unwrap();
    assert_eq!(kept, std::slice::from_ref(&letter));

    let again = DeadLetter {
        reason: DeadLetterReason::Permanent,
        attempts: 5,
        ..letter
    };
    change(store, vec![DeliveryChange::Dead(one, again.clone())])
        .await
        .unwrap();
    let kept = store.dead_letters(Some("one"), 10).await.unwrap();
    assert_eq!(kept, std::slice::from_ref(&again));

    let nowhere = DeadLetter {
        position: None,
        ..again
    };
    change(store, vec![DeliveryChange::Dead(one, nowhere)])
        .await
        .unwrap_err();
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
    let list = async |subscription, limit| {
        let letters = store.dead_letters(subscription, limit).await.unwrap();
        letters
            .iter()
            .map(|it| it.position.unwrap().get())
            .collect::<Vec<_>>()
    };
    assert_eq!(list(None, 10).await, [3, 1, 2, 4]);
    assert_eq!(list(None, 2).await, [3, 1]);
    assert_eq!(list(Some("one"), 2).await, [3, 2]);
    assert!(list(Some("nobody"), 10).await.is_empty());
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
