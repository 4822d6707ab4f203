//! Deliveries that may be repeats say so before they start (F4): where the process ends with one of
//! them again and again, its handler is what ends it.

use std::sync::Arc;

use domain_events::{DeliveryChange, EventEnvelope, Position, StartedDelivery, SubscriptionId};

use crate::{engine::Engine, progress, subscribed::Subscribed};

/// So many unclean ends in a row make a delivery a dead letter.
const MOST_UNCLEAN_ENDS: u32 = 3;

/// What a subscription knows of deliveries that were running when a run ended uncleanly.
#[derive(Default)]
pub(crate) struct Started {
    pub(crate) deliveries: Vec<StartedDelivery>,
    /// Up to here a delivery may have been running at the last unclean end: what was further in the log
    /// than could be in memory was not. None, where the last end was a clean one.
    pub(crate) through: Position,
}

/// How much further than its saved progress a subscription may have come, besides what the queue holds:
/// what is handled between two saves.
const SINCE_SAVE: u64 = 20_000;

impl Started {
    /// Of a subscription that had come this far, in a queue of this capacity.
    pub(crate) fn new(
        deliveries: Vec<StartedDelivery>,
        through: Position,
        capacity: usize,
    ) -> Self {
        let more = SINCE_SAVE.saturating_add(capacity as u64);
        Self {
            deliveries,
            through: Position::new(through.get().saturating_add(more)),
        }
    }
}

/// How many unclean ends in a row have found a delivery running, where those are too many; they are
/// forgotten with that.
pub(crate) fn too_many(
    engine: &Engine,
    subscribed: &Subscribed,
    event: &EventEnvelope,
) -> Option<u32> {
    let position = event.position()?;
    let of = |started: &&StartedDelivery| started.position == position;
    let ends = subscribed.started.deliveries.iter().find(of)?.unclean_ends;
    if ends < MOST_UNCLEAN_ENDS {
        return None;
    }
    let ended = subscribed.id.map(|id| DeliveryChange::Ended(id, position));
    engine.step(|state, _| state.unsaved.change(ended, None));
    Some(ends)
}

/// Whether an unclean end has found a delivery running, by itself or in a batch with what ended the
/// process: which of them it was shows once they are made one by one.
pub(crate) fn is_suspect(subscribed: &Subscribed, event: &EventEnvelope) -> bool {
    let mut deliveries = subscribed.started.deliveries.iter();
    deliveries.any(|started| Some(started.position) == event.position())
}

/// Records that deliveries start, and once the guard is dropped, that they have ended, be it that a stop
/// has cut them off. Returns once the first is committed.
pub(crate) async fn record(
    engine: &Arc<Engine>,
    subscribed: &Subscribed,
    events: impl IntoIterator<Item = &Arc<EventEnvelope>>,
) -> Option<Recorded> {
    let id = subscribed.id?;
    let positions = events.into_iter().filter_map(|event| event.position());
    let may_have_run = |position: &Position| *position <= subscribed.started.through;
    let positions: Vec<_> = positions.filter(may_have_run).collect();
    if positions.is_empty() {
        return None;
    }
    let save = engine.step(|state, after| {
        let started = positions.iter();
        let started = started.map(|&position| DeliveryChange::Started(id, position));
        state.unsaved.change(started, None);
        after.saver = true;
        state.unsaved.next_save()
    });
    let started = Recorded {
        engine: Arc::clone(engine),
        id,
        positions,
    };
    progress::committed(engine, save).await;
    Some(started)
}

/// Deliveries that were recorded as started.
pub(crate) struct Recorded {
    engine: Arc<Engine>,
    id: SubscriptionId,
    positions: Vec<Position>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let ended = self.positions.iter();
        let ended = ended.map(|&position| DeliveryChange::Ended(self.id, position));
        self.engine.step(|state, after| {
            state.unsaved.change(ended, None);
            after.saver = true;
        });
    }
}
