//! Publishing from code that is not async (P8).

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use domain_events::{
    AppendError, DomainEventPublisher, Event, HandlerContext, HandlerError, NewEvent, Position,
    Priority, PublishError, Subscription,
};
use event_system::{EventSystem, SyncPublisher};
use tempfile::{TempDir, tempdir};
use tokio::{runtime::Builder, sync::Semaphore};

use crate::recovery::{Counted, Journal, counted, handles, soon};

const SECOND: Duration = Duration::from_secs(1);

async fn durable(journal: &Journal) -> (EventSystem, TempDir) {
    let dir = tempdir().unwrap();
    let system = EventSystem::builder()
        .sqlite(dir.path().join("events.db"))
        .subscribe(handles("s", journal))
        .start();
    (system.await.unwrap(), dir)
}

async fn volatile(journal: &Journal) -> EventSystem {
    let system = EventSystem::builder().subscribe(handles("s", journal));
    system.start().await.unwrap()
}

/// A domain service: it knows the port and nothing else.
struct Counter<'a>(&'a dyn DomainEventPublisher);

impl Counter<'_> {
    fn count(&self, numbers: std::ops::Range<u64>) -> Result<usize, PublishError> {
        let events = numbers.map(|number| counted("a", number)).collect();
        let receipts = self.0.publish_all(events)?;
        Ok(receipts.len())
    }
}

/// The one thread of a runtime is blocked, and nothing waits for it.
#[test]
fn p8_on_the_thread_of_a_runtime_that_has_no_other() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::default();
        for is_durable in [true, false] {
            let (system, _dir) = match is_durable {
                true => {
                    let (system, dir) = durable(&journal).await;
                    (system, Some(dir))
                }
                false => (volatile(&journal).await, None),
            };
            let publisher = system.publisher();
            let receipt = publisher.publish(counted("a", 0)).unwrap();
            let position = receipt.recorded().map(|recorded| recorded.position);
            assert_eq!(
                position,
                is_durable.then_some(Position::FIRST),
                "it is committed"
            );
            assert_eq!(Counter(&publisher).count(1..4).unwrap(), 3);
            assert!(soon(receipt.handled()).await.unwrap().is_success());
            soon(system.wait_idle()).await.unwrap();
            assert_eq!(journal.numbers("a"), [0, 1, 2, 3]);
            journal.take();
            system.shutdown(SECOND).await.unwrap();
        }
    });
}

/// From a task and from a blocking task, from threads that know no runtime, and all of them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_from_tasks_and_from_threads_beside_each_other() {
    let journal = Journal::default();
    let (system, _dir) = durable(&journal).await;
    let publish = |who: u64| {
        let publisher = system.publisher();
        move || {
            for number in 0..20 {
                let event = counted(&who.to_string(), number);
                publisher.publish(event).unwrap();
            }
        }
    };
    let (task, other) = (publish(0), publish(1));
    let tasks = [
        tokio::spawn(async move { task() }),
        tokio::spawn(async move { other() }),
        tokio::task::spawn_blocking(publish(2)),
        tokio::task::spawn_blocking(publish(3)),
    ];
    let threads = [publish(4), publish(5)].map(thread::spawn);
    for task in tasks {
        soon(task).await.unwrap();
    }
    for thread in threads {
        tokio::task::block_in_place(|| thread.join().unwrap());
    }
    soon(system.wait_idle()).await.unwrap();
    for who in 0..6 {
        let expected: Vec<u64> = (0..20).collect();
        assert_eq!(journal.numbers(&who.to_string()), expected, "{who}");
    }
    system.shutdown(SECOND).await.unwrap();
}

/// A handler may use a service, too; and what publishes when it is dropped, be it by a panic.
#[tokio::test]
async fn p8_from_a_handler_and_from_a_drop() {
    struct Last(SyncPublisher, u64);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.publish(counted("dropped", self.1)).unwrap();
        }
    }
    let journal = Journal::default();
    let dir = tempdir().unwrap();
    let cell = Arc::new(Mutex::new(None::<SyncPublisher>));
    let held = Arc::clone(&cell);
    let follows = move |event: Event<Counted>, _: HandlerContext| {
        let publisher = held.lock().unwrap().clone();
        async move {
            if event.counter == "a" {
                let publisher =
                    publisher.ok_or_else(|| HandlerError::transient("nobody to publish"))?;
                publisher.publish(counted("b", event.number))?;
            }
            Ok(())
        }
    };
    let system = EventSystem::builder()
        .sqlite(dir.path().join("events.db"))
        .capacity(2)
        .workers(1)
        .on("follows", Priority::NORMAL, follows)
        .subscribe(handles("s", &journal))
        .start()
        .await
        .unwrap();
    *cell.lock().unwrap() = Some(system.publisher());
    for number in 0..10 {
        soon(system.publish(counted("a", number))).await.unwrap();
    }
    soon(system.wait_idle()).await.unwrap();
    let expected: Vec<u64> = (0..10).collect();
    assert_eq!(journal.numbers("b"), expected);

    drop(Last(system.publisher(), 1));
    let unwinding = Last(system.publisher(), 2);
    let panicking = thread::spawn(move || {
        let _unwinding = unwinding;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panicking.join().is_err());
    soon(system.wait_idle()).await.unwrap();
    assert_eq!(journal.numbers("dropped"), [1, 2]);
    *cell.lock().unwrap() = None;
    system.shutdown(SECOND).await.unwrap();
}

/// No room is an error that gives the events back, or a matter of the log.
#[tokio::test]
async fn p8_nobody_waits_for_room() {
    for is_durable in [true, false] {
        let dir = tempdir().unwrap();
        let (gate, seen) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opens, counts) = (Arc::clone(&gate), Arc::clone(&seen));
        let waits = move |_: Event<Counted>, _: HandlerContext| {
            let (opens, counts) = (Arc::clone(&opens), Arc::clone(&counts));
            async move {
                opens.acquire().await?.forget();
                counts.fetch_add(1, SeqCst);
                Ok::<_, HandlerError>(())
            }
        };
        let builder = match is_durable {
            true => EventSystem::builder().sqlite(dir.path().join("events.db")),
            false => EventSystem::builder(),
        };
        let waits = Subscription::from_fn("waits", waits);
        let system = builder.capacity(2).subscribe(waits).start().await.unwrap();
        let publisher = system.publisher();
        for number in 0..2 {
            publisher.publish(counted("a", number)).unwrap();
        }
        let more: Vec<NewEvent> = (2..4).map(|number| counted("a", number)).collect();
        let published = publisher.publish_all(more);
        let count = match is_durable {
            true => {
                assert_eq!(published.unwrap().len(), 2, "they are in the log");
                4
            }
            false => {
                let Err(PublishError::Full { capacity, events }) = published else {
                    panic!("{published:?}");
                };
                assert_eq!((capacity, events.len()), (2, 2));
                2
            }
        };
        gate.add_permits(count);
        soon(system.wait_idle()).await.unwrap();
        assert_eq!(seen.load(SeqCst), count);
        system.shutdown(SECOND).await.unwrap();
    }
}

/// Whoever publishes is told what did not happen.
#[tokio::test]
async fn p8_every_failure_is_reported() {
    let (system, _dir) = durable(&Journal::default()).await;
    let publisher = system.publisher();
    let stored = Arc::clone(system.store().unwrap());
    stored.close().await;
    let failed = publisher.publish(counted("a", 0));
    assert!(
        matches!(failed, Err(PublishError::Append(AppendError::Store(_)))),
        "{failed:?}"
    );
    system.shutdown(SECOND).await.unwrap();
    let stopped = publisher.publish(counted("a", 0));
    assert!(matches!(stopped, Err(PublishError::Stopped)), "{stopped:?}");
    let nothing = publisher.publish_all(Vec::new());
    assert!(matches!(nothing, Err(PublishError::Stopped)), "{nothing:?}");
}
