//! The runs of a program: the first, which may crash, and those that recover.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use domain_events::{DeadLetterQuery, EventBus};
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_testkit::memory_store::{Crash, MemoryStore};
use tokio::{
    runtime::Builder,
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{
    books, clients,
    events::{Kind, Raised},
    handlers::subscription,
    program::{DOWN_TIME, MOST_EVENTS},
    stage::{Scene, Stage},
};

/// The longest that a run takes, by its own clock.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3_600);

/// After how many calls of its store a run counts as one without an end.
const MOST_CALLS: u64 = 10_000;

/// Which run it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// The clients make their steps.
    First,
    /// What is left is finished, and dead letters are replayed with handlers that are well.
    Recovery,
    /// Nothing is left.
    Quiet,
}

/// Plays one run, to its end or to the crash; the next one goes on from its store.
pub(super) fn play(
    stage: &Arc<Stage>,
    before: Option<&MemoryStore>,
    act: Act,
    crash: Option<Crash>,
) -> Arc<MemoryStore> {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        // The delays of retries are stretched at random.
        fastrand::seed(stage.program.seed);
        stage.next_run();
        let scene = Scene::set(stage, before);
        let last = crash.unwrap_or(Crash::After(MOST_CALLS));
        scene.store.crash_at(last);
        let store = Arc::clone(&scene.store);
        tokio::select! {
            biased;
            () = store.crashed() => match crash {
                Some(_) => stage.note(|| "crashed".to_owned()),
                None => stage.fault("L3: the run calls its store again and again"),
            },
            played = timeout(LONGEST, run(scene, act)) => {
                if played.is_err() {
                    stage.fault("L3: the run does not come to its end");
                }
            }
        }
        books::check(stage, &store, store.has_crashed());
        books::close(stage, &store);
        store
    })
}

impl Scene {
    fn set(stage: &Arc<Stage>, before: Option<&MemoryStore>) -> Arc<Self> {
        let store = match before {
            None => MemoryStore::on_runtime().latency(stage.program.latency),
            Some(before) => before.restarted_after(DOWN_TIME),
        };
        let looks_on = Arc::clone(stage);
        let store = store.watched(move |done| looks_on.store_did(done));
        Arc::new(Self {
            stage: Arc::clone(stage),
            store: Arc::new(store),
            places: stage
                .program
                .subscribers
                .iter()
                .map(|_| Mutex::default())
                .collect(),
        })
    }
}

async fn run(scene: Arc<Scene>, act: Act) {
    let bus = Arc::new(bus(&scene));
    let program = &scene.stage.program;
    for (number, subscriber) in program.subscribers.iter().enumerate() {
        if act != Act::First || !subscriber.is_late {
            let subscribed = bus.subscribe(subscription(&scene, number)).await;
            subscribed.expect("a subscription that can work");
        }
    }
    bus.start().await.expect("a store that can be read");
    match act {
        Act::First => first(&scene, &bus).await,
        Act::Recovery => recover(&scene, &bus).await,
        Act::Quiet => bus.wait_idle().await.expect("outside a handler"),
    }
    let is_idle = act != Act::First || program.ends_idle;
    let deadline = Duration::from_secs(if is_idle { 60 } else { 0 });
    let report = bus.stop(deadline).await.expect("outside a handler");
    scene.stage.note(|| format!("stopped: {report:?}"));
}

fn bus(scene: &Scene) -> InMemoryEventBus {
    let config = BusConfig {
        capacity: scene.stage.program.capacity,
        workers: scene.stage.program.workers,
        ..BusConfig::default()
    };
    InMemoryEventBus::with_store(config, Arc::clone(&scene.store))
        .expect("a configuration that can work")
}

async fn first(scene: &Arc<Scene>, bus: &Arc<InMemoryEventBus>) {
    let program = &scene.stage.program;
    let clients = program.clients.iter().cloned();
    let clients: Vec<_> = clients
        .map(|steps| tokio::spawn(clients::play(Arc::clone(scene), Arc::clone(bus), steps)))
        .collect();
    for client in clients {
        client.await.expect("a client that comes to its end");
    }
    if program.ends_idle {
        bus.wait_idle().await.expect("outside a handler");
    } else {
        sleep(Duration::from_millis(program.seed % 100)).await;
    }
}

/// Finishes what is left, with new events beside it.
async fn recover(scene: &Arc<Scene>, bus: &InMemoryEventBus) {
    let (stage, program) = (&scene.stage, &scene.stage.program);
    let run = u64::from(stage.known().run);
    for aggregate in 0..program.aggregates {
        let raised = Raised {
            number: run * MOST_EVENTS + u64::from(aggregate),
            kind: Kind::Opened,
            aggregate,
        };
        clients::publish(scene, bus, &[raised]).await;
    }
    bus.wait_idle().await.expect("outside a handler");
    stage.is_well.store(true, SeqCst);
    stage.note(|| "all are well".to_owned());
    for number in 0..program.subscribers.len() {
        clients::resume(scene, bus, number).await;
    }
    bus.wait_idle().await.expect("outside a handler");
    let replayed = bus.replay_all(&DeadLetterQuery::all()).await;
    replayed.expect("everybody is subscribed");
    bus.wait_idle().await.expect("outside a handler");
    stage.note(|| "all is settled".to_owned());
    books::check_settled(stage, &scene.store);
}

/// Forgets who waits for an answer of a store that has died.
pub(super) fn forget(store: &MemoryStore) {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async { drop(store.restarted()) });
}
