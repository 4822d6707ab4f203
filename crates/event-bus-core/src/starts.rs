//! Deliveries that may be repeats say so before they start (F4): where the process ends with one of
//! them again and again, its handler is what ends it.

use std::sync::Arc;

use domain_events::{DeliveryChange, EventEnvelope, Position, StartedDelivery, SubscriptionId};

use crate::{engine::Engine, progress, subscribed::Subscribed};

/// So many unclean ends in a row make a delivery a dead letter.
const MOST_UNCLEAN_ENDS: u32 = 3;

/// How many unclean ends in a row have found a delivery running, where those are too many; they are
/// forgotten with that.
pub(crate) fn too_many(
    engine: &Engine,
    subscribed: &Subscribed,
    event: &EventEnvelope,
) -> Option<u32> {
    let position = event.position()?;
    let of = |started: &&StartedDelivery| started.position == position;
    let ends = subscribed.started.iter().find(of)?.unclean_ends;
    if ends < MOST_UNCLEAN_ENDS {
        return None;
    }
    let ended = subscribed.id.map(|id| DeliveryChange::Ended(id, position));
    engine.step(|state, _| state.unsaved.change(ended, None));
    Some(ends)
}

/// Records that deliveries start, and once the guard is dropped, that they have ended, be it that a stop
/// has cut them off. Returns once the first is committed.
pub(crate) async fn record(
    engine: &Arc<Engine>,
    subscribed: &Subscribed,
    events: impl IntoIterator<Item = &Arc<EventEnvelope>>,
) -> Option<Started> {
    let id = subscribed.id?;
    let events = events.into_iter();
    let positions: Vec<_> = events.filter_map(|event| event.position()).collect();
    let save = engine.step(|state, after| {
        let started = positions.iter();
        let started = started.map(|&position| DeliveryChange::Started(id, position));
        state.unsaved.change(started, None);
        after.saver = true;
        state.unsaved.next_save()
    });
    let started = Started {
        engine: Arc::clone(engine),
        id,
        positions,
    };
    progress::committed(engine, save).await;
    Some(started)
}

/// Deliveries that were recorded as started.
pub(crate) struct Started {
    engine: Arc<Engine>,
    id: SubscriptionId,
    positions: Vec<Position>,
}

impl Drop for Started {
    fn drop(&mut self) {
        let ended = self.positions.iter();
        let ended = ended.map(|&position| DeliveryChange::Ended(self.id, position));
        self.engine.step(|state, after| {
            state.unsaved.change(ended, None);
            after.saver = true;
        });
    }
}
