//! The steps of the bus under a checker that tries their interleavings: run with
//! `RUSTFLAGS="--cfg shuttle"`. Tasks take the places of threads, and every lock and atomic of the
//! bus is a point at which another one may go on.

use std::{
    borrow::Cow,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
};

use domain_events::{
    Batch, BatchVerdicts, CircuitBreaker, DeliveryOutcome, DomainEvent, Event, EventId,
    FailurePolicy, HandlerContext, HandlerError, NewEvent, PublishError, Receipt, RetryPolicy,
    Subscription,
};
use serde::{Deserialize, Serialize};
use shuttle::future::{block_on, spawn};

use crate::{
    BusConfig, aboard, ashore, engine::Engine, lifecycle::Phase, pausing, pipeline::PipelineId,
    publish::publish, seat::Worker, settling, waiting::NoRoom, worker,
};

/// How many interleavings are tried of each program.
const TRIED: usize = 2_000;

#[derive(Serialize, Deserialize)]
struct Ticked {
    clock: String,
    number: u64,
}

impl DomainEvent for Ticked {
    const EVENT_TYPE: &'static str = "clock.ticked";
    const AGGREGATE_TYPE: &'static str = "clock";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.clock)
    }
}

fn ticked(clock: &str, number: u64) -> NewEvent {
    NewEvent::new(Ticked {
        clock: clock.to_owned(),
        number,
    })
}

type Journal = Arc<std::sync::Mutex<Vec<(String, u64)>>>;

/// A bus with its workers, and no clock: retries are made due as soon as they are set.
struct Bus {
    engine: Arc<Engine>,
    journal: Journal,
    tasks: Vec<shuttle::future::JoinHandle<()>>,
}

impl Bus {
    fn started(
        capacity: usize,
        workers: usize,
        subscriptions: impl FnOnce(&Journal) -> Vec<Subscription>,
    ) -> Self {
        let journal = Journal::default();
        let config = BusConfig {
            capacity,
            workers,
            ..BusConfig::default()
        };
        let engine = Engine::new(config, None);
        let begun = aboard::begin(&engine, subscriptions(&journal));
        assert!(engine.lifecycle.advance(Phase::New, Phase::Starting));
        block_on(begun).unwrap();
        assert!(engine.lifecycle.advance(Phase::Starting, Phase::Running));
        let pipelines = engine.look(|state| {
            let all = state.pipelines.iter();
            all.map(|(id, pipeline)| (id, Arc::clone(&pipeline.seats)))
                .collect::<Vec<_>>()
        });
        let mut tasks = Vec::new();
        for (pipeline, seats) in pipelines {
            for worker in Worker::all(&engine, pipeline, &seats) {
                tasks.push(spawn(worker::run(Arc::clone(&engine), worker)));
            }
        }
        Self {
            engine,
            journal,
            tasks,
        }
    }

    async fn publish(&self, clock: &str, number: u64) -> Result<Receipt, PublishError> {
        publish_to(&self.engine, clock, number).await
    }

    /// Makes every retry due that was set, until nothing goes on by itself.
    async fn settle(&self) {
        while !self.engine.look(crate::state::State::is_idle) {
            self.engine.fire_timers();
            shuttle::future::yield_now().await;
        }
    }

    /// Stops it; every worker comes to its end. Returns what was written down.
    async fn stop(self) -> Vec<(String, u64)> {
        assert!(
            self.engine
                .lifecycle
                .advance(Phase::Running, Phase::Stopping)
        );
        self.engine
            .lifecycle
            .advance(Phase::Stopping, Phase::Closing);
        self.engine.abandon();
        for task in self.tasks {
            task.await.unwrap();
        }
        let journal = self.journal.lock().unwrap();
        journal.clone()
    }

    /// How many places of the default pipeline are taken.
    fn taken(&self) -> bool {
        self.engine.look(|state| {
            let pipeline = state.pipelines.get(PipelineId::SHARED).unwrap();
            !pipeline.room.fits(self.engine.config.capacity)
        })
    }
}

async fn publish_to(
    engine: &Arc<Engine>,
    clock: &str,
    number: u64,
) -> Result<Receipt, PublishError> {
    let events = vec![ticked(clock, number)];
    let mut receipts = publish(engine, events, NoRoom::Wait, false).await?;
    Ok(receipts.swap_remove(0))
}

/// Writes down what it gets, under its name and the clock's.
fn writes(journal: &Journal, name: &'static str) -> Subscription {
    let journal = Arc::clone(journal);
    Subscription::from_fn(name, move |event: Event<Ticked>, _| {
        let line = (format!("{name}/{}", event.clock), event.number);
        journal.lock().unwrap().push(line);
        async { Ok(()) }
    })
}

/// As [`writes`], and fails the first attempt at every event with an odd number.
fn fails_first(journal: &Journal, name: &'static str) -> Subscription {
    let journal = Arc::clone(journal);
    Subscription::from_fn(name, move |event: Event<Ticked>, cx: HandlerContext| {
        let failed = event.number % 2 == 1 && cx.attempt() == 1;
        if !failed {
            let line = (format!("{name}/{}", event.clock), event.number);
            journal.lock().unwrap().push(line);
        }
        std::future::ready(if failed {
            Err(HandlerError::transient("odd"))
        } else {
            Ok(())
        })
    })
}

fn of(journal: &[(String, u64)], who: &str) -> Vec<u64> {
    let lines = journal.iter().filter(|(name, _)| name == who);
    lines.map(|(_, number)| *number).collect()
}

fn check(program: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(program, TRIED);
}

#[test]
fn d2_p4_publishers_that_wait_for_room_lose_and_reorder_nothing() {
    check(|| {
        block_on(async {
            let bus = Bus::started(2, 2, |journal| {
                vec![writes(journal, "one"), writes(journal, "two").isolated(1)]
            });
            let publisher = |clock: &'static str| {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    let mut receipts = Vec::new();
                    for number in 0..3 {
                        receipts.push(publish_to(&engine, clock, number).await.unwrap());
                    }
                    receipts
                })
            };
            let (first, second) = (publisher("a"), publisher("b"));
            for receipt in first
                .await
                .unwrap()
                .into_iter()
                .chain(second.await.unwrap())
            {
                assert!(receipt.handled().await.unwrap().is_success());
            }
            bus.settle().await;
            assert!(!bus.taken(), "room was not given back");
            let journal = bus.stop().await;
            for who in ["one/a", "one/b", "two/a", "two/b"] {
                assert_eq!(of(&journal, who), [0, 1, 2], "{who}");
            }
        });
    });
}

#[test]
fn d2_order_holds_under_retries() {
    check(|| {
        block_on(async {
            let bus = Bus::started(10, 2, |journal| {
                vec![fails_first(journal, "fails"), writes(journal, "writes")]
            });
            for number in 0..4 {
                bus.publish("a", number).await.unwrap();
                bus.engine.fire_timers();
            }
            bus.settle().await;
            assert!(!bus.taken(), "room was not given back");
            let journal = bus.stop().await;
            assert_eq!(of(&journal, "fails/a"), [0, 1, 2, 3]);
            assert_eq!(of(&journal, "writes/a"), [0, 1, 2, 3]);
        });
    });
}

#[test]
fn p4_a_dropped_publish_has_published_or_touched_nothing() {
    check(|| {
        block_on(async {
            let bus = Bus::started(1, 1, |journal| vec![writes(journal, "one")]);
            let other = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move { publish_to(&engine, "a", 0).await.unwrap() })
            };
            let mut receipt = None;
            {
                let mut dropped = pin!(bus.publish("a", 1));
                for _ in 0..2 {
                    let polled =
                        std::future::poll_fn(|cx| Poll::Ready(dropped.as_mut().poll(cx))).await;
                    if let Poll::Ready(published) = polled {
                        receipt = Some(published.unwrap());
                        break;
                    }
                    shuttle::future::yield_now().await;
                }
            }
            other.await.unwrap();
            bus.publish("a", 2).await.unwrap();
            bus.settle().await;
            assert!(!bus.taken(), "room was not given back");
            let seen = of(&bus.stop().await, "one/a");
            let times = |number| seen.iter().filter(|&&it| it == number).count();
            assert_eq!((times(0), times(2)), (1, 1), "{seen:?}");
            assert!(times(1) <= 1, "{seen:?}");
            assert!(receipt.is_none() || times(1) == 1, "{seen:?}");
        });
    });
}

#[test]
fn d2_pausing_and_resuming_lose_and_reorder_nothing() {
    check(|| {
        block_on(async {
            let bus = Bus::started(10, 2, |journal| {
                vec![fails_first(journal, "paused"), writes(journal, "other")]
            });
            let pauser = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    assert!(pausing::pause(&engine, "paused").await);
                    shuttle::future::yield_now().await;
                    assert!(pausing::resume(&engine, "paused").await);
                })
            };
            for number in 0..3 {
                bus.publish("a", number).await.unwrap();
                bus.engine.fire_timers();
            }
            pauser.await.unwrap();
            bus.settle().await;
            let journal = bus.stop().await;
            assert_eq!(of(&journal, "paused/a"), [0, 1, 2]);
            assert_eq!(of(&journal, "other/a"), [0, 1, 2]);
        });
    });
}

#[test]
fn f6_a_replay_never_runs_beside_another_delivery_of_its_aggregate() {
    check(|| {
        block_on(async {
            let running = Arc::new(AtomicUsize::new(0));
            let bus = Bus::started(10, 2, |journal| {
                let journal = Arc::clone(journal);
                let handler = move |event: Event<Ticked>, cx: HandlerContext| {
                    assert_eq!(running.fetch_add(1, SeqCst), 0, "two at once");
                    shuttle::thread::yield_now();
                    running.fetch_sub(1, SeqCst);
                    let fails = event.number == 0 && !cx.info().is_replay;
                    if !fails {
                        let line = ("a".to_owned(), event.number);
                        journal.lock().unwrap().push(line);
                    }
                    std::future::ready(if fails {
                        Err(HandlerError::permanent("first"))
                    } else {
                        Ok(())
                    })
                };
                vec![Subscription::from_fn("replayed", handler)]
            });
            let dead = bus.publish("a", 0).await.unwrap();
            let outcomes = dead.handled().await.unwrap().outcomes;
            assert_eq!(outcomes[0].1, DeliveryOutcome::Dead);
            let replayer = replay(&bus.engine, "replayed", dead.event_id());
            for number in 1..4 {
                bus.publish("a", number).await.unwrap();
            }
            replayer.await.unwrap();
            bus.settle().await;
            let mut seen = of(&bus.stop().await, "a");
            let replayed = seen.iter().position(|&number| number == 0).unwrap();
            seen.remove(replayed);
            assert_eq!(seen, [1, 2, 3]);
        });
    });
}

#[test]
fn f5_what_is_parked_goes_on_in_order_after_the_replay() {
    check(|| {
        block_on(async {
            let bus = Bus::started(10, 2, |journal| {
                let journal = Arc::clone(journal);
                let handler = move |event: Event<Ticked>, cx: HandlerContext| {
                    let fails = event.number == 0 && !cx.info().is_replay;
                    if !fails {
                        let line = ("a".to_owned(), event.number);
                        journal.lock().unwrap().push(line);
                    }
                    std::future::ready(if fails {
                        Err(HandlerError::transient("first"))
                    } else {
                        Ok(())
                    })
                };
                let subscription = Subscription::from_fn("parks", handler);
                vec![
                    subscription
                        .retry(RetryPolicy::never())
                        .failure_policy(FailurePolicy::ParkAggregate),
                ]
            });
            let dead = bus.publish("a", 0).await.unwrap();
            let publisher = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    for number in 1..4 {
                        publish_to(&engine, "a", number).await.unwrap();
                    }
                })
            };
            dead.handled().await.unwrap();
            replay(&bus.engine, "parks", dead.event_id()).await.unwrap();
            publisher.await.unwrap();
            bus.settle().await;
            assert_eq!(of(&bus.stop().await, "a"), [0, 1, 2, 3]);
        });
    });
}

#[test]
fn l4_unsubscribing_beside_publishing_leaves_nothing_behind() {
    check(|| {
        block_on(async {
            let bus = Bus::started(10, 2, |journal| {
                vec![fails_first(journal, "goes"), writes(journal, "stays")]
            });
            let goes = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    let leaving = ashore::leave(&engine, "goes").unwrap();
                    ashore::left(&engine, leaving).await;
                })
            };
            let mut receipts = Vec::new();
            for number in 0..3 {
                receipts.push(bus.publish("a", number).await.unwrap());
            }
            goes.await.unwrap();
            let at_the_end = bus.journal.lock().unwrap().len();
            bus.settle().await;
            for receipt in receipts {
                receipt.handled().await.unwrap();
            }
            assert!(!bus.taken(), "room was not given back");
            let journal = bus.stop().await;
            assert_eq!(of(&journal, "stays/a"), [0, 1, 2]);
            let goes = of(&journal, "goes/a");
            assert!([0, 1, 2].starts_with(&goes), "{goes:?}");
            let late = of(&journal[at_the_end..], "goes/a");
            assert!(late.is_empty(), "attempts after the end: {late:?}");
        });
    });
}

#[test]
fn l2_a_stop_tells_everybody_and_every_worker_ends() {
    check(|| {
        block_on(async {
            let bus = Bus::started(1, 2, |journal| vec![writes(journal, "one")]);
            let publisher = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    let mut told = 0;
                    for number in 0..3 {
                        match publish_to(&engine, "a", number).await {
                            Ok(receipt) => drop(receipt.handled().await.unwrap()),
                            Err(PublishError::Stopped) => told += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    told
                })
            };
            shuttle::future::yield_now().await;
            let seen = of(&bus.stop().await, "one/a");
            let told = publisher.await.unwrap();
            assert!([0, 1, 2].starts_with(&seen), "{seen:?}, {told} refused");
        });
    });
}

#[test]
fn d9_batches_lose_and_reorder_nothing() {
    check(|| {
        block_on(async {
            let bus = Bus::started(10, 1, |journal| {
                let journal = Arc::clone(journal);
                let handler = move |batch: Batch<Ticked>| {
                    let mut verdicts = BatchVerdicts::all_handled();
                    let mut failed = Vec::new();
                    for (place, (event, cx)) in batch.iter().enumerate() {
                        if event.number == 1 && cx.attempt() == 1 {
                            verdicts.fail(place, HandlerError::transient("the first time"));
                            failed.push(event.clock.clone());
                        } else if !failed.contains(&event.clock) {
                            let line = (event.clock.clone(), event.number);
                            journal.lock().unwrap().push(line);
                        }
                    }
                    std::future::ready(Ok(verdicts))
                };
                vec![Subscription::from_batch_fn("batches", 3, handler).isolated(2)]
            });
            let other = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    for number in 0..3 {
                        publish_to(&engine, "b", number).await.unwrap();
                    }
                })
            };
            let mut receipts = Vec::new();
            for number in 0..3 {
                receipts.push(bus.publish("a", number).await.unwrap());
                bus.engine.fire_timers();
            }
            other.await.unwrap();
            bus.settle().await;
            for receipt in receipts {
                assert!(receipt.handled().await.unwrap().is_success());
            }
            let journal = bus.stop().await;
            for clock in ["a", "b"] {
                assert_eq!(of(&journal, clock), [0, 1, 2], "{clock}");
            }
        });
    });
}

#[test]
fn f8_a_tripped_subscription_comes_to_its_end_in_order() {
    check(|| {
        block_on(async {
            let calls = AtomicUsize::new(0);
            let bus = Bus::started(10, 2, |journal| {
                let journal = Arc::clone(journal);
                let handler = move |event: Event<Ticked>, _| {
                    // The first four attempts fail, whichever they are.
                    let fails = calls.fetch_add(1, SeqCst) < 4;
                    if !fails {
                        let line = (event.clock.clone(), event.number);
                        journal.lock().unwrap().push(line);
                    }
                    std::future::ready(if fails {
                        Err(HandlerError::transient("sick"))
                    } else {
                        Ok(())
                    })
                };
                let breaker = CircuitBreaker::new(2, std::time::Duration::from_secs(1));
                let breaks = Subscription::from_fn("breaks", handler);
                vec![
                    breaks.circuit_breaker(breaker),
                    writes(&Journal::default(), "other"),
                ]
            });
            let other = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    for number in 0..2 {
                        publish_to(&engine, "b", number).await.unwrap();
                    }
                })
            };
            let pauser = {
                let engine = Arc::clone(&bus.engine);
                spawn(async move {
                    assert!(pausing::pause(&engine, "breaks").await);
                    shuttle::future::yield_now().await;
                    assert!(pausing::resume(&engine, "breaks").await);
                })
            };
            for number in 0..2 {
                bus.publish("a", number).await.unwrap();
            }
            other.await.unwrap();
            pauser.await.unwrap();
            bus.settle().await;
            assert!(!bus.taken(), "room was not given back");
            let journal = bus.stop().await;
            for clock in ["a", "b"] {
                assert_eq!(of(&journal, clock), [0, 1], "{clock}");
            }
        });
    });
}

fn replay(
    engine: &Arc<Engine>,
    subscription: &'static str,
    event: EventId,
) -> shuttle::future::JoinHandle<()> {
    let engine = Arc::clone(engine);
    spawn(async move {
        settling::replay(&engine, subscription, event)
            .await
            .unwrap()
    })
}
