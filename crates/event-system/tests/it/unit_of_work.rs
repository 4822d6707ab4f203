//! Units of work, published through a bus or in the application's own transaction.

use std::{
    sync::{Arc, Mutex, Once},
    thread,
    time::Duration,
};

use diesel::{Connection, SqliteConnection, result::Error};
use domain_events::{
    AggregateRoot, Event, EventBus, ExpectedVersion, HandlerContext, Position, RaisedEvents,
    Subscription, UnitOfWork, Version,
};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_store_diesel::{SqliteOptions, append_in, prepare_connection};
use event_system::EventSystem;
use tempfile::tempdir;
use tokio::{sync::Semaphore, time::timeout};

use crate::recovery::{Counted, Journal, Run, counted, handles, soon};

/// An aggregate that raises an event whenever it is counted.
#[derive(Default)]
struct Counter {
    number: u64,
    raised: RaisedEvents,
}

impl Counter {
    fn count(&mut self) {
        self.raised.raise(counted("a", self.number));
        self.number += 1;
    }
}

impl AggregateRoot for Counter {
    fn raised(&mut self) -> &mut RaisedEvents {
        &mut self.raised
    }
}

#[tokio::test]
async fn p3_a_unit_is_published_whole_and_in_order_or_not_at_all() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let run = Run::start(&dir.path().join("a.db"), 100, [handles("s", &journal)]).await;
    let (mut counter, mut unit) = (Counter::default(), UnitOfWork::new());
    (0..3).for_each(|_| counter.count());
    unit.collect(&mut counter);
    let copies = unit.events();
    let receipts = unit.publish(&run.bus).await.unwrap();
    let positions = receipts.iter().map(|it| it.recorded().unwrap().position);
    assert!(positions.eq((1..=3).map(Position::new)));
    assert!(unit.is_empty());
    assert!(unit.publish(&run.bus).await.unwrap().is_empty());
    let again = run.bus.publish_all(copies).await.unwrap();
    assert!(again.iter().all(|receipt| receipt.was_already_there()));

    counter.count();
    unit.collect(&mut counter);
    unit.raise(counted("a", 9).expect(ExpectedVersion::Exact(Version::new(7))));
    unit.publish(&run.bus).await.unwrap_err();
    assert_eq!(unit.len(), 2, "nothing is lost by an error");
    run.idle().await;
    assert_eq!(journal.numbers("a"), [0, 1, 2]);
    unit.clear();
    run.stop().await;
}

#[tokio::test]
async fn p7_a_unit_in_a_transaction_of_ones_own_is_there_until_that_is_committed() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let file = dir.path().join("a.db");
    let run = Run::start(&file, 100, [handles("s", &journal)]).await;
    let mut conn = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    prepare_connection(&mut conn, &SqliteOptions::default()).unwrap();
    let (mut counter, mut unit) = (Counter::default(), UnitOfWork::new());
    (0..3).for_each(|_| counter.count());
    unit.collect(&mut counter);
    for is_committed in [false, true] {
        let committed = conn.immediate_transaction(|conn| {
            append_in(conn, unit.events()).unwrap();
            match is_committed {
                true => Ok(()),
                false => Err(Error::RollbackTransaction),
            }
        });
        assert_eq!(committed.is_ok(), is_committed);
        run.bus.wake();
        run.idle().await;
        assert_eq!(journal.numbers("a").len(), 3 * usize::from(is_committed));
    }
    unit.clear();
    run.stop().await;
}

#[tokio::test]
async fn p8_a_unit_is_published_from_a_thread_that_knows_no_runtime() {
    let dir = tempdir().unwrap();
    let system = EventSystem::builder().sqlite(dir.path().join("a.db"));
    let system = system.start().await.unwrap();
    let publisher = system.publisher();
    let publishing = thread::spawn(move || {
        let (mut counter, mut unit) = (Counter::default(), UnitOfWork::new());
        counter.count();
        unit.collect(&mut counter);
        let receipts = unit.publish_sync(&publisher).unwrap();
        assert!(unit.is_empty());
        (receipts.len(), publisher)
    });
    let (published, publisher) = publishing.join().unwrap();
    assert_eq!(published, 1);
    soon(system.shutdown(Duration::from_secs(10)))
        .await
        .unwrap();
    let mut unit = UnitOfWork::new();
    unit.raise(counted("a", 7));
    unit.publish_sync(&publisher).unwrap_err();
    assert_eq!(unit.len(), 1);
    unit.clear();
}

/// Neither a bus that is stopped nor one that has no room takes anything out of a unit.
#[tokio::test]
async fn what_is_not_published_stays_also_where_the_future_is_dropped() {
    let gate = Arc::new(Semaphore::new(0));
    let (journal, held) = (Journal::default(), Arc::clone(&gate));
    let waits = {
        let journal = journal.clone();
        move |event: Event<Counted>, cx: HandlerContext| {
            let (journal, gate) = (journal.clone(), Arc::clone(&held));
            async move {
                gate.acquire().await?.forget();
                journal.write(&event, &cx);
                Ok(())
            }
        }
    };
    let bus = volatile(2, Subscription::from_fn("waits", waits)).await;
    let (mut counter, mut unit) = (Counter::default(), UnitOfWork::new());
    (0..2).for_each(|_| counter.count());
    unit.collect(&mut counter);
    soon(unit.publish(&bus)).await.unwrap();
    (0..2).for_each(|_| counter.count());
    unit.collect(&mut counter);
    // There is no room now: the future waits, and is dropped.
    let dropped = timeout(Duration::ZERO, unit.publish(&bus)).await;
    dropped.unwrap_err();
    assert_eq!(unit.len(), 2);
    gate.add_permits(4);
    soon(unit.publish(&bus)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(
        journal.numbers("a"),
        [0, 1, 2, 3],
        "none is lost, none is there twice"
    );

    soon(bus.stop(Duration::from_secs(10))).await.unwrap();
    assert!(
        unit.publish(&bus).await.unwrap().is_empty(),
        "it is not asked"
    );
    counter.count();
    unit.collect(&mut counter);
    unit.publish(&bus).await.unwrap_err();
    assert_eq!(unit.len(), 1);
    unit.clear();
}

async fn volatile(capacity: usize, subscription: Subscription) -> InMemoryEventBus {
    let config = BusConfig {
        capacity,
        ..BusConfig::default()
    };
    let bus = InMemoryEventBus::new(config).unwrap();
    bus.subscribe(subscription).await.unwrap();
    bus.start().await.unwrap();
    bus
}

/// What was said of units by this program's other tests is told from this one's by its number.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        SAID.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

fn was_said(events: usize) -> bool {
    let said = SAID.lock().unwrap();
    let line = format!("{events} raised events were dropped unpublished: test.counted");
    said.contains(&line)
}

/// A unit of so many events, before somebody who listens.
fn heard(events: usize) -> UnitOfWork {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        log::set_logger(&Listener).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
    let (mut counter, mut unit) = (Counter::default(), UnitOfWork::new());
    (0..events).for_each(|_| counter.count());
    unit.collect(&mut counter);
    unit
}

#[test]
fn what_is_forgotten_is_told() {
    heard(71).clear();
    assert!(!was_said(71));
    drop(heard(73));
    assert!(was_said(73));
    // What nobody has collected, too.
    let mut counter = Counter::default();
    (0..79).for_each(|_| counter.count());
    drop(counter);
    assert!(was_said(79));
}

#[tokio::test]
async fn what_is_published_is_not_told_and_what_was_refused_is() {
    let (dir, journal) = (tempdir().unwrap(), Journal::default());
    let system = EventSystem::builder()
        .sqlite(dir.path().join("a.db"))
        .subscribe(handles("s", &journal));
    let system = system.start().await.unwrap();
    let publisher = system.publisher();
    let (mut unit, mut sync, mut refused) = (heard(83), heard(89), heard(97));
    soon(unit.publish(&*system.bus())).await.unwrap();
    sync.publish_sync(&publisher).unwrap();
    soon(system.shutdown(Duration::from_secs(10)))
        .await
        .unwrap();
    refused.publish_sync(&publisher).unwrap_err();
    drop((unit, sync, refused));
    assert!(!was_said(83) && !was_said(89) && was_said(97));
}
