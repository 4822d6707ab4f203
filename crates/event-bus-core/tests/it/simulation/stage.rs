//! The stage on which the runs of a program play, and what is seen there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool};

use domain_events::{DeliveryChange, FailurePolicy, Position, StartFrom, SubscriptionId};
use event_testkit::memory_store::{Done, MemoryStore, Standing};
use tokio::time::Instant;

use super::{
    events::Raised,
    known::{Begun, Known, Logged, Settled},
    program::{Finish, Program},
};

/// A program, and what is known of its course.
pub(super) struct Stage {
    pub(super) program: Program,
    known: Mutex<Known>,
    /// Whether all handlers are well, whatever the program says.
    pub(super) is_well: AtomicBool,
    started: Mutex<Option<Instant>>,
}

impl Stage {
    pub(super) fn of(program: Program, is_traced: bool) -> Arc<Self> {
        let mut known = Known::of(&program);
        known.trace = is_traced.then(Vec::new);
        Arc::new(Self {
            known: Mutex::new(known),
            program,
            is_well: AtomicBool::new(false),
            started: Mutex::new(None),
        })
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a run, on the current runtime.
    pub(super) fn next_run(&self) {
        self.known().next_run();
        *self.started.lock().unwrap() = Some(Instant::now());
    }

    pub(super) fn now(&self) -> std::time::Duration {
        let started = *self.started.lock().unwrap();
        started.map_or_else(Default::default, |at| at.elapsed())
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.known().note(self.now(), what);
    }

    pub(super) fn fault(&self, what: impl Into<String>) {
        self.known().fault(what.into());
    }

    /// Takes down what a store has done, and holds it against what handlers did.
    pub(super) fn store_did(&self, done: &Done<'_>) {
        let (now, known) = (self.now(), &mut *self.known());
        known.note(now, || format!("        store: {}", told(done)));
        match done {
            Done::Appended(appended) => {
                for one in appended.iter().filter(|one| !one.already_there) {
                    let position = one.event.position().unwrap_or_default();
                    let raised = Raised::of(&one.event).expect("an event of the program");
                    let id = one.event.id();
                    if !known.numbers.insert(raised.number) {
                        known.fault(format!("D1: {raised:?} is in the log twice"));
                    }
                    known.log.insert(position, Logged { id, raised });
                }
            }
            Done::RunBegun(registrations, run) => {
                for (registration, state) in registrations.iter().zip(&run.subscriptions) {
                    registered(known, &registration.name, state);
                }
            }
            Done::Registered(registration, state) => {
                registered(known, &registration.name, state);
            }
            Done::Changed(changes) => {
                changes.iter().for_each(|it| changed(known, it));
                for change in *changes {
                    if let DeliveryChange::Dead(_, letter) = change {
                        self.check_pause(known, number(&letter.subscription));
                    }
                }
            }
            Done::Pruned(pruned) => {
                known.pruned_through = pruned.through;
                self.check_pruned(known);
            }
            _ => {}
        }
    }

    /// What nobody has anything to do with is pruned, and nothing else (R8).
    fn check_pruned(&self, known: &mut Known) {
        let mut faults = Vec::new();
        for (number, by) in self.program.subscribers.iter().enumerate() {
            let subscription = &known.subscriptions[number];
            let pruned = known.wanted(number, by);
            for (position, _) in pruned.take_while(|(at, _)| *at <= known.pruned_through) {
                let is_over = subscription.settled.contains_key(&position)
                    || subscription.dead.contains(&position)
                    || subscription.replayed.contains(&position);
                if !is_over {
                    faults.push(format!(
                        "R8: {position} is pruned, and s{number} is to have it"
                    ));
                }
            }
        }
        faults.into_iter().for_each(|fault| known.fault(fault));
    }

    /// A subscription that is to pause behind a dead letter does so with it (F5).
    fn check_pause(&self, known: &mut Known, number: usize) {
        let policy = self.program.subscribers[number].policy;
        let subscription = &known.subscriptions[number];
        let is_to_pause = policy == FailurePolicy::PauseSubscription && subscription.resuming == 0;
        if is_to_pause && !subscription.is_paused {
            known.fault(format!(
                "F5: s{number} does not pause behind its dead letter"
            ));
        }
    }
}

fn registered(known: &mut Known, name: &str, state: &domain_events::SubscriptionState) {
    let subscription = &mut known.subscriptions[number(name)];
    subscription.place.get_or_insert(state.progress.through);
    subscription.id = Some(state.id);
}

fn changed(known: &mut Known, change: &DeliveryChange) {
    match change {
        DeliveryChange::Waiting(id, delivery) => {
            let Some(number) = known.by_id(*id) else {
                return;
            };
            let made = known.subscriptions[number].failed.get(&delivery.position);
            if made != Some(&(delivery.attempts, false)) {
                let position = delivery.position;
                let attempts = delivery.attempts;
                let what = format!("F4: s{number} {position} waits after {attempts}, not {made:?}");
                known.fault(what);
            }
        }
        DeliveryChange::Dead(_, letter) => {
            let number = number(&letter.subscription);
            let position = letter.position().unwrap_or_default();
            let subscription = &mut known.subscriptions[number];
            let made = subscription.failed.remove(&position);
            subscription.settled.remove(&position);
            subscription.replayed.remove(&position);
            subscription.dead.insert(position);
            if made != Some((letter.attempts, true)) {
                known.fault(format!(
                    "F5: s{number} {position} is dead after {made:?}: {letter:?}"
                ));
            }
        }
        DeliveryChange::Replayed(id, delivery) => {
            let Some(number) = known.by_id(*id) else {
                return;
            };
            let subscription = &mut known.subscriptions[number];
            if subscription.dead.remove(&delivery.position) {
                subscription.replayed.insert(delivery.position);
            }
        }
        DeliveryChange::Started(id, position) => {
            let Some(number) = known.by_id(*id) else {
                return;
            };
            known.subscriptions[number].started.insert(*position);
        }
        DeliveryChange::Ended(id, position) => {
            let Some(number) = known.by_id(*id) else {
                return;
            };
            known.subscriptions[number].started.remove(position);
        }
        DeliveryChange::Discarded {
            subscription,
            position,
            ..
        } => {
            let subscription = &mut known.subscriptions[number(subscription)];
            if subscription.dead.remove(position) {
                subscription.settled.insert(*position, Settled::Saved);
            }
        }
        DeliveryChange::Paused(id, why) => {
            let Some(number) = known.by_id(*id) else {
                return;
            };
            let subscription = &mut known.subscriptions[number];
            subscription.is_paused = why.is_some();
            subscription.under_way = subscription.started.clone();
        }
        DeliveryChange::Reset(name, start) => {
            let head = known.log.keys().next_back().copied().unwrap_or_default();
            known.subscriptions[number(name)].reset(place(*start, head));
        }
        _ => {}
    }
}

/// The last position that a subscription which starts there is not to have.
fn place(start: StartFrom, head: Position) -> Position {
    match start {
        StartFrom::Now => head,
        StartFrom::Beginning => Position::ZERO,
        StartFrom::After(position) => position,
    }
}

/// The name of a subscription, by its number.
pub(super) fn name(number: usize) -> String {
    format!("s{number}")
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("a name of the program")
}

/// A run of the program: its stage, and its store.
pub(super) struct Scene {
    pub(super) stage: Arc<Stage>,
    pub(super) store: Arc<MemoryStore>,
    /// Held by whoever has a subscription come, go or begin anew.
    pub(super) places: Vec<tokio::sync::Mutex<()>>,
}

impl Scene {
    /// Takes down that an attempt begins, and holds it against the promises. `None` where the process
    /// is dead.
    pub(super) fn begin(self: &Arc<Self>, number: usize, begun: Begun) -> Option<Running> {
        if self.store.has_crashed() {
            return None;
        }
        let standing = self.store.standing(&name(number), begun.position);
        let subscriber = &self.stage.program.subscribers[number];
        let (now, known) = (self.stage.now(), &mut *self.stage.known());
        known.note(now, || format!("s{number} begins {begun:?}, {standing:?}"));
        let mut faults = known.check_begin(number, subscriber, &begun);
        faults.extend(committed(standing, &begun, subscriber.attempts));
        for fault in faults {
            known.fault(format!("s{number} begins {begun:?}: {fault}"));
        }
        let subscription = &mut known.subscriptions[number];
        let lane = subscriber.lane(begun.raised.aggregate, begun.position);
        subscription.running.insert(lane, begun.position);
        if !begun.is_replay {
            subscription.last.insert(lane, begun.position);
        }
        Some(Running {
            scene: Arc::clone(self),
            number,
            begun,
            end: None,
        })
    }

    fn end(&self, number: usize, begun: &Begun, end: Option<Finish>) {
        let subscriber = &self.stage.program.subscribers[number];
        let attempts = subscriber.attempts;
        let (now, known) = (self.stage.now(), &mut *self.stage.known());
        known.note(now, || format!("s{number} ends {begun:?} {end:?}"));
        let subscription = &mut known.subscriptions[number];
        let position = begun.position;
        let lane = subscriber.lane(begun.raised.aggregate, position);
        subscription.running.remove(&lane);
        match end {
            None => {}
            Some(Finish::Handle | Finish::Skip) => {
                subscription.failed.remove(&position);
                let handled = Settled::Handled(now);
                subscription.settled.insert(position, handled);
            }
            Some(end) => {
                let is_last = end == Finish::FailForGood || begun.attempt >= attempts;
                let failed = (begun.attempt, is_last);
                subscription.failed.insert(position, failed);
            }
        }
    }
}

/// Holds the beginning of an attempt against what is committed of its delivery (F4, R3).
fn committed(standing: Option<Standing>, begun: &Begun, most: u32) -> Option<String> {
    let made = match standing {
        Some(Standing::Waiting { attempts }) => attempts,
        Some(Standing::Pending | Standing::Blocked) if !begun.is_replay => 0,
        other => return Some(format!("R3: the store says {other:?}")),
    };
    let attempt = begun.attempt;
    (attempt != made + 1 || attempt > most)
        .then(|| format!("F4: {made} attempts are committed, of at most {most}"))
}

/// An attempt until it ends.
pub(super) struct Running {
    scene: Arc<Scene>,
    number: usize,
    begun: Begun,
    end: Option<Finish>,
}

impl Running {
    pub(super) fn ends(mut self, end: Finish) {
        self.end = Some(end);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What the dead process would not have done is not done.
        if !self.scene.store.has_crashed() {
            self.scene.end(self.number, &self.begun, self.end);
        }
    }
}

fn told(done: &Done<'_>) -> String {
    match done {
        Done::Appended(appended) => {
            let events = appended.iter().map(|it| {
                let position = it.event.position().unwrap_or_default();
                let raised = Raised::of(&it.event);
                format!("{position}: {raised:?}, there {}", it.already_there)
            });
            format!("appended {:?}", events.collect::<Vec<_>>())
        }
        Done::RunBegun(_, run) => format!("run begun {run:?}"),
        Done::Changed(changes) => format!("changed {changes:?}"),
        other => format!("{other:?}"),
    }
}

impl Known {
    fn by_id(&self, id: SubscriptionId) -> Option<usize> {
        let mut subscriptions = self.subscriptions.iter();
        subscriptions.position(|it| it.id == Some(id))
    }
}
