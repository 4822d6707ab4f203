//! Who comes, goes and is dropped at awkward moments of a bus over a store.

use domain_events::StopReport;

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// As `waits`, and notes the counters it saw.
fn gated(
    name: &str,
    journal: &Journal,
    began: &Arc<AtomicUsize>,
    gate: &Arc<Semaphore>,
) -> Subscription {
    let (journal, began, gate) = (journal.clone(), Arc::clone(began), Arc::clone(gate));
    let handler = move |event: Event<Counted>, cx: HandlerContext| {
        journal.write(&event, &cx);
        began.fetch_add(1, SeqCst);
        let gate = Arc::clone(&gate);
        async move {
            if event.counter == "gate" {
                gate.acquire().await?.forget();
            }
            Ok(())
        }
    };
    Subscription::from_fn(name, handler).start_from(StartFrom::Beginning)
}

/// D1, R1: what was queued when its subscription went, while an attempt of it ran, is delivered once
/// it is back.
#[tokio::test]
async fn d1_what_was_queued_when_its_subscription_went_is_delivered_when_it_comes_back() {
    for workers in [1, 2] {
        let (store, journal) = (Faulty::new(), Journal::default());
        let (began, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let bus = store.bus(100, workers);
        bus.subscribe(gated("s", &journal, &began, &gate))
            .await
            .unwrap();
        soon(bus.start()).await.unwrap();
        // One in each worker, and one that waits for a worker.
        for number in 0..workers as u64 {
            bus.publish(counted("gate", number)).await.unwrap();
        }
        until(|| began.load(SeqCst) == 1).await;
        bus.publish(counted("gate", 7)).await.unwrap();
        let going = {
            let bus = Arc::clone(&bus);
            tokio::spawn(async move { bus.unsubscribe("s").await })
        };
        a_while().await;
        bus.publish(counted("b", 0)).await.unwrap();
        a_while().await;
        gate.add_permits(10);
        assert!(soon(going).await.unwrap());
        soon(bus.subscribe(gated("s", &journal, &began, &gate)))
            .await
            .unwrap();
        soon(bus.wait_idle()).await.unwrap();
        let mut seen = journal.numbers("gate");
        seen.sort_unstable();
        let wanted: Vec<_> = (0..workers as u64).chain([7]).collect();
        assert_eq!(seen, wanted, "{workers} workers");
        assert_eq!(journal.numbers("b"), [0]);
    }
}

/// P2: a receipt that awaits an event from the log is told when the pipeline closes.
#[tokio::test]
async fn p2_a_receipt_is_told_when_the_pipeline_that_was_to_read_its_event_closes() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let (began, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let bus = store
        .started(
            100,
            [gated("s", &journal, &began, &gate).isolated(1).capacity(1)],
        )
        .await;
    bus.publish(counted("gate", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    let mut last = None;
    for page in 0..40_u64 {
        let batch = (0..100).map(|n| counted("b", page * 100 + n)).collect();
        last = soon(bus.publish_all(batch)).await.unwrap().pop();
    }
    let going = {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.unsubscribe("s").await })
    };
    a_while().await;
    gate.add_permits(10);
    assert!(soon(going).await.unwrap());
    let told = tokio::time::timeout(SOON, last.unwrap().handled()).await;
    assert!(told.is_ok(), "the receipt is never told");
}

/// L2: a start that is given up, and the bus dropped, leaves no task that holds the store.
#[tokio::test]
async fn l2_a_bus_dropped_while_it_starts_lets_go_of_its_store() {
    let store = Faulty::new();
    let bus = store.bus(10, 1);
    let closed = store.beginning.lock().await;
    tokio::select! {
        biased;
        _ = bus.start() => panic!("the store lets no run begin"),
        () = a_while() => {}
    }
    drop(bus);
    drop(closed);
    for _ in 0..50 {
        a_while().await;
        if Arc::strong_count(&store) == 1 {
            return;
        }
    }
    panic!("{} still hold the store", Arc::strong_count(&store) - 1);
}

/// R5: a repeat is said to be one also where an isolated subscription comes after the start.
#[tokio::test]
async fn r5_who_comes_after_the_start_is_told_of_repeats() {
    for isolated in [false, true] {
        let (dir, journal) = (tempdir().unwrap(), Journal::default());
        let file = dir.path().join("events.db");
        let (began, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let own = |subscription: Subscription| match isolated {
            true => subscription.isolated(1),
            false => subscription,
        };
        let run = Run::start(&file, 100, [own(gated("s", &journal, &began, &gate))]).await;
        run.bus.publish(counted("gate", 0)).await.unwrap();
        until(|| began.load(SeqCst) == 1).await;
        run.crash().await;
        journal.take();

        let run = Run::start(&file, 100, []).await;
        run.bus
            .subscribe(own(handles("s", &journal)))
            .await
            .unwrap();
        run.idle().await;
        let seen = journal.take();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].3, "isolated: {isolated}: {seen:?}");
        run.stop().await;
    }
}

/// D7, P4: an event that nobody wants takes no memory, and needs no room.
#[tokio::test]
async fn d7_an_event_that_nobody_wants_waits_for_no_room() {
    let (store, began, gate) = (Faulty::new(), Arc::default(), Arc::new(Semaphore::new(0)));
    let bus = store.started(1, [waits("waits", &began, &gate)]).await;
    bus.publish(counted("a", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    let unwanted = NewEvent::new(Reported {
        report: "a".to_owned(),
    });
    let published = bus.try_publish(unwanted).await.map(drop);
    assert!(published.is_ok(), "{published:?}");
}

/// A store whose registrations are held back.
struct Held {
    inner: SqliteEventStore,
    held: Mutex<Vec<(Registration, RegistrationDone)>>,
}

#[async_trait]
impl Interceptor for Held {
    type Store = SqliteEventStore;

    fn store(&self) -> &SqliteEventStore {
        &self.inner
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        self.held.lock().unwrap().push((registration, done));
    }
}

/// L2, L4: a subscription whose registration is answered after the stop is refused, and nothing of it
/// holds bus and store.
#[tokio::test]
async fn l2_who_comes_aboard_after_the_stop_is_refused_and_leaves_nothing() {
    let store = Arc::new(Held {
        inner: SqliteEventStore::in_memory(SqliteOptions::default()).unwrap(),
        held: Mutex::default(),
    });
    let bus = InMemoryEventBus::with_store(BusConfig::default(), in_front(&store)).unwrap();
    let bus = Arc::new(bus);
    soon(bus.start()).await.unwrap();
    bus.publish(counted("a", 0)).await.unwrap();
    let journal = Journal::default();
    let coming = {
        let (bus, late) = (Arc::clone(&bus), handles("late", &journal).isolated(1));
        tokio::spawn(async move { bus.subscribe(late).await })
    };
    until(|| !store.held.lock().unwrap().is_empty()).await;
    let report: StopReport = soon(bus.stop(HOUR)).await.unwrap();
    assert_eq!(report.unsaved, None);
    let held = store.held.lock().unwrap().pop().unwrap();
    store.inner.submit_registration(held.0, held.1);
    let come = soon(coming).await.unwrap();
    drop(bus);
    let mut holders = 0;
    for _ in 0..50 {
        a_while().await;
        holders = Arc::strong_count(&store) - 1;
        if holders == 0 {
            break;
        }
    }
    assert!(
        come.is_err() && holders == 0,
        "{come:?}, and {holders} still hold the store"
    );
}

/// A store that lets a save go on only when told.
struct Slow {
    inner: SqliteEventStore,
    /// Whether the next save waits, on the thread that hands it over.
    wait: AtomicBool,
    waiting: AtomicBool,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

#[async_trait]
impl Interceptor for Slow {
    type Store = SqliteEventStore;

    fn store(&self) -> &SqliteEventStore {
        &self.inner
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        if self.wait.swap(false, SeqCst) {
            self.waiting.store(true, SeqCst);
            self.go_on.lock().unwrap().recv().unwrap();
            let (keep, _) = domain_events::promise();
            self.inner
                .submit_changes(changes, Box::new(move |result| keep.keep(result)));
            return done(Ok(()));
        }
        self.inner.submit_changes(changes, done);
    }
}

/// D1, R1: a bus that is dropped while a save is being made saves nothing as finished that it has
/// just forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn r1_a_dropped_bus_saves_no_progress_past_what_it_has_not_finished() {
    let (tell, go_on) = std::sync::mpsc::channel();
    let store = Arc::new(Slow {
        inner: SqliteEventStore::in_memory(SqliteOptions::default()).unwrap(),
        wait: AtomicBool::new(false),
        waiting: AtomicBool::new(false),
        go_on: Mutex::new(go_on),
    });
    let bus = InMemoryEventBus::with_store(BusConfig::default(), in_front(&store)).unwrap();
    let began = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&began);
    let handler = move |event: Event<Counted>, _: HandlerContext| {
        let noted = Arc::clone(&noted);
        async move {
            match event.counter.as_str() {
                "gate" => {
                    noted.fetch_add(1, SeqCst);
                    std::future::pending().await
                }
                "fails" => {
                    noted.fetch_add(1, SeqCst);
                    later(HOUR)
                }
                _ => Ok(()),
            }
        }
    };
    bus.subscribe(Subscription::from_fn("s", handler).start_from(StartFrom::Beginning))
        .await
        .unwrap();
    soon(bus.start()).await.unwrap();
    store.wait.store(true, SeqCst);
    drop(bus.publish(counted("a", 0)).await.unwrap());
    until(|| store.waiting.load(SeqCst)).await;
    drop(bus.publish(counted("gate", 0)).await.unwrap());
    drop(bus.publish(counted("fails", 0)).await.unwrap());
    until(|| began.load(SeqCst) == 2).await;
    a_while().await;
    drop(bus);
    tell.send(()).unwrap();
    a_while().await;
    a_while().await;
    let again = store.inner.begin_run(vec![registration("s")]);
    let state = again.await.unwrap().subscriptions.remove(0);
    let progress = &state.progress;
    let gate = Position::new(2);
    assert!(
        progress.through < gate || progress.unfinished.contains(&gate),
        "{state:?}"
    );
}

/// R1: what the row of a block covers is not unfinished as well, once its subscription has gone.
#[tokio::test]
async fn r1_who_goes_leaves_a_queued_event_to_its_row_alone() {
    let (store, began, gate) = (Faulty::new(), Arc::default(), Arc::new(Semaphore::new(0)));
    let fails = |event: &Counted, _: u32| match event.counter.as_str() {
        "a" => later(HOUR),
        _ => Ok(()),
    };
    let fails = subscription("s", &Journal::default(), fails).priority(Priority::HIGH);
    let bus = store.bus(10, 1);
    bus.subscribe(fails).await.unwrap();
    bus.start().await.unwrap();
    bus.publish(counted("a", 0)).await.unwrap();
    store.until_saved(is_waiting).await;
    bus.subscribe(waits("other", &began, &gate).start_from(StartFrom::Now))
        .await
        .unwrap();
    bus.publish(counted("gate", 0)).await.unwrap();
    until(|| began.load(SeqCst) == 1).await;
    // The only worker is at the gate.
    bus.publish(counted("a", 1)).await.unwrap();
    assert!(soon(bus.unsubscribe("s")).await);
    let state = store.state("s").await;
    assert_eq!(state.blocked.len(), 1);
    assert_eq!(state.progress.unfinished, [], "{state:?}");
}

fn is_reset(change: &DeliveryChange) -> bool {
    matches!(change, DeliveryChange::Reset(..))
}

/// A bus with a subscription "s" that has handled 0 to 2 of "a", and that is on its way to the beginning:
/// its reset is held back by the store.
async fn resetting(
    journal: &Journal,
) -> (
    Arc<Faulty>,
    Arc<InMemoryEventBus>,
    JoinHandle<Result<(), domain_events::PlaceError>>,
) {
    let store = Faulty::new();
    let bus = store.started(10, [handles("s", journal)]).await;
    for number in 0..3 {
        bus.publish(counted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    store.hold_saves(is_reset);
    let reset = {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.reset("s", StartFrom::Beginning).await })
    };
    store.until_a_save_is_held().await;
    (store, bus, reset)
}

/// L4: who is unsubscribed while it is reset does not come back.
#[tokio::test]
async fn l4_who_is_unsubscribed_during_a_reset_stays_away() {
    let journal = Journal::default();
    let (store, bus, reset) = resetting(&journal).await;
    let going = {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.unsubscribe("s").await })
    };
    a_while().await;
    assert!(!going.is_finished(), "it is there, and so it is to go");
    store.release_saves();
    soon(reset).await.unwrap().unwrap();
    assert!(soon(going).await.unwrap());
    assert!(!soon(bus.unsubscribe("s")).await, "once is enough");
    journal.take();
    bus.publish(counted("a", 3)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.take(), []);
    // And its place is the one that it was reset to, or where it has come to from there.
    soon(bus.subscribe(handles("s", &journal))).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a").last(), Some(&3));
}

/// D8, L4: a name that is reset is taken, and who pauses it finds it.
#[tokio::test]
async fn d8_a_name_is_one_ones_own_while_it_is_reset() {
    let journal = Journal::default();
    let (store, bus, reset) = resetting(&journal).await;
    let (other, pauser) = (Arc::clone(&bus), Arc::clone(&bus));
    let same = handles("s", &journal);
    let coming = tokio::spawn(async move { other.subscribe(same).await });
    let pausing = tokio::spawn(async move { pauser.pause("s").await });
    a_while().await;
    assert!(!coming.is_finished() && !pausing.is_finished());
    journal.take();
    store.release_saves();
    soon(reset).await.unwrap().unwrap();
    let come = soon(coming).await.unwrap();
    assert!(
        matches!(come, Err(domain_events::SubscribeError::DuplicateName(_))),
        "{come:?}"
    );
    assert!(soon(pausing).await.unwrap());
    assert!(soon(bus.resume("s")).await);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0, 1, 2]);
}

/// D8: a reset of a name that is just becoming known comes after that, and is not overwritten by it.
#[tokio::test]
async fn d8_a_reset_beside_the_subscribe_of_its_name_is_kept() {
    let journal = Journal::default();
    let store = Arc::new(Held {
        inner: SqliteEventStore::in_memory(SqliteOptions::default()).unwrap(),
        held: Mutex::default(),
    });
    let known = Registration {
        start_from: StartFrom::Now,
        projection: None,
        ..registration("s")
    };
    store.inner.begin_run(vec![known]).await.unwrap();
    let bus = InMemoryEventBus::with_store(BusConfig::default(), in_front(&store)).unwrap();
    let bus = Arc::new(bus);
    soon(bus.start()).await.unwrap();
    for number in 0..3 {
        bus.publish(counted("a", number)).await.unwrap();
    }
    let let_in = async || {
        until(|| !store.held.lock().unwrap().is_empty()).await;
        let (registration, done) = store.held.lock().unwrap().pop().unwrap();
        store.inner.submit_registration(registration, done);
    };
    let coming = {
        let (bus, late) = (Arc::clone(&bus), handles("s", &journal));
        tokio::spawn(async move { bus.subscribe(late).await })
    };
    until(|| !store.held.lock().unwrap().is_empty()).await;
    let resetting = {
        let bus = Arc::clone(&bus);
        let last = StartFrom::After(Position::new(2));
        tokio::spawn(async move { bus.reset("s", last).await })
    };
    a_while().await;
    assert!(!resetting.is_finished());
    let_in().await;
    soon(coming).await.unwrap().unwrap();
    let_in().await;
    soon(resetting).await.unwrap().unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let seen = journal.numbers("a");
    assert_eq!(
        seen.iter().filter(|number| **number == 2).count(),
        2,
        "{seen:?}"
    );
    assert!(soon(bus.unsubscribe("s")).await);
    assert_eq!(store.inner.subscriptions().await.unwrap()[0].lag, 0);
}

/// D8: the store fails to reset: the subscription goes on where it was.
#[tokio::test]
async fn d8_a_reset_that_fails_leaves_the_subscription_where_it_was() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, [handles("s", &journal)]).await;
    bus.publish(counted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    store.hold_saves(is_reset);
    let reset = {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.reset("s", StartFrom::Beginning).await })
    };
    store.until_a_save_is_held().await;
    let (_, done) = store.saves.lock().unwrap().held.pop().unwrap();
    done(Err(busy()));
    let failed = soon(reset).await.unwrap();
    assert!(
        matches!(failed, Err(domain_events::PlaceError::Store(_))),
        "{failed:?}"
    );
    bus.publish(counted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0, 1]);
}

/// A store that refuses resets and registrations for as long as it is told to.
struct Refusing {
    inner: SqliteEventStore,
    refuses: AtomicBool,
    refused: AtomicUsize,
}

#[async_trait]
impl Interceptor for Refusing {
    type Store = SqliteEventStore;

    fn store(&self) -> &SqliteEventStore {
        &self.inner
    }

    fn submit_registration(&self, registration: Registration, done: RegistrationDone) {
        if self.refuses.load(SeqCst) {
            self.refused.fetch_add(1, SeqCst);
            return done(Err(busy()));
        }
        self.inner.submit_registration(registration, done);
    }

    fn submit_changes(&self, changes: DeliveryChanges, done: ChangesDone) {
        if self.refuses.load(SeqCst) && changes.iter().any(is_reset) {
            return done(Err(busy()));
        }
        self.inner.submit_changes(changes, done);
    }
}

/// D8, N3: a fault of the store during a reset takes nobody off the bus; when it is over, the same bus works
/// on.
#[tokio::test]
async fn d8_a_fault_during_a_reset_takes_nobody_off_the_bus() {
    let journal = Journal::default();
    let store = Arc::new(Refusing {
        inner: SqliteEventStore::in_memory(SqliteOptions::default()).unwrap(),
        refuses: AtomicBool::new(false),
        refused: AtomicUsize::new(0),
    });
    let bus = InMemoryEventBus::with_store(BusConfig::default(), in_front(&store)).unwrap();
    let bus = Arc::new(bus);
    bus.subscribe(handles("s", &journal)).await.unwrap();
    soon(bus.start()).await.unwrap();
    bus.publish(counted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    store.refuses.store(true, SeqCst);
    let reset = {
        let bus = Arc::clone(&bus);
        tokio::spawn(async move { bus.reset("s", StartFrom::Beginning).await })
    };
    until(|| store.refused.load(SeqCst) > 0).await;
    let health = bus.health().to_string();
    assert!(health.contains("the store has been at fault"), "{health}");
    store.refuses.store(false, SeqCst);
    let failed = soon(reset).await.unwrap();
    assert!(
        matches!(failed, Err(domain_events::PlaceError::Store(_))),
        "{failed:?}"
    );
    bus.publish(counted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("a"), [0, 1]);
    assert_eq!(bus.health(), domain_events::Health::Healthy);
}

/// R8: who prunes does not wait for a store that is at fault.
#[tokio::test]
async fn r8_who_prunes_does_not_wait_for_a_fault_to_end() {
    let (store, journal) = (Faulty::new(), Journal::default());
    let bus = store.started(10, [handles("s", &journal)]).await;
    bus.publish(counted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    store.saves_to_fail.store(usize::MAX, SeqCst);
    bus.publish(counted("a", 1)).await.unwrap();
    let pruned = soon(bus.prune(domain_events::Retention::Latest(0))).await;
    assert_eq!(pruned.unwrap().events, 1, "what was saved before");
    store.saves_to_fail.store(0, SeqCst);
    soon(bus.wait_idle()).await.unwrap();
    let pruned = soon(bus.prune(domain_events::Retention::Latest(0))).await;
    assert_eq!(pruned.unwrap().events, 1);
}
