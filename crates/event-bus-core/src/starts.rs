//! Deliveries that may be repeats say so before they start (F4): where the process ends with one of
//! them again and again, its handler is what ends it.

use std::sync::Arc;

use domain_events::{DeliveryChange, EventEnvelope, StartedDelivery};

use crate::{engine::Engine, progress, subscribed::Subscribed};

/// So many unclean ends in a row make a delivery a dead letter.
const MOST_UNCLEAN_ENDS: u32 = 3;

/// How many unclean ends in a row have found a delivery running, where those are too many.
pub(crate) fn too_many(subscribed: &Subscribed, event: &EventEnvelope) -> Option<u32> {
    let position = event.position()?;
    let of = |started: &&StartedDelivery| started.position == position;
    let ends = subscribed.started.iter().find(of)?.unclean_ends;
    (ends >= MOST_UNCLEAN_ENDS).then_some(ends)
}

/// Records that deliveries start; returns once that is committed.
pub(crate) async fn record<'a>(
    engine: &Engine,
    subscribed: &Arc<Subscribed>,
    events: impl Iterator<Item = &'a EventEnvelope>,
) {
    let Some(id) = subscribed.id else {
        return;
    };
    let started = |event: &EventEnvelope| Some(DeliveryChange::Started(id, event.position()?));
    let save = engine.step(|state, after| {
        state.unsaved.change(events.filter_map(started), None);
        after.saver = true;
        state.unsaved.next_save()
    });
    progress::committed(engine, save).await;
}

/// Notes that deliveries that may have been recorded as started have ended.
pub(crate) fn ended<'a>(
    engine: &Engine,
    subscribed: &Subscribed,
    events: impl Iterator<Item = &'a EventEnvelope>,
) {
    let Some(id) = subscribed.id else {
        return;
    };
    let ended = |event: &EventEnvelope| Some(DeliveryChange::Ended(id, event.position()?));
    engine.step(|state, after| {
        state.unsaved.change(events.filter_map(ended), None);
        after.saver = true;
    });
}
