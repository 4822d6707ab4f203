//! The books of a store, held against what is known of the program's course.

use std::time::Duration;

use domain_events::Position;
use event_testkit::memory_store::{MemoryStore, Standing};

use super::{
    known::{Known, Settled, Subscription},
    stage::{Stage, name},
};

/// How long a success may go unsaved where the store answers at once (R2), by a clock of whole
/// milliseconds.
const UNSAVED: Duration = Duration::from_millis(50 + 2);

/// Checks the books at the end of a run: every delivery has its place in them (R1), what is done was
/// done (D1), and what was done is not to be done again, but for what was not saved yet (R3).
pub(super) fn check(stage: &Stage, store: &MemoryStore, has_crashed: bool) {
    let now = stage.now();
    // A save that is under way is waited for.
    let unsaved = UNSAVED + stage.program.latency;
    let unsaved = if has_crashed { unsaved } else { Duration::ZERO };
    let known = &mut *stage.known();
    for fault in store.verify() {
        known.fault(format!("R1: {fault}"));
    }
    let is_saved = |settled: Settled| match settled {
        Settled::Handled(at) => at + unsaved <= now,
        Settled::Unsaved => false,
        Settled::Saved => true,
    };
    for (number, position) in wanted(stage, known) {
        let standing = store.standing(&name(number), position);
        let of = &known.subscriptions[number];
        let is_pruned = standing.is_none() && position <= known.pruned_through;
        // That it was done was checked when it was pruned.
        if is_pruned && of.settled.contains_key(&position) {
            continue;
        }
        if let Some(fault) = fault(of, position, standing, is_saved) {
            known.fault(format!(
                "s{number}, {position}: {fault}, {standing:?} to the store"
            ));
        }
    }
}

/// Takes down what is saved at the end of a run, and what may be repeated by the next one.
pub(super) fn close(stage: &Stage, store: &MemoryStore) {
    let known = &mut *stage.known();
    for (number, subscription) in known.subscriptions.iter_mut().enumerate() {
        for (position, settled) in &mut subscription.settled {
            *settled = match store.standing(&name(number), *position) {
                // Of what was pruned, there is nothing left.
                Some(Standing::Done) | None => Settled::Saved,
                _ => Settled::Unsaved,
            };
        }
    }
}

/// Checks that everything wanted is settled (D1).
pub(super) fn check_settled(stage: &Stage, store: &MemoryStore) {
    check(stage, store, false);
    let known = &mut *stage.known();
    for (number, position) in wanted(stage, known) {
        if !known.subscriptions[number].settled.contains_key(&position) {
            known.fault(format!("D1: s{number} has not handled {position}"));
        }
    }
}

fn wanted(stage: &Stage, known: &Known) -> Vec<(usize, Position)> {
    let subscribers = stage.program.subscribers.iter().enumerate();
    subscribers
        .flat_map(|(number, by)| known.wanted(number, by).map(move |(at, _)| (number, at)))
        .collect()
}

fn fault(
    known: &Subscription,
    position: Position,
    standing: Option<Standing>,
    is_saved: impl Fn(Settled) -> bool,
) -> Option<&'static str> {
    let settled = known.settled.get(&position).copied();
    let is_dead = known.dead.contains(&position);
    match standing {
        None => Some("D8: forgotten"),
        Some(Standing::Done) if settled.is_none() => Some("D1: not handled"),
        Some(Standing::Dead) if !is_dead => Some("F5: no dead letter"),
        Some(standing) if standing != Standing::Dead && is_dead => Some("F5: a dead letter"),
        Some(Standing::Done | Standing::Dead) => None,
        Some(_) if settled.is_some_and(is_saved) => Some("R3: handled long ago"),
        Some(_) => None,
    }
}
