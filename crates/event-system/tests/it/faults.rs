//! The bus over a store with faults: what is held back, fails, or cannot be read, at awkward moments.

mod moments;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use domain_events::{
    AggregateRef, Append, AppendDone, AppendError, BlockedAggregate, ChangesDone, DeadLetterQuery,
    DeliveryChange, DeliveryChanges, DeliveryStore, DomainEvent, Event, EventBus, EventEnvelope,
    EventId, EventQuery, EventStore, ExpectedVersion, HandlerContext, HandlerError, NewEvent,
    Position, Priority, Progress, PublishError, Receipt, Registration, RegistrationDone,
    RetryPolicy, RunState, StartFrom, StoreError, StoreErrorKind, Subscription, SubscriptionState,
    Version,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use event_testkit::interceptor::{Intercepted, Interceptor};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, yield_now},
    time::sleep,
};

use super::recovery::{
    Counted, Journal, Run, attempts_saved, counted, handles, make_due, soon, subscription,
};

const HOUR: Duration = Duration::from_secs(3_600);

type Wanted = fn(&DeliveryChange) -> bool;

/// Saves that are not made yet.
#[derive(Default)]
struct HeldSaves {
    wanted: Option<Wanted>,
    held: Vec<(DeliveryChanges, ChangesDone)>,
}

/// Answers to appends that are made and not announced yet.
#[derive(Default)]
struct HeldAnswers {
    on: bool,
    held: Vec<Box<dyn FnOnce() + Send>>,
}

/// A store in memory, and its faults.
struct Faulty {
    inner: SqliteEventStore,
    saved: Arc<Mutex<DeliveryChanges>>,
    saves: Mutex<HeldSaves>,
    answers: Arc<Mutex<HeldAnswers>>,
    /// How many of the next saves fail.
    saves_to_fail: AtomicUsize,
    /// Whether the outcome of the next append is unknown, though it is made.
    unknown_next: AtomicBool,
    aggregates_unreadable: AtomicBool,
    /// A position that the log does not show.
    hidden: AtomicU64,
    reads: AtomicUsize,
    /// Locked, it lets no run begin.
    beginning: tokio::sync::Mutex<()>,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: SqliteEventStore::in_memory(SqliteOptions::default()).unwrap(),
            saved: Arc::default(),
            saves: Mutex::default(),
            answers: Arc::default(),
            saves_to_fail: AtomicUsize::new(0),
            unknown_next: AtomicBool::new(false),
            aggregates_unreadable: AtomicBool::new(false),
            hidden: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            beginning: tokio::sync::Mutex::default(),
        })
    }

    fn bus(self: &Arc<Self>, capacity: usize, workers: usize) -> Arc<InMemoryEventBus> {
        let config = BusConfig {
            capacity,
            workers,
            ..BusConfig::default()
        };
        Arc::new(InMemoryEventBus::with_store(config, in_front(self)).unwrap())
    }

    /// A bus of one worker that is started.
    async fn started(
        self: &Arc<Self>,
        capacity: usize,
        subscriptions: impl IntoIterator<Item = Subscription>,
    ) -> Arc<InMemoryEventBus> {
        let bus = self.bus(capacity, 1);
        for subscription in subscriptions {
            bus.subscribe(subscription).await.unwrap();
        }
        soon(bus.start()).await.unwrap();
        bus
    }

    /// Holds every save back that has such a change.
    fn hold_saves(&self, wanted: Wanted) {
        self.saves.lock().unwrap().wanted = Some(wanted);
    }

    async fn until_a_save_is_held(&self) {
        until(|| !self.saves.lock().unwrap().held.is_empty()).await;
    }

    /// Makes the saves that are held; later ones are held again.
    fn make_held_saves(&self) {
        let held = std::mem::take(&mut self.saves.lock().unwrap().held);
        for (changes, done) in held {
            self.save(changes, done);
        }
    }

    fn release_saves(&self) {
        self.saves.lock().unwrap().wanted = None;
        self.make_held_saves();
    }

    fn save(&self, changes: DeliveryChanges, done: ChangesDone) {
        let (saved, noted) = (Arc::clone(&self.saved), changes.clone());
        let noting = move |result: Result<(), StoreError>| {
            if result.is_ok() {
                saved.lock().unwrap().extend(noted);
            }
            done(result);
        };
        self.inner.submit_changes(changes, Box::new(noting));
    }

    /// Answers once the appends before it are announced, as a store does.
    fn save_nothing(&self, done: ChangesDone) {
        let answers = Arc::clone(&self.answers);
        let answer = move |result| {
            let mut answers = answers.lock().unwrap();
            match answers.on {
                true => answers.held.push(Box::new(move || done(result))),
                false => {
                    drop(answers);
                    done(result);
                }
            }
        };
        self.inner.submit_changes(Vec::new(), Box::new(answer));
    }

    async fn until_saved(&self, wanted: impl Fn(&DeliveryChange) -> bool) {
        until(|| self.saved.lock().unwrap().iter().any(&wanted)).await;
    }

    fn hold_answers(&self) {
        self.answers.lock().unwrap().on = true;
    }

    async fn until_answers_are_held(&self, count: usize) {
        until(|| self.answers.lock().unwrap().held.len() == count).await;
    }

    /// Gives the oldest answer that is held.
    fn answer_one(&self) {
        let answer = self.answers.lock().unwrap().held.remove(0);
        answer();
    }

    /// What the store knows of a subscription.
    async fn state(&self, name: &str) -> SubscriptionState {
        let mut run = self
            .inner
            .begin_run(vec![registration(name)])
            .await
            .unwrap();
        run.subscriptions.remove(0)
    }
}

fn in_front<I: Interceptor>(store: &Arc<I>) -> Arc<Intercepted<I>> {
    Arc::new(Intercepted(Arc::clone(store)))
}

fn registration(name: &str) -> Registration {
    Registration {
        former_names: Vec::new(),
        name: name.into(),
        start_from: StartFrom::Beginning,
        projection: None,
    }
}

fn busy() -> StoreError {
    StoreError::new(StoreErrorKind::Busy, "a fault of the test")
}

#[async_trait]
impl Interceptor for Faulty {
    type Store = SqliteEventStore;

    fn store(&self) -> &SqliteEventStore {
        &self.inner
    }

    fn submit(&self, batch: Vec<Append>, done: AppendDone) {
        let unknown = self.unknown_next.swap(false, SeqCst);
        let answers = Arc::clone(&self.answers);
        let answer = move |result| {
            let result = if unknown {
                Err(AppendError::OutcomeUnknown(busy()))
            } else {
                result
            };
            let mut answers = answers.lock().unwrap();
            if answers.on {
                return answers.held.push(Box::new(move || done(result)));
            }
            drop(answers);
            done(result);
        };
        self.inner.submit(batch, Box::new(answer));
    }

    async fn read(
        &self,
        query: &EventQuery,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEnvelope>, StoreError> {
        if matches!(query, EventQuery::History(..)) {
            if self.aggregates_unreadable.load(SeqCst) {
                return Err(busy());
            }
            return self.inner.read(query, after, limit).await;
        }
        self.reads.fetch_add(1, SeqCst);
        let hidden = Position::new(self.hidden.load(SeqCst));
        let mut page = self.inner.read(query, after, limit).await?;
        page.retain(|event| event.position() != Some(hidden));
        Ok(page)
    }

    async fn begin_run(&self, registrations: Vec<Registration>) -> Result<RunState, StoreError> {
        let _may_begin = self.beginning.lock().await;
        self.inner.begin_run(registrations).await
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        let fewer = |left: usize| left.checked_sub(1);
        if self
            .saves_to_fail
            .fetch_update(SeqCst, SeqCst, fewer)
            .is_ok()
        {
            return done(Err(busy()));
        }
        if changes.is_empty() {
            return self.save_nothing(done);
        }
        let mut saves = self.saves.lock().unwrap();
        if saves
            .wanted
            .is_some_and(|wanted| changes.iter().any(wanted))
        {
            return saves.held.push((changes, done));
        }
        drop(saves);
        self.save(changes, done);
    }
}

async fn until(holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            yield_now().await;
        }
    };
    soon(held).await;
}

/// Lets everything that is ready go on, and timers of a few milliseconds end.
async fn a_while() {
    sleep(Duration::from_millis(40)).await;
}

fn is_waiting(change: &DeliveryChange) -> bool {
    matches!(change, DeliveryChange::Waiting(..))
}

fn is_progress(change: &DeliveryChange) -> bool {
    matches!(change, DeliveryChange::Progressed(..))
}

fn later(after: Duration) -> Result<(), HandlerError> {
    Err(HandlerError::retry_after(after, "later"))
}

/// A subscription that notes each delivery, and then waits for the gate.
fn waits(name: &str, began: &Arc<AtomicUsize>, gate: &Arc<Semaphore>) -> Subscription {
    let (began, gate) = (Arc::clone(began), Arc::clone(gate));
    let handler = move |_: Event<Counted>, _: HandlerContext| {
        began.fetch_add(1, SeqCst);
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await?.forget();
            Ok(())
        }
    };
    Subscription::from_fn(name, handler).start_from(StartFrom::Beginning)
}

fn all_handled(receipts: Vec<Receipt>) -> impl Future<Output = ()> {
    soon(async move {
        for receipt in receipts {
            receipt.handled().await.unwrap();
        }
    })
}

fn stopping(bus: &Arc<InMemoryEventBus>) -> JoinHandle<domain_events::StopReport> {
    let bus = Arc::clone(bus);
    tokio::spawn(async move { bus.stop(HOUR).await.unwrap() })
}

#[tokio::test]
async fn r1_a_save_that_failed_keeps_its_dead_letter_until_it_is_made() {
    for failures in [1, 2] {
        let store = Faulty::new();
        let dies = subscription("dies", &Journal::default(), |_, _| {
            Err(HandlerError::permanent("never"))
        });
        let bus = store.started(10, [dies]).await;
        store.saves_to_fail.store(failures, SeqCst);
        bus.publish(counted("a", 0)).await.unwrap();
        until(|| store.saves_to_fail.load(SeqCst) < failures).await;
        let report = soon(bus.stop(HOUR)).await.unwrap();

        let letters = store
            .inner
            .dead_letters(&DeadLetterQuery::all(), 10)
            .await
            .unwrap()
            .len();
        let progress = store.state("dies").await.progress;
        let passed = progress.through == Position::new(1) && progress.unfinished.is_empty();
        assert_eq!(
            passed,
            letters == 1,
            "{failures} failures, {report:?}: {letters} letters, {progress:?}"
        );
        assert_eq!(report.unsaved.is_none(), passed, "{report:?}");
    }
}

#[tokio::test]
async fn p2_a_receipt_of_an_event_that_nobody_wants_is_told_though_it_was_left_to_the_log() {
    let bus = Faulty::new().started(10, []).await;
    let batch = (0..25).map(|number| counted("a", number)).collect();
    all_handled(bus.publish_all(batch).await.unwrap()).await;
}

#[tokio::test]
async fn p2_an_event_that_is_in_the_log_before_it_is_announced_keeps_its_receipt() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, [handles("counts", &journal)]).await;
    store.hold_answers();
    let publish = |numbers: std::ops::Range<u64>| {
        let bus = Arc::clone(&bus);
        let batch = numbers.map(|number| counted("a", number)).collect();
        tokio::spawn(async move { bus.publish_all(batch).await.unwrap() })
    };
    // The first batch is too large for the queue, and so has the log read.
    let first = publish(0..25);
    store.until_answers_are_held(1).await;
    let second = publish(25..30);
    store.until_answers_are_held(2).await;
    store.answer_one();
    all_handled(soon(first).await.unwrap()).await;
    a_while().await;
    store.answer_one();
    all_handled(soon(second).await.unwrap()).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), (0..30).collect::<Vec<_>>());
    let figures = bus.statistics();
    assert_eq!(
        figures.accepted + figures.recovered,
        figures.finished + figures.in_flight
    );
}

/// What is committed and not announced is nobody's to take from the log: its receipt would wait for ever.
#[tokio::test]
async fn p2_p7_a_look_at_the_log_waits_for_the_announcements_before_it() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, [handles("s", &journal)]).await;
    store.hold_answers();
    let publishing = Arc::clone(&bus);
    let publishing = tokio::spawn(async move { publishing.publish(counted("a", 0)).await });
    store.until_answers_are_held(1).await;
    let event = counted("a", 1).seal();
    let expected = ExpectedVersion::Any;
    let others = store.inner.append(vec![Append { event, expected }]);
    soon(others).await.unwrap();
    bus.wake();
    store.until_answers_are_held(2).await;
    a_while().await;
    assert!(journal.numbers("a").is_empty());
    store.answer_one();
    all_handled(vec![soon(publishing).await.unwrap().unwrap()]).await;
    store.answer_one();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0, 1]);
}

#[tokio::test]
async fn l4_out_and_in_again_repeats_nothing() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(100, [handles("counts", &journal)]).await;
    let mut receipts = Vec::new();
    for number in 0..5 {
        receipts.push(bus.publish(counted("a", number)).await.unwrap());
    }
    all_handled(receipts).await;
    assert!(soon(bus.unsubscribe("counts")).await);
    soon(bus.subscribe(handles("counts", &journal)))
        .await
        .unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn l4_an_attempt_that_ran_while_its_subscription_went_is_not_repeated() {
    let (store, began, gate) = (Faulty::new(), Arc::default(), Arc::new(Semaphore::new(0)));
    let bus = store.started(10, [waits("waits", &began, &gate)]).await;
    bus.publish(counted("a", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    let going = {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.unsubscribe("waits").await })
    };
    a_while().await;
    assert!(!going.is_finished(), "it waits for the attempt");
    gate.add_permits(10);
    assert!(soon(going).await.unwrap());
    soon(bus.subscribe(waits("waits", &began, &gate)))
        .await
        .unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(began.load(SeqCst), 1);
}

#[tokio::test]
async fn d2_who_comes_in_again_waits_behind_the_failure_that_was_just_being_saved() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let fails = subscription("counts", &Journal::default(), |_, _| later(HOUR));
    let bus = store.started(100, [fails]).await;
    store.hold_saves(is_waiting);
    bus.publish(counted("a", 0)).await.unwrap();
    store.until_a_save_is_held().await;
    let again = {
        let (bus, handles) = (Arc::clone(&bus), handles("counts", &journal));
        tokio::spawn(async move {
            bus.unsubscribe("counts").await;
            bus.subscribe(handles).await.unwrap();
        })
    };
    a_while().await;
    assert!(!again.is_finished(), "its name is still being saved");
    store.release_saves();
    soon(again).await.unwrap();
    for number in 1..4 {
        bus.publish(counted("a", number)).await.unwrap();
    }
    let other = bus.publish(counted("b", 10)).await.unwrap();
    all_handled(vec![other]).await;
    soon(bus.stop(HOUR)).await.unwrap();
    assert_eq!(
        (journal.numbers("a"), journal.numbers("b")),
        (vec![], vec![10])
    );
    let state = store.state("counts").await;
    assert_eq!((state.waiting.len(), state.blocked.len()), (1, 1));
    assert_eq!(state.blocked[0].from, Position::new(1));
}

#[tokio::test]
async fn p2_a_receipt_left_to_the_log_is_told_when_its_subscription_goes() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let fails = subscription("counts", &journal, |_, _| later(HOUR));
    let bus = store.started(100, [fails]).await;
    let receipt = bus.publish(counted("a", 0)).await.unwrap();
    store.until_saved(is_waiting).await;
    assert!(soon(bus.unsubscribe("counts")).await);
    all_handled(vec![receipt]).await;
    soon(bus.wait_idle()).await.unwrap();
}

#[tokio::test]
async fn l4_of_two_that_come_with_one_name_only_one_comes_aboard() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, []).await;
    let (one, other) = soon(async {
        tokio::join!(
            bus.subscribe(handles("counts", &journal)),
            bus.subscribe(handles("counts", &journal)),
        )
    })
    .await;
    assert!(one.is_ok() != other.is_ok(), "{one:?}, {other:?}");
    let receipt = bus.publish(counted("a", 0)).await.unwrap();
    all_handled(vec![receipt]).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0]);
}

#[tokio::test]
async fn l4_who_goes_while_the_bus_starts_is_given_nothing() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.bus(10, 1);
    bus.subscribe(handles("counts", &journal)).await.unwrap();
    let closed = store.beginning.lock().await;
    let (starting, going) = (Arc::clone(&bus), Arc::clone(&bus));
    let starting = tokio::spawn(async move { starting.start().await.unwrap() });
    a_while().await;
    let going = tokio::spawn(async move { going.unsubscribe("counts").await });
    a_while().await;
    drop(closed);
    soon(starting).await.unwrap();
    assert!(soon(going).await.unwrap());
    let receipt = bus.publish(counted("a", 0)).await.unwrap();
    all_handled(vec![receipt]).await;
    soon(bus.wait_idle()).await.unwrap();
    assert!(journal.numbers("a").is_empty());
}

#[tokio::test]
async fn l1_a_start_that_nobody_waits_for_leaves_no_bus_that_cannot_stop() {
    let store = Faulty::new();
    let bus = store.bus(10, 1);
    let closed = store.beginning.lock().await;
    tokio::select! {
        biased;
        _ = bus.start() => panic!("the store lets no run begin"),
        () = a_while() => {}
    }
    drop(closed);
    soon(bus.stop(Duration::ZERO)).await.unwrap();
}

/// An event whose drop panics.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.fragile", aggregate = "counter", id = counter)]
struct Fragile {
    counter: String,
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the drop of an event");
        }
    }
}

#[tokio::test]
async fn f1_an_event_whose_drop_panics_ends_no_worker() {
    let (store, attempts) = (Faulty::new(), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&attempts);
    let fails = move |_: Event<Fragile>, cx: HandlerContext| {
        counts.fetch_max(cx.attempt() as usize, SeqCst);
        std::future::ready(if cx.attempt() == 1 {
            later(Duration::from_millis(1))
        } else {
            Ok(())
        })
    };
    let journal = Journal::default();
    let fails = Subscription::from_fn("fails", fails);
    let bus = store
        .started(10, [fails, handles("counts", &journal)])
        .await;
    let publisher = Arc::clone(&bus);
    let published = tokio::spawn(async move {
        let fragile = Fragile {
            counter: "a".to_owned(),
        };
        // The receipt holds the event too.
        std::mem::forget(publisher.publish(NewEvent::new(fragile)).await.unwrap());
    });
    drop(soon(published).await);
    until(|| attempts.load(SeqCst) == 2).await;
    let receipt = bus.publish(counted("b", 0)).await.unwrap();
    all_handled(vec![receipt]).await;
}

#[tokio::test]
async fn l5_a_position_that_cannot_be_read_is_not_read_again_and_again() {
    let (store, journal) = (Faulty::new(), Journal::default());
    append(&store, (0..3).map(|number| counted("a", number))).await;
    store.hidden.store(2, SeqCst);
    let bus = store.started(10, [handles("counts", &journal)]).await;
    until(|| journal.numbers("a") == [0]).await;
    a_while().await;
    let reads = store.reads.load(SeqCst);
    assert!(reads < 10, "{reads} reads");
    let report = soon(bus.stop(HOUR)).await.unwrap();
    assert_eq!(report.left_in_log, 2);
}

async fn append(store: &Faulty, events: impl Iterator<Item = NewEvent>) -> Vec<AggregateRef> {
    let append = |event: NewEvent| Append {
        event: event.seal(),
        expected: ExpectedVersion::Any,
    };
    let appended = store.inner.append(events.map(append).collect()).await;
    let aggregate = |appended: &domain_events::Appended| appended.event.aggregate().clone();
    appended.unwrap().iter().map(aggregate).collect()
}

#[tokio::test]
async fn r1_a_row_ahead_of_progress_and_the_log_together_deliver_once() {
    for _ in 0..20 {
        let (store, journal) = (Faulty::new(), Journal::default());
        let id = store.state("counts").await.id;
        let aggregate = append(&store, [counted("a", 0)].into_iter())
            .await
            .remove(0);
        // A backlog is worked off and this committed; before the row goes, the process ends.
        let (keep, wait) = domain_events::promise();
        let row = BlockedAggregate {
            parked_behind: None,
            aggregate,
            from: Position::new(2),
            version: Version::new(2),
        };
        let progress = Progress {
            through: Position::new(1),
            unfinished: vec![],
        };
        let changes = vec![
            DeliveryChange::Blocked(id, row),
            DeliveryChange::Progressed(id, progress),
        ];
        let done = Box::new(move |result| keep.keep(result));
        store.inner.submit_changes(changes, done);
        soon(wait).await.unwrap().unwrap();
        append(&store, [counted("a", 1)].into_iter()).await;

        let bus = store.bus(10, 2);
        bus.subscribe(handles("counts", &journal)).await.unwrap();
        soon(bus.start()).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
        assert_eq!(journal.numbers("a"), [1]);
    }
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.reported", aggregate = "report", id = report)]
struct Reported {
    report: String,
}

#[tokio::test]
async fn p9_publishing_again_within_an_attempt_settles_an_unknown_outcome() {
    let store = Faulty::new();
    let faults = Arc::clone(&store);
    let reports = move |event: Event<Counted>, cx: HandlerContext| {
        faults.unknown_next.store(true, SeqCst);
        async move {
            let reported = || Reported {
                report: event.counter.clone(),
            };
            if cx.publish(reported()).await.is_err() {
                cx.publish(reported()).await?;
            }
            Ok(())
        }
    };
    let bus = store
        .started(10, [Subscription::from_fn("reports", reports)])
        .await;
    let receipt = bus.publish(counted("a", 0)).await.unwrap();
    assert!(soon(receipt.handled()).await.unwrap().is_success());
    let log = store.inner.read_log(Position::ZERO, 10).await.unwrap();
    let types: Vec<_> = log.iter().map(EventEnvelope::event_type).collect();
    assert_eq!(types, ["test.counted", "test.reported"]);
}

#[tokio::test]
async fn d1_an_event_whose_append_is_settled_by_publishing_again_is_delivered() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, [handles("counts", &journal)]).await;
    let id = EventId::new();
    store.unknown_next.store(true, SeqCst);
    bus.publish(counted("a", 0).id(id)).await.unwrap_err();
    let again = bus.publish(counted("a", 0).id(id)).await.unwrap();
    assert!(again.was_already_there());
    until(|| !journal.numbers("a").is_empty()).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0]);
}

#[tokio::test]
async fn l2_a_stop_does_not_wait_for_a_backlog_that_cannot_be_read() {
    let (store, began, gate) = (
        Faulty::new(),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Semaphore::new(0)),
    );
    let (noted, closed) = (Arc::clone(&began), Arc::clone(&gate));
    let fails = move |event: Event<Counted>, _: HandlerContext| {
        let (began, gate) = (Arc::clone(&noted), Arc::clone(&closed));
        async move {
            if event.counter != "gate" {
                return later(Duration::from_millis(30));
            }
            began.fetch_add(1, SeqCst);
            gate.acquire().await?.forget();
            Ok(())
        }
    };
    let bus = store
        .started(10, [Subscription::from_fn("fails", fails)])
        .await;
    store.aggregates_unreadable.store(true, SeqCst);
    bus.publish(counted("a", 0)).await.unwrap();
    bus.publish(counted("gate", 0)).await.unwrap();
    // The only worker is at the gate, and the retry comes due behind it.
    until(|| began.load(SeqCst) == 1).await;
    store.until_saved(is_waiting).await;
    a_while().await;
    let stopping = stopping(&bus);
    until(|| !bus.statistics().running).await;
    gate.add_permits(1);
    assert_eq!(soon(stopping).await.unwrap().left_in_log, 1);
}

#[tokio::test]
async fn p4_who_waits_for_room_until_the_bus_stops_publishes_nothing_unnoticed() {
    let (store, began, gate) = (Faulty::new(), Arc::default(), Arc::new(Semaphore::new(0)));
    let bus = store.started(1, [waits("waits", &began, &gate)]).await;
    bus.publish(counted("a", 0)).await.unwrap();
    let mut publish = bus.publish(counted("a", 1));
    tokio::select! {
        biased;
        _ = &mut publish => panic!("there is no room"),
        () = until(|| began.load(SeqCst) == 1) => {}
    }
    let stopping = stopping(&bus);
    until(|| !bus.statistics().running).await;
    gate.add_permits(10);
    soon(stopping).await.unwrap();
    let refused = soon(publish).await.map(drop);
    assert!(matches!(refused, Err(PublishError::Stopped)), "{refused:?}");
    assert_eq!(store.inner.head().await.unwrap(), Position::new(1));
}

#[tokio::test]
async fn r1_a_first_failure_blocks_its_aggregate_over_a_crash() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("events.db");
    let first = |event: &Counted, _: u32| match event.number {
        0 => later(HOUR),
        _ => Ok(()),
    };
    let run = Run::start(&file, 100, [subscription("counts", &journal, first)]).await;
    for number in 0..4 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    until(|| attempts_saved(&file) == Some(1)).await;
    run.crash().await;
    assert_eq!(journal.numbers("a"), [0]);
    make_due(&file);
    journal.take();

    let run = Run::start(&file, 100, [handles("counts", &journal)]).await;
    run.bus.publish(counted("a", 4)).await.unwrap();
    run.idle().await;
    run.stop().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2, 3, 4]);
    assert_eq!(journal.take()[0].2, 2, "the second attempt of the first");
}

#[tokio::test]
async fn f4_no_attempt_starts_before_the_row_of_the_last_one_is_committed() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let fails = |_: &Counted, attempt: u32| match attempt {
        1 | 2 => later(Duration::from_millis(1)),
        _ => Ok(()),
    };
    let bus = store
        .started(10, [subscription("counts", &journal, fails)])
        .await;
    store.hold_saves(is_waiting);
    bus.publish(counted("a", 0)).await.unwrap();
    for attempts in [1, 2] {
        store.until_a_save_is_held().await;
        a_while().await;
        assert_eq!(journal.numbers("a").len(), attempts);
        store.make_held_saves();
    }
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a").len(), 3);
}

#[tokio::test]
async fn l3_the_bus_is_not_idle_before_progress_is_saved() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, [handles("counts", &journal)]).await;
    soon(bus.wait_idle()).await.unwrap();
    store.hold_saves(is_progress);
    let receipt = bus.publish(counted("a", 0)).await.unwrap();
    all_handled(vec![receipt]).await;
    let mut idle = bus.wait_idle();
    tokio::select! {
        biased;
        _ = &mut idle => panic!("idle, and nothing is saved"),
        () = a_while() => {}
    }
    store.release_saves();
    soon(idle).await.unwrap();
    drop(bus);

    journal.take();
    let bus = store.started(10, [handles("counts", &journal)]).await;
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.take(), [], "what was idle is not repeated");
}

#[tokio::test]
async fn r1_a_delivery_that_is_over_after_a_retry_is_over_after_a_crash() {
    for dies in [false, true] {
        let (store, journal) = (Faulty::new(), Journal::default());
        let (gate, log) = (Arc::new(Semaphore::new(0)), journal.clone());
        let closed = Arc::clone(&gate);
        let handler = move |event: Event<Counted>, cx: HandlerContext| {
            log.write(&event, &cx);
            let gate = Arc::clone(&closed);
            async move {
                match (event.number, cx.attempt()) {
                    (0, 1) => later(Duration::from_millis(1)),
                    (0, _) if dies => Err(HandlerError::permanent("never")),
                    (0, _) => Ok(()),
                    // Those behind it are at work when the process ends.
                    _ => {
                        gate.acquire().await?.forget();
                        Ok(())
                    }
                }
            }
        };
        let counts = Subscription::from_fn("counts", handler).retry(RetryPolicy::exponential());
        let bus = store.started(10, [counts]).await;
        for number in 0..3 {
            bus.publish(counted("a", number)).await.unwrap();
        }
        store
            .until_saved(|change| {
                matches!(
                    change,
                    DeliveryChange::Finished(..) | DeliveryChange::Dead(..)
                )
            })
            .await;
        drop(bus);
        assert_eq!(journal.numbers("a")[..2], [0, 0]);
        journal.take();

        let bus = store.started(10, [handles("counts", &journal)]).await;
        soon(bus.wait_idle()).await.unwrap();
        assert_eq!(journal.numbers("a"), [1, 2], "dies: {dies}");
        let letters = store
            .inner
            .dead_letters(&DeadLetterQuery::all(), 10)
            .await
            .unwrap();
        assert_eq!(letters.len(), usize::from(dies));
    }
}

#[tokio::test]
async fn r1_what_a_block_covers_is_not_unfinished_as_well() {
    let (store, began, gate) = (Faulty::new(), Arc::default(), Arc::new(Semaphore::new(0)));
    let fails = subscription("fails", &Journal::default(), |_, _| later(HOUR));
    let fails = fails.priority(Priority::HIGH);
    // Keeps what follows in the queue.
    let bus = store
        .started(10, [fails, waits("waits", &began, &gate)])
        .await;
    bus.publish(counted("a", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    bus.publish(counted("a", 1)).await.unwrap();
    bus.publish(counted("a", 2)).await.unwrap();
    let everything = |change: &DeliveryChange| matches!(change, DeliveryChange::Progressed(_, progress) if progress.through.get() == 3);
    store.until_saved(everything).await;
    drop(bus);
    let state = store.state("fails").await;
    assert_eq!(state.blocked[0].from, Position::new(1));
    let passed = Progress {
        through: Position::new(3),
        unfinished: vec![],
    };
    assert_eq!((state.waiting.len(), state.progress), (1, passed));
    let unfinished = store.state("waits").await.progress.unfinished;
    assert_eq!(unfinished, [1, 2, 3].map(Position::new));
}
