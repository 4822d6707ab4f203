//! The play: a program on a bus, from subscribing to the stop.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use domain_events::{EventBus, EventId, FailurePolicy, Receipt};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    client,
    program::{Ending, How, MOST_EVENTS, Program, Raised, Step, WAIT_LIMIT},
    trace::{Entry, Observed, Recorder},
};

/// How many times everything that rests is set going before a run counts as stuck.
const MOST_PUSHES: usize = 2 * MOST_EVENTS;

/// The clock of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One thread and a paused clock: a step at a time, and every time is exact.
    Paused,
    /// Several threads in real time: no time says anything.
    Real,
}

impl Pace {
    pub(super) fn units(self, units: u32) -> Duration {
        let unit = match self {
            Self::Paused => Duration::from_millis(1),
            Self::Real => Duration::from_micros(100),
        };
        unit * units
    }

    /// How long clients may do nothing before what rests is set going.
    fn patience(self) -> Duration {
        match self {
            Self::Paused => WAIT_LIMIT,
            Self::Real => Duration::from_millis(20),
        }
    }

    /// The longest that a wait may take which waits for nobody outside.
    fn limit(self) -> Duration {
        match self {
            Self::Paused => WAIT_LIMIT,
            Self::Real => Duration::from_secs(30),
        }
    }
}

/// Plays `program` on `bus`, which is as the program wants it and not started; returns the trace.
pub async fn play(bus: Arc<dyn EventBus>, program: &Program, pace: Pace) -> Vec<Entry> {
    let stage = Arc::new(Stage::new(program.clone(), pace));
    for (number, subscriber) in program.subscribers.iter().enumerate() {
        if !subscriber.is_late {
            client::subscribe(&stage, &*bus, number).await;
        }
    }
    if bus.start().await.is_err() {
        stage.note(Observed::Stuck("start"));
        return stage.recorder.take();
    }
    let clients = program.clients.iter();
    let mut clients: Vec<_> = clients
        .map(|steps: &Vec<Step>| {
            let run = client::run(Arc::clone(&stage), Arc::clone(&bus), steps.clone());
            tokio::spawn(run)
        })
        .collect();
    let played = match program.ending {
        Ending::Settle => settle(&stage, &*bus, &mut clients).await,
        Ending::Stop { after, deadline } => {
            tokio::time::sleep(pace.units(after)).await;
            stop(&stage, &*bus, &mut clients, pace.units(deadline)).await
        }
    };
    if let Err(stuck) = played {
        stage.note(Observed::Stuck(stuck));
        clients.iter().for_each(JoinHandle::abort);
        let _ = timeout(pace.limit(), bus.stop(Duration::ZERO)).await;
    }
    // They lead to the subscriptions, whose handlers hold the stage.
    lock(&stage.receipts).clear();
    stage.recorder.take()
}

type Played = Result<(), &'static str>;

async fn settle(stage: &Stage, bus: &dyn EventBus, clients: &mut [JoinHandle<()>]) -> Played {
    finish_clients(stage, bus, clients).await?;
    look(stage, bus).await?;
    let mut pushes = 0;
    while bus.statistics().in_flight > 0 {
        pushes += 1;
        if pushes > MOST_PUSHES {
            return Err("something in flight that nothing sets going");
        }
        push(stage, bus).await;
        within(stage, client::wait_idle(stage, bus), "wait_idle").await?;
    }
    look(stage, bus).await?;
    stop_by(stage, bus, WAIT_LIMIT).await
}

async fn stop(
    stage: &Stage,
    bus: &dyn EventBus,
    clients: &mut [JoinHandle<()>],
    deadline: Duration,
) -> Played {
    stop_by(stage, bus, deadline).await?;
    for client in clients {
        let finished = async { drop(client.await) };
        within(stage, finished, "a client of the stopped bus").await?;
    }
    ask_all(stage).await
}

async fn stop_by(stage: &Stage, bus: &dyn EventBus, deadline: Duration) -> Played {
    stage.note(Observed::Stopping);
    let stop = async {
        if let Ok(report) = bus.stop(deadline).await {
            stage.note(Observed::Stopped(report));
        }
    };
    within(stage, stop, "stop").await
}

async fn finish_clients(
    stage: &Stage,
    bus: &dyn EventBus,
    clients: &mut [JoinHandle<()>],
) -> Played {
    let mut pushes = 0;
    for client in clients {
        while timeout(stage.pace.patience(), &mut *client).await.is_err() {
            pushes += 1;
            if pushes > MOST_PUSHES {
                return Err("a client");
            }
            push(stage, bus).await;
        }
    }
    Ok(())
}

/// Sets going what rests: paused subscriptions and parked aggregates.
async fn push(stage: &Stage, bus: &dyn EventBus) {
    for (number, subscriber) in stage.program.subscribers.iter().enumerate() {
        client::resume(stage, bus, number).await;
        if subscriber.policy == FailurePolicy::ParkAggregate {
            while client::discard(stage, bus, number).await {}
        }
    }
}

/// Waits until the bus is idle, and writes down what it and every receipt say.
async fn look(stage: &Stage, bus: &dyn EventBus) -> Played {
    within(stage, client::wait_idle(stage, bus), "wait_idle").await?;
    stage.note(Observed::Quiet(Box::new(bus.statistics())));
    ask_all(stage).await
}

async fn ask_all(stage: &Stage) -> Played {
    let receipts = lock(&stage.receipts).clone();
    for (event, receipt) in receipts {
        within(stage, client::ask(stage, event, &receipt), "a receipt").await?;
    }
    Ok(())
}

async fn within(stage: &Stage, wait: impl Future<Output = ()>, what: &'static str) -> Played {
    // Longer than what it waits for may itself take: a stop has a deadline of as much.
    let limit = 2 * stage.pace.limit();
    timeout(limit, wait).await.map_err(|_| what)
}

/// What all who play share.
pub(super) struct Stage {
    pub(super) program: Program,
    pub(super) pace: Pace,
    recorder: Recorder,
    numbers: Mutex<Numbers>,
    calls: AtomicUsize,
    subscribed: Mutex<Vec<usize>>,
    met: Mutex<HashMap<EventId, usize>>,
    receipts: Mutex<Vec<(usize, Arc<Receipt>)>>,
}

#[derive(Default)]
struct Numbers {
    publishes: usize,
    events: usize,
}

impl Stage {
    fn new(program: Program, pace: Pace) -> Self {
        Self {
            program,
            pace,
            recorder: Recorder::new(),
            numbers: Mutex::default(),
            calls: AtomicUsize::new(0),
            subscribed: Mutex::default(),
            met: Mutex::default(),
            receipts: Mutex::default(),
        }
    }

    pub(super) fn note(&self, what: Observed) {
        self.recorder.note(what);
    }

    /// The number of a call that is no publish.
    pub(super) fn call(&self) -> usize {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes that a publish begins; returns the numbers of the call and of its first event, or
    /// `None` where the program has published as much as it may.
    pub(super) fn begin_publish(
        &self,
        how: How,
        events: &[Raised],
        inside: Option<(usize, usize)>,
    ) -> Option<(usize, usize)> {
        let mut numbers = lock(&self.numbers);
        let (call, first) = (numbers.publishes, numbers.events);
        if first + events.len() > MOST_EVENTS {
            return None;
        }
        numbers.publishes += 1;
        numbers.events += events.len();
        // Noted under the lock, so that numbers ascend in the trace.
        self.note(Observed::Publishing {
            call,
            how,
            first,
            events: events.to_vec(),
            inside,
        });
        Some((call, first))
    }

    pub(super) fn is_first_subscribe(&self, number: usize) -> bool {
        let mut subscribed = lock(&self.subscribed);
        let is_first = !subscribed.contains(&number);
        subscribed.push(number);
        is_first
    }

    pub(super) fn met(&self, id: EventId, number: usize) {
        lock(&self.met).insert(id, number);
    }

    pub(super) fn number_of(&self, id: EventId) -> Option<usize> {
        lock(&self.met).get(&id).copied()
    }

    pub(super) fn keep(&self, receipt: &(usize, Arc<Receipt>)) {
        lock(&self.receipts).push(receipt.clone());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
