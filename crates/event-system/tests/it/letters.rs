//! What follows a dead letter outlasts the run (F4, F5, F6, F7).

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types::Text};
use domain_events::{
    Batch, BatchVerdicts, DeadLetterQuery, DeadLetterReason, DomainEvent, Event, EventBus, EventId,
    FailurePolicy, HandlerContext, HandlerError, Health, LetterError, NewEvent, Ordering,
    PauseReason, Priority, ProcessingLog, RetryPolicy, StartFrom, Subscription, UpcastError,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use tokio::sync::Semaphore;

use crate::recovery::{Counted, Journal, Run, counted, handles, open, soon, subscription};

fn file() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let file = dir.path().join("events.db");
    (dir, file)
}

/// A subscription that gives up what its number says, unless it is well.
fn refuses(journal: &Journal, refused: u64, well: &Arc<AtomicBool>) -> Subscription {
    let well = Arc::clone(well);
    subscription("refuses", journal, move |event: &Counted, _| {
        if event.number == refused && !well.load(SeqCst) {
            return Err(HandlerError::permanent("not today"));
        }
        Ok(())
    })
}

async fn letters(run: &Run) -> Vec<domain_events::DeadLetter> {
    let all = DeadLetterQuery::all();
    run.bus.dead_letters(&all, 10).await.unwrap()
}

/// Ends the run as it should end, or as a crash does.
async fn end(run: Run, crashes: bool) {
    match crashes {
        true => run.crash().await,
        false => drop(run.stop().await),
    }
}

#[tokio::test]
async fn f5_what_is_parked_stays_so_over_runs_and_goes_on_after_the_replay() {
    for crashes in [true, false] {
        let (_dir, file) = file();
        let (journal, well) = (Journal::default(), Arc::default());
        let parks = || {
            let parks = refuses(&journal, 0, &well);
            [parks.failure_policy(FailurePolicy::ParkAggregate)]
        };
        let run = Run::start(&file, 100, parks()).await;
        for (counter, number) in [("a", 0), ("a", 1), ("b", 10), ("a", 2)] {
            run.bus.publish(counted(counter, number)).await.unwrap();
        }
        run.idle().await;
        assert_eq!(journal.numbers("a"), [0]);
        end(run, crashes).await;
        journal.take();

        let run = Run::start(&file, 100, parks()).await;
        run.bus.publish(counted("a", 3)).await.unwrap();
        run.idle().await;
        assert!(journal.numbers("a").is_empty(), "parked behind 0");
        let dead = letters(&run).await;
        assert_eq!(dead.len(), 1);
        well.store(true, SeqCst);
        run.bus.replay("refuses", dead[0].event_id()).await.unwrap();
        run.idle().await;
        assert_eq!(journal.numbers("a"), [0, 1, 2, 3]);
        assert_eq!(letters(&run).await.len(), 0);
        end(run, crashes).await;
        journal.take();

        let run = Run::start(&file, 100, parks()).await;
        run.bus.publish(counted("a", 4)).await.unwrap();
        run.idle().await;
        assert_eq!(journal.numbers("a"), [4], "all is done, and nothing parked");
        run.stop().await;
    }
}

#[tokio::test]
async fn f6_a_discard_is_kept_with_its_reason_and_frees_what_was_parked() {
    let (_dir, file) = file();
    let (journal, well) = (Journal::default(), Arc::default());
    let parks = || {
        let parks = refuses(&journal, 0, &well);
        [parks.failure_policy(FailurePolicy::ParkAggregate)]
    };
    let run = Run::start(&file, 100, parks()).await;
    for number in 0..3 {
        run.bus.publish(counted("a", number)).await.unwrap();
    }
    run.idle().await;
    let dead = letters(&run).await[0].event_id();
    run.bus.discard("refuses", dead, "of no use").await.unwrap();
    // It is committed, whatever comes next.
    run.crash().await;
    let run = Run::start(&file, 100, parks()).await;
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2]);
    assert_eq!(letters(&run).await.len(), 0);
    let again = run.bus.discard("refuses", dead, "once more").await;
    assert!(matches!(again, Err(LetterError::NoSuchLetter { .. })));
    run.stop().await;
    assert_eq!(
        settled(&file),
        [("discarded".to_owned(), "of no use".to_owned())]
    );
}

#[derive(QueryableByName)]
struct Settled {
    #[diesel(sql_type = Text)]
    settled_as: String,
    #[diesel(sql_type = Text)]
    note: String,
}

/// What the file keeps of letters that were replayed or discarded.
fn settled(file: &Path) -> Vec<(String, String)> {
    let rows: Vec<Settled> = sql_query(
        "SELECT settled_as, coalesce(note, '') AS note FROM de_dead_letters
         WHERE settled_at IS NOT NULL ORDER BY dead_letter_id",
    )
    .load(&mut open(file))
    .unwrap();
    rows.into_iter()
        .map(|it| (it.settled_as, it.note))
        .collect()
}

#[tokio::test]
async fn f6_a_replay_that_a_crash_interrupts_is_made_by_the_next_run() {
    for ordering in [Ordering::PerAggregate, Ordering::Total, Ordering::None] {
        let own = |subscription: Subscription| {
            let subscription = subscription.start_from(StartFrom::Beginning);
            subscription.ordering(ordering)
        };
        let (_dir, file) = file();
        let journal = Journal::default();
        let began = Arc::new(Semaphore::new(0));
        let begun = Arc::clone(&began);
        let hangs = move |_: Event<Counted>, cx: HandlerContext| {
            let begun = Arc::clone(&begun);
            async move {
                if !cx.info().is_replay {
                    return Err(HandlerError::permanent("not today"));
                }
                begun.add_permits(1);
                std::future::pending().await
            }
        };
        let hangs = Subscription::from_fn("refuses", hangs);
        let run = Run::start(&file, 100, [own(hangs)]).await;
        run.bus.publish(counted("a", 0)).await.unwrap();
        run.idle().await;
        let dead = letters(&run).await[0].event_id();
        run.bus.replay("refuses", dead).await.unwrap();
        soon(began.acquire()).await.unwrap().forget();
        assert_eq!(letters(&run).await.len(), 0);
        run.crash().await;

        let replays = Arc::new(AtomicBool::new(false));
        let is_replay = Arc::clone(&replays);
        let noting = journal.clone();
        let handler = move |event: Event<Counted>, cx: HandlerContext| {
            noting.write(&event, &cx);
            is_replay.store(cx.info().is_replay, SeqCst);
            async { Ok(()) }
        };
        let handler = Subscription::from_fn("refuses", handler);
        let run = Run::start(&file, 100, [own(handler)]).await;
        run.idle().await;
        assert_eq!(journal.numbers("a"), [0], "{ordering:?}");
        assert!(
            replays.load(SeqCst),
            "{ordering:?}: it says that it is a replay"
        );
        assert_eq!(letters(&run).await.len(), 0);
        run.stop().await;
        assert_eq!(settled(&file), [("replayed".to_owned(), String::new())]);
        let run = Run::start(&file, 100, [own(handles("refuses", &journal))]).await;
        run.idle().await;
        assert_eq!(journal.numbers("a"), [0], "{ordering:?}: it is done");
        run.stop().await;
    }
}

#[tokio::test]
async fn f6_many_letters_are_replayed_page_by_page_in_order_or_none() {
    const MANY: u64 = 1_100;
    let (_dir, file) = file();
    let (journal, well) = (Journal::default(), Arc::new(AtomicBool::new(false)));
    let is_well = Arc::clone(&well);
    let refuses = subscription("refuses", &journal, move |_: &Counted, _| {
        match is_well.load(SeqCst) {
            true => Ok(()),
            false => Err(HandlerError::permanent("not today")),
        }
    });
    let run = Run::start(&file, 2_000, [refuses]).await;
    let events = (0..MANY).map(|number| counted(["a", "b"][number as usize % 2], number));
    run.bus.publish_all(events.collect()).await.unwrap();
    run.idle().await;
    journal.take();
    well.store(true, SeqCst);
    let all = DeadLetterQuery::all();
    let groups = run.bus.dead_letter_groups(&all).await.unwrap();
    assert_eq!((groups.len(), groups[0].letters), (1, MANY));
    let replayed = run.bus.replay_all(&groups[0].query()).await.unwrap();
    assert_eq!(replayed as u64, MANY);
    run.idle().await;
    for (counter, first) in [("a", 0), ("b", 1)] {
        let expected: Vec<_> = (first..MANY).step_by(2).collect();
        assert_eq!(journal.numbers(counter), expected);
    }
    assert_eq!(letters(&run).await.len(), 0);

    // With one letter that nobody could be given, none is replayed.
    well.store(false, SeqCst);
    let gone = subscription("gone", &journal, |_: &Counted, _| {
        Err(HandlerError::permanent("no"))
    });
    run.bus
        .subscribe(gone.start_from(StartFrom::Now))
        .await
        .unwrap();
    run.bus.publish(counted("c", 0)).await.unwrap();
    run.idle().await;
    assert!(run.bus.unsubscribe("gone").await);
    let refused = run.bus.replay_all(&all).await;
    assert!(
        matches!(refused, Err(LetterError::NoSuchSubscription { .. })),
        "{refused:?}"
    );
    run.idle().await;
    assert_eq!(letters(&run).await.len(), 2);
    assert_eq!(run.bus.discard_all(&all, "of no use").await.unwrap(), 2);
    run.stop().await;
}

#[tokio::test]
async fn f5_a_pause_outlasts_the_run_and_says_why() {
    for crashes in [true, false] {
        let (_dir, file) = file();
        let (journal, well) = (Journal::default(), Arc::default());
        let pauses = || {
            let pauses = refuses(&journal, 0, &well);
            let pauses = pauses.failure_policy(FailurePolicy::PauseSubscription);
            [pauses, handles("other", &journal)]
        };
        let paused = |run: &Run, name| run.bus.statistics().of(name).unwrap().paused;
        let run = Run::start(&file, 100, pauses()).await;
        for number in 0..3 {
            run.bus.publish(counted("a", number)).await.unwrap();
        }
        run.idle().await;
        assert!(run.bus.pause("other").await);
        end(run, crashes).await;
        journal.take();

        let run = Run::start(&file, 100, pauses()).await;
        run.bus.publish(counted("b", 3)).await.unwrap();
        run.idle().await;
        assert_eq!(journal.take(), []);
        assert_eq!(paused(&run, "refuses"), Some(PauseReason::DeadLetter));
        assert_eq!(paused(&run, "other"), Some(PauseReason::Asked));
        for name in ["refuses", "other"] {
            assert!(run.bus.resume(name).await);
        }
        end(run, crashes).await;
        let run = Run::start(&file, 100, pauses()).await;
        run.idle().await;
        assert_eq!(paused(&run, "refuses"), None);
        let seen = journal.numbers("a");
        assert!(
            [1, 2].iter().all(|number| seen.contains(number)),
            "{seen:?}"
        );
        run.stop().await;
    }
}

/// A subscription whose handler never comes to its end with one number.
fn ends_the_process(journal: &Journal, began: &Arc<Semaphore>) -> Subscription {
    let (journal, began) = (journal.clone(), Arc::clone(began));
    let handler = move |event: Event<Counted>, cx: HandlerContext| {
        journal.write(&event, &cx);
        let began = Arc::clone(&began);
        async move {
            if event.number == 0 {
                began.add_permits(1);
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    };
    let ends = Subscription::from_fn("ends", handler).retry(RetryPolicy::exponential());
    ends.start_from(StartFrom::Beginning)
}

#[tokio::test]
async fn f4_what_is_found_running_at_three_unclean_ends_in_a_row_is_given_up() {
    let (_dir, file) = file();
    let (journal, began) = (Journal::default(), Arc::new(Semaphore::new(0)));
    for crash in 0..4 {
        let run = Run::start(&file, 100, [ends_the_process(&journal, &began)]).await;
        if crash == 0 {
            for (counter, number) in [("a", 0), ("a", 1), ("b", 2)] {
                run.bus.publish(counted(counter, number)).await.unwrap();
            }
        }
        // The first crash is the one after which starts are recorded.
        soon(began.acquire()).await.unwrap().forget();
        run.crash().await;
    }
    journal.take();
    let run = Run::start(&file, 100, [ends_the_process(&journal, &began)]).await;
    run.idle().await;
    let dead = letters(&run).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason, DeadLetterReason::Crashed);
    assert!(
        dead[0].error.contains("3 unclean ends"),
        "{}",
        dead[0].error
    );
    assert_eq!(
        journal.numbers("a"),
        [1],
        "it was not called, and 1 goes on"
    );
    // Whoever replays it wants it called.
    run.bus.replay("ends", dead[0].event_id()).await.unwrap();
    soon(began.acquire()).await.unwrap().forget();
    run.crash().await;
}

/// Those that only shared a batch with what ends the process are no dead letters with it.
#[tokio::test]
async fn f4_of_a_batch_only_what_ends_the_process_is_given_up() {
    let (_dir, file) = file();
    let (journal, began) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let ends = || {
        let (journal, began) = (journal.clone(), Arc::clone(&began));
        let handler = move |batch: Batch<Counted>| {
            batch
                .iter()
                .for_each(|(event, cx)| journal.write(event, cx));
            let is_deadly = batch.iter().any(|(event, _)| event.number == 3);
            let began = Arc::clone(&began);
            async move {
                if is_deadly {
                    began.add_permits(1);
                    std::future::pending::<()>().await;
                }
                Ok(BatchVerdicts::all_handled())
            }
        };
        let ends = Subscription::from_batch_fn("ends", 64, handler);
        ends.start_from(StartFrom::Beginning)
    };
    let run = Run::start(&file, 100, []).await;
    for number in 0..8 {
        let counter = ["a", "b", "c"][number as usize % 3];
        run.bus.publish(counted(counter, number)).await.unwrap();
    }
    run.crash().await;
    for _ in 0..3 {
        let run = Run::start(&file, 100, [ends()]).await;
        soon(began.acquire()).await.unwrap().forget();
        run.crash().await;
    }
    let run = Run::start(&file, 100, [ends()]).await;
    run.idle().await;
    let dead = letters(&run).await;
    let numbers = dead
        .iter()
        .map(|letter| letter.event.typed::<Counted>().unwrap().number);
    assert_eq!(numbers.collect::<Vec<_>>(), [3]);
    assert_eq!(dead[0].reason, DeadLetterReason::Crashed);
    run.stop().await;
}

#[tokio::test]
async fn f4_unclean_ends_count_only_in_a_row() {
    let (_dir, file) = file();
    let (journal, began) = (Journal::default(), Arc::new(Semaphore::new(0)));
    for end in 0..5 {
        let run = Run::start(&file, 100, [ends_the_process(&journal, &began)]).await;
        if end == 0 {
            run.bus.publish(counted("a", 0)).await.unwrap();
        }
        soon(began.acquire()).await.unwrap().forget();
        match end {
            // A stop that cuts it off is no clean end, but the attempt came to one.
            2 => {
                soon(run.bus.stop(Duration::ZERO)).await.unwrap();
                soon(run.store.close()).await;
            }
            _ => run.crash().await,
        }
    }
    let run = Run::start(&file, 100, [ends_the_process(&journal, &began)]).await;
    soon(began.acquire()).await.unwrap().forget();
    assert_eq!(letters(&run).await.len(), 0, "once, a stop, and twice");
    run.crash().await;
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.priced", aggregate = "item", id = item)]
struct Priced {
    item: String,
    price: u64,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.priced", aggregate = "item", id = item, version = 3, upcast = upcast)]
struct PricedIn {
    item: String,
    price: u64,
    currency: String,
}

fn upcast(from: u32, mut payload: Value) -> Result<Value, UpcastError> {
    match from {
        1 if payload["price"] == 0 => Err("nothing has no price".into()),
        1 => {
            payload["currency"] = json!("won");
            Ok(payload)
        }
        _ => {
            payload["currency"] = json!("KRW");
            Ok(payload)
        }
    }
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.priced", aggregate = "item", id = item, version = 3, upcast = mended)]
struct PricedWell {
    item: String,
    price: u64,
    currency: String,
}

fn mended(from: u32, payload: Value) -> Result<Value, UpcastError> {
    let mut payload = match payload["price"] == 0 {
        true => payload,
        false => upcast(from, payload)?,
    };
    payload["currency"] = json!("KRW");
    Ok(payload)
}

type Prices = Arc<std::sync::Mutex<Vec<(String, u64)>>>;

fn prices<E: DomainEvent>(
    seen: &Prices,
    read: impl Fn(&E) -> (String, u64) + Send + Sync + 'static,
) -> Subscription {
    let seen = Arc::clone(seen);
    let handler = move |event: Event<E>, _| {
        seen.lock().unwrap().push(read(&event));
        async { Ok(()) }
    };
    Subscription::from_fn("prices", handler).start_from(StartFrom::Beginning)
}

#[tokio::test]
async fn f7_older_events_are_upcast_step_by_step_also_at_replay() {
    let (_dir, file) = file();
    let run = Run::start(&file, 100, []).await;
    let mut ids: Vec<EventId> = Vec::new();
    for (item, price) in [("tea", 5), ("air", 0), ("air", 7)] {
        let item = item.to_owned();
        let published = run.bus.publish(NewEvent::new(Priced { item, price })).await;
        ids.push(published.unwrap().event_id());
    }
    run.stop().await;
    let seen = Prices::default();
    let run = Run::start(
        &file,
        100,
        [prices(&seen, |it: &PricedIn| {
            (it.currency.clone(), it.price)
        })],
    )
    .await;
    run.idle().await;
    let won = |price| ("KRW".to_owned(), price);
    let mut handled = std::mem::take(&mut *seen.lock().unwrap());
    handled.sort();
    assert_eq!(handled, [won(5), won(7)]);
    let dead = letters(&run).await;
    assert_eq!((dead.len(), dead[0].event_id()), (1, ids[1]));
    assert_eq!(dead[0].reason, DeadLetterReason::Unreadable);
    assert!(
        dead[0].error.contains("from schema version 1"),
        "{}",
        dead[0].error
    );
    let raw: Value = serde_json::from_slice(dead[0].event.payload().unwrap()).unwrap();
    assert_eq!(
        raw,
        json!({"item": "air", "price": 0}),
        "the raw bytes are kept"
    );
    run.stop().await;

    // The upcaster is mended; what was given up is delivered again with it.
    let well = prices(&seen, |it: &PricedWell| (it.currency.clone(), it.price));
    let run = Run::start(&file, 100, [well]).await;
    run.bus.replay("prices", ids[1]).await.unwrap();
    run.idle().await;
    assert_eq!(*seen.lock().unwrap(), [won(0)]);
    run.stop().await;
}

#[tokio::test]
async fn f7_a_newer_event_pauses_its_subscription_until_the_program_knows_it() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let run = Run::start(&file, 100, []).await;
    let tea = |price| {
        NewEvent::new(PricedIn {
            item: "tea".to_owned(),
            price,
            currency: "KRW".to_owned(),
        })
    };
    run.bus.publish(tea(1)).await.unwrap();
    run.bus.publish(counted("a", 0)).await.unwrap();
    run.stop().await;

    let seen = Prices::default();
    let older = prices(&seen, |it: &Priced| (String::new(), it.price));
    let run = Run::start(&file, 100, [older, handles("counts", &journal)]).await;
    run.idle().await;
    let figures = run.bus.statistics().of("prices").unwrap().clone();
    assert_eq!(figures.paused, Some(PauseReason::NewerSchema));
    assert_eq!((figures.dead, figures.handled), (0, 0));
    assert_eq!(letters(&run).await.len(), 0);
    assert_eq!(journal.numbers("a"), [0], "others are not affected");
    let Health::Degraded(reasons) = run.bus.health() else {
        panic!("{}", run.bus.health())
    };
    let told: Vec<_> = reasons.iter().map(ToString::to_string).collect();
    assert!(
        told.iter().any(|it| it.contains("newer schema")),
        "{told:?}"
    );
    run.crash().await;

    let newer = prices(&seen, |it: &PricedIn| (it.currency.clone(), it.price));
    let run = Run::start(&file, 100, [newer]).await;
    run.idle().await;
    assert_eq!(*seen.lock().unwrap(), [("KRW".to_owned(), 1)]);
    assert_eq!(run.bus.statistics().of("prices").unwrap().paused, None);
    run.stop().await;
}

/// The processing log is kept over runs, as far as it is to be: off, failures, everything.
#[tokio::test]
async fn a_processing_log_outlasts_the_run_up_to_its_bound() {
    let kinds = [
        (ProcessingLog::Off, vec![]),
        (ProcessingLog::Failures, vec!["failed"; 2]),
        (
            ProcessingLog::Everything,
            vec!["handled", "skipped", "handled"],
        ),
    ];
    for (which, expected) in kinds {
        let (_dir, file) = file();
        let config = || BusConfig {
            processing_log: which,
            processing_log_entries: 3,
            ..BusConfig::default()
        };
        let journal = Journal::default();
        let answers = subscription("answers", &journal, |event: &Counted, attempt| {
            match (event.number, attempt) {
                (0 | 2, 1) => Err(HandlerError::retry_after(Duration::ZERO, "not yet")),
                (3, _) => Err(HandlerError::skip("not needed")),
                _ => Ok(()),
            }
        });
        let store = Arc::new(SqliteEventStore::open(&file, SqliteOptions::default()).unwrap());
        let bus = InMemoryEventBus::with_store(config(), Arc::clone(&store)).unwrap();
        bus.subscribe(answers).await.unwrap();
        bus.start().await.unwrap();
        for number in [0, 1, 2, 3, 4] {
            bus.publish(counted("a", number)).await.unwrap();
            soon(bus.wait_idle()).await.unwrap();
        }
        bus.stop(Duration::from_secs(5)).await.unwrap();
        soon(store.close()).await;
        let store = Arc::new(SqliteEventStore::open(&file, SqliteOptions::default()).unwrap());
        let bus = InMemoryEventBus::with_store(config(), Arc::clone(&store)).unwrap();
        let log = bus.processing_log(Some("answers"), 10).await.unwrap();
        let results: Vec<_> = log.iter().map(|it| it.result.to_stored().0).collect();
        assert_eq!(results, expected, "{which:?}");
        assert!(
            log.iter()
                .all(|it| it.position.is_some() && it.attempt >= 1)
        );
        assert_eq!(bus.processing_log(Some("other"), 10).await.unwrap(), []);
        soon(store.close()).await;
    }
}

/// A handler that waits at a gate with number 1, gives up 0 unless it is replayed, and else handles.
fn gated(journal: &Journal, began: &Arc<Semaphore>, gate: &Arc<Semaphore>) -> Subscription {
    let (journal, began, gate) = (journal.clone(), Arc::clone(began), Arc::clone(gate));
    let handler = move |event: Event<Counted>, cx: HandlerContext| {
        journal.write(&event, &cx);
        let (began, gate) = (Arc::clone(&began), Arc::clone(&gate));
        async move {
            match event.number {
                0 if !cx.info().is_replay => return Err(HandlerError::permanent("not today")),
                1 => {
                    began.add_permits(1);
                    gate.acquire().await?.forget();
                }
                _ => {}
            }
            Ok(())
        }
    };
    Subscription::from_fn("gated", handler).start_from(StartFrom::Beginning)
}

/// F6, D2: a replay that is asked for while the aggregate is delivered, in a run or from its backlog,
/// is made after what runs, and takes nothing from what waits.
#[tokio::test]
async fn f6_a_replay_beside_a_delivery_takes_nothing_from_it() {
    for from_backlog in [false, true] {
        let (_dir, file) = file();
        let journal = Journal::default();
        let (began, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let run = Run::start(&file, 100, [gated(&journal, &began, &gate)]).await;
        let dead = run.bus.publish(counted("a", 0)).await.unwrap().event_id();
        run.idle().await;
        if from_backlog {
            assert!(run.bus.pause("gated").await);
        }
        let events = (1..5).map(|number| counted("a", number)).collect();
        drop(run.bus.publish_all(events).await.unwrap());
        if from_backlog {
            run.idle().await;
            assert!(run.bus.resume("gated").await);
        }
        soon(began.acquire()).await.unwrap().forget();
        run.bus.replay("gated", dead).await.unwrap();
        gate.add_permits(1);
        run.idle().await;
        let mut seen = journal.numbers("a");
        assert_eq!(seen[..2], [0, 1], "{from_backlog}: {seen:?}");
        let replayed = seen.iter().rposition(|number| *number == 0).unwrap();
        seen.remove(replayed);
        assert_eq!(seen, [0, 1, 2, 3, 4], "{from_backlog}: each once, in order");
        assert_eq!(letters(&run).await.len(), 0);
        run.stop().await;
        journal.take();
        let run = Run::start(&file, 100, [handles("gated", &journal)]).await;
        run.idle().await;
        assert_eq!(journal.take(), [], "{from_backlog}: all is done");
        run.stop().await;
    }
}

/// F3: nor does it bring forward the retry of what has failed meanwhile.
#[tokio::test]
async fn f3_a_replay_brings_no_retry_forward() {
    let (_dir, file) = file();
    let journal = Journal::default();
    let (began, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (starts, opened, noting) = (Arc::clone(&began), Arc::clone(&gate), journal.clone());
    let handler = move |event: Event<Counted>, cx: HandlerContext| {
        noting.write(&event, &cx);
        let (began, gate) = (Arc::clone(&starts), Arc::clone(&opened));
        async move {
            match event.number {
                0 => Err(HandlerError::permanent("not today")),
                1 => {
                    began.add_permits(1);
                    gate.acquire().await?.forget();
                    let hour = Duration::from_secs(3_600);
                    Err(HandlerError::retry_after(hour, "later"))
                }
                _ => Ok(()),
            }
        }
    };
    let run = Run::start(&file, 100, [Subscription::from_fn("later", handler)]).await;
    let dead = run.bus.publish(counted("a", 0)).await.unwrap().event_id();
    run.idle().await;
    run.bus.publish(counted("a", 1)).await.unwrap();
    soon(began.acquire()).await.unwrap().forget();
    run.bus.replay("later", dead).await.unwrap();
    gate.add_permits(1);
    let waits = async {
        while run.bus.statistics().of("later").unwrap().waiting == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(waits).await;
    for number in 2..10 {
        let other = run.bus.publish(counted("b", number)).await.unwrap();
        soon(other.handled()).await.unwrap();
    }
    let attempts = journal.numbers("a");
    assert_eq!(attempts, [0, 1], "the hour is not over");
    run.crash().await;
}

/// R5: what may be a repeat says so after a clean end, too, that has left it in the log.
#[tokio::test]
async fn r5_what_an_unclean_end_has_left_says_so_until_it_is_done() {
    let (_dir, file) = file();
    let (journal, began) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let run = Run::start(&file, 100, [ends_the_process(&journal, &began)]).await;
    run.bus.publish(counted("a", 0)).await.unwrap();
    soon(began.acquire()).await.unwrap().forget();
    run.crash().await;
    let later = subscription("ends", &journal, |_: &Counted, _| {
        let hour = Duration::from_secs(3_600);
        Err(HandlerError::retry_after(hour, "later"))
    });
    let run = Run::start(&file, 100, [later]).await;
    let waits = async {
        while run.bus.statistics().of("ends").unwrap().waiting == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(waits).await;
    run.stop().await;
    journal.take();
    crate::recovery::make_due(&file);
    let run = Run::start(&file, 100, [handles("ends", &journal)]).await;
    run.bus.publish(counted("b", 1)).await.unwrap();
    run.idle().await;
    let mut seen = journal.take();
    seen.sort();
    let repeats: Vec<_> = seen.iter().map(|it| (it.1, it.3)).collect();
    assert_eq!(repeats, [(0, true), (1, false)]);
    run.stop().await;
}

/// D1, F5: a replay that is asked for while another subscription is at the next event of the aggregate,
/// of one that is paused: over a crash, all is delivered once it is resumed, in order.
#[tokio::test]
async fn d1_a_replay_beside_others_of_one_that_is_paused_loses_nothing() {
    for crashes in [true, false] {
        let (_dir, file) = file();
        let (journal, slow) = (Journal::default(), Journal::default());
        let (began, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (starts, opened) = (Arc::clone(&began), Arc::clone(&gate));
        let slow_one = move |event: Event<Counted>, cx: HandlerContext| {
            slow.write(&event, &cx);
            let (began, gate) = (Arc::clone(&starts), Arc::clone(&opened));
            async move {
                if event.number == 1 {
                    began.add_permits(1);
                    gate.acquire().await?.forget();
                }
                Ok(())
            }
        };
        let slow_one = Subscription::from_fn("slow", slow_one).priority(Priority::HIGH);
        let pauses = refuses(&journal, 0, &Arc::default());
        let pauses = pauses.failure_policy(FailurePolicy::PauseSubscription);
        let run = Run::start(&file, 100, [slow_one, pauses]).await;
        let dead = run.bus.publish(counted("a", 0)).await.unwrap().event_id();
        run.idle().await;
        let events = (1..4).map(|number| counted("a", number)).collect();
        drop(run.bus.publish_all(events).await.unwrap());
        soon(began.acquire()).await.unwrap().forget();
        run.bus.replay("refuses", dead).await.unwrap();
        gate.add_permits(1);
        run.idle().await;
        end(run, crashes).await;
        journal.take();

        let run = Run::start(&file, 100, [handles("refuses", &journal)]).await;
        assert!(run.bus.resume("refuses").await);
        run.idle().await;
        assert_eq!(journal.numbers("a"), [0, 1, 2, 3], "{crashes}");
        let stored = run.bus.stored_subscriptions().await.unwrap();
        let own = stored.iter().find(|it| &*it.name == "refuses").unwrap();
        assert_eq!((own.lag, own.dead), (0, 0), "{crashes}");
        run.stop().await;
    }
}

/// P4, F6: however many letters are replayed, and whatever the order, those that find no room wait in the log.
#[tokio::test]
async fn p4_many_replays_take_no_more_room_than_there_is() {
    const LETTERS: u64 = 300;
    for ordering in [Ordering::PerAggregate, Ordering::Total, Ordering::None] {
        let (_dir, file) = file();
        let journal = Journal::default();
        let gate = Arc::new(Semaphore::new(0));
        let (opens, noted) = (Arc::clone(&gate), journal.clone());
        let handler = move |event: Event<Counted>, cx: HandlerContext| {
            let (opens, noted) = (Arc::clone(&opens), noted.clone());
            async move {
                if !cx.info().is_replay && event.number < LETTERS {
                    return Err(HandlerError::permanent("not today"));
                }
                opens.acquire().await?.forget();
                noted.write(&event, &cx);
                Ok(())
            }
        };
        let refuses = Subscription::from_fn("refuses", handler);
        let refuses = refuses.ordering(ordering).isolated(1).capacity(4);
        let run = Run::start(&file, 100, [refuses]).await;
        let events = (0..LETTERS).map(|number| counted("a", number)).collect();
        run.bus.publish_all(events).await.unwrap();
        run.idle().await;
        let all = DeadLetterQuery::all();
        let replayed = soon(run.bus.replay_all(&all)).await.unwrap();
        assert_eq!(replayed as u64, LETTERS);
        run.bus.publish(counted("a", LETTERS)).await.unwrap();
        let statistics = run.bus.statistics();
        assert!(
            statistics.in_flight <= 4,
            "{ordering:?}: {}",
            statistics.in_flight
        );
        gate.add_permits(LETTERS as usize + 1);
        run.idle().await;
        let mut seen = journal.numbers("a");
        seen.sort_unstable();
        assert_eq!(seen, (0..=LETTERS).collect::<Vec<_>>(), "{ordering:?}");
        let statistics = run.bus.statistics();
        let figures = statistics.of("refuses").unwrap();
        assert_eq!(
            (figures.matching, figures.handled, figures.dead),
            (LETTERS + 1, LETTERS + 1, 0)
        );
        assert!(run.store.verify().await.unwrap().is_sound());
        run.stop().await;
    }
}
