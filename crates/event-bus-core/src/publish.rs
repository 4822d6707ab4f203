//! The way in: room first, then the log, then the mailboxes.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Instant,
};

use domain_events::{
    Append, AppendError, Appended, BoxFuture, EventEnvelope, ExpectedVersion, HandlerPublisher,
    NewEvent, PublishError, Receipt, StoreError, StoreErrorKind,
};
use tokio::sync::oneshot;

use crate::{
    admission::Reservation,
    engine::{Engine, Stores},
    inside,
    lifecycle::Phase,
    pipeline::{Pipeline, Wake},
    record::{Followed, Record},
};

/// What to do where there is no room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    Wait,
    GiveBack,
}

/// Publishes events atomically and consecutively (P3); cancel-safe, as only waiting for room can
/// be given up.
pub(crate) async fn publish(
    engine: &Arc<Engine>,
    events: Vec<NewEvent>,
    no_room: NoRoom,
    from_handler: bool,
) -> Result<Vec<Receipt>, PublishError> {
    let from_handler = from_handler || inside::is_inside(engine.id);
    check(engine, &events, from_handler)?;
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let (events, room) = reserve(engine, events, no_room, from_handler).await?;
    match &engine.stores {
        None => keep_in_memory(engine, events, room),
        Some(stores) => append(engine, stores, events, room).await,
    }
}

impl HandlerPublisher for Engine {
    fn publish_from_handler(
        &self,
        events: Vec<NewEvent>,
    ) -> BoxFuture<'static, Result<Vec<Receipt>, PublishError>> {
        let me = self.me();
        Box::pin(async move {
            let engine = me.ok_or(PublishError::Stopped)?;
            publish(&engine, events, NoRoom::GiveBack, true).await
        })
    }
}

fn check(engine: &Engine, events: &[NewEvent], from_handler: bool) -> Result<(), PublishError> {
    match engine.lifecycle.phase() {
        Phase::New | Phase::Starting => return Err(PublishError::NotStarted),
        Phase::Running => {}
        Phase::Stopping if from_handler => {}
        Phase::Stopping | Phase::Closing | Phase::Stopped => return Err(PublishError::Stopped),
    }
    for event in events {
        event.check().map_err(PublishError::Name)?;
        if engine.stores.is_none() && event.expected() != ExpectedVersion::Any {
            return Err(PublishError::VersionWithoutStore);
        }
    }
    Ok(())
}

/// Room for the events. Durable, there may be none: the events are then left to the log.
async fn reserve(
    engine: &Engine,
    events: Vec<NewEvent>,
    no_room: NoRoom,
    from_handler: bool,
) -> Result<(Vec<NewEvent>, Option<Reservation>), PublishError> {
    let (count, capacity) = (events.len(), engine.admission.capacity());
    let durable = engine.stores.is_some();
    if durable && (count > capacity || !engine.live.load(Ordering::Acquire)) {
        return Ok((events, None));
    }
    if count > capacity {
        return Err(PublishError::BatchTooLarge {
            batch: count,
            capacity,
        });
    }
    let room = match (from_handler, no_room) {
        (true, _) => engine.admission.try_reserve_inside(count),
        (false, NoRoom::GiveBack) => engine.admission.try_reserve(count),
        (false, NoRoom::Wait) => wait_for_room(engine, count).await?,
    };
    let may_go_without = durable && (from_handler || no_room == NoRoom::Wait);
    if room.is_some() || may_go_without {
        return Ok((events, room));
    }
    Err(PublishError::Full { capacity, events })
}

/// Waits for room, or until the bus reads the log and so needs none, or stops.
async fn wait_for_room(engine: &Engine, count: usize) -> Result<Option<Reservation>, PublishError> {
    // Room that comes free goes to those who wait first, so this overtakes nobody.
    if let Some(room) = engine.admission.try_reserve(count) {
        return Ok(Some(room));
    }
    let mut behind = std::pin::pin!(engine.falling_behind.notified());
    // Register before looking, so that falling behind in between is not missed.
    behind.as_mut().enable();
    if engine.stores.is_some() && !engine.live.load(Ordering::Acquire) {
        return Ok(None);
    }
    tokio::select! {
        biased;
        () = engine.lifecycle.stopping() => Err(PublishError::Stopped),
        room = engine.admission.reserve(count) => Ok(Some(room)),
        () = behind => Ok(None),
    }
}

fn keep_in_memory(
    engine: &Engine,
    events: Vec<NewEvent>,
    mut room: Option<Reservation>,
) -> Result<Vec<Receipt>, PublishError> {
    let envelopes: Vec<_> = events
        .into_iter()
        .map(|event| Arc::new(event.seal()))
        .collect();
    let now = Instant::now();
    let mut wake = Wake::default();
    let mut pipeline = engine.lock();
    if pipeline.is_closed {
        return Err(PublishError::Stopped);
    }
    pipeline.figures.accepted += envelopes.len() as u64;
    let records: Vec<_> = envelopes
        .into_iter()
        .map(|envelope| {
            let room = room.as_mut().is_some_and(Reservation::take);
            pipeline.accept(envelope, room, now, &mut wake)
        })
        .collect();
    drop(pipeline);
    engine.wake(wake);
    let receipt = |record: Arc<Record>| {
        let id = record.envelope.id();
        Receipt::new(id, None, false, Followed::new(engine.id, record))
    };
    Ok(records.into_iter().map(receipt).collect())
}

async fn append(
    engine: &Arc<Engine>,
    stores: &Stores,
    events: Vec<NewEvent>,
    room: Option<Reservation>,
) -> Result<Vec<Receipt>, PublishError> {
    let mut batch = Vec::with_capacity(events.len());
    for event in events {
        let expected = event.expected();
        let event = event.seal();
        event.payload().map_err(PublishError::Encode)?;
        batch.push(Append { event, expected });
    }
    let accepted_at = Instant::now();
    let (tell, told) = oneshot::channel();
    let engine = Arc::clone(engine);
    let done = move |result: Result<Vec<Appended>, AppendError>| {
        let receipts = result.map(|appended| committed(&engine, appended, room, accepted_at));
        drop(tell.send(receipts));
    };
    stores.events.submit(batch, Box::new(done));
    let closed = || {
        AppendError::Store(StoreError::new(
            StoreErrorKind::Closed,
            "the store is closed",
        ))
    };
    told.await
        .unwrap_or_else(|_| Err(closed()))
        .map_err(PublishError::Append)
}

/// Hands committed events to the mailboxes; called in the order of the log. Where the bus is not
/// live, a position is missing, or there is no room, it is read from the log later.
fn committed(
    engine: &Arc<Engine>,
    appended: Vec<Appended>,
    mut room: Option<Reservation>,
    accepted_at: Instant,
) -> Vec<Receipt> {
    let mut wake = Wake::default();
    let mut receipts = Vec::with_capacity(appended.len());
    let mut pipeline = engine.lock();
    for Appended {
        event,
        already_there,
    } in appended
    {
        let (id, recorded) = (event.id(), event.recorded());
        let (Some(position), Some(cursor)) = (event.position(), &mut pipeline.cursor) else {
            continue;
        };
        cursor.head = cursor.head.max(position);
        if already_there {
            // Its append was answered as unknown, and nobody has taken it up.
            cursor.live &= position <= cursor.through;
            let followed = Followed::awaiting(engine.id, Weak::new(), event);
            receipts.push(Receipt::new(id, recorded, true, followed));
            continue;
        }
        if pipeline.is_closed {
            receipts.push(Receipt::new(
                id,
                recorded,
                false,
                stopped(engine, &pipeline, event),
            ));
            continue;
        }
        let Some(cursor) = &mut pipeline.cursor else {
            continue;
        };
        let is_next = cursor.live && position == cursor.through.next();
        let has_room = is_next && room.as_mut().is_some_and(Reservation::take);
        cursor.live &= has_room;
        pipeline.figures.accepted += 1;
        let followed = if has_room {
            Followed::new(
                engine.id,
                pipeline.accept(event, has_room, accepted_at, &mut wake),
            )
        } else {
            pipeline.figures.left_to_log();
            let followed = Followed::awaiting(engine.id, engine.weak(), event);
            if let Some(cursor) = &mut pipeline.cursor {
                cursor.awaited.insert(position, Arc::downgrade(&followed));
            }
            followed
        };
        receipts.push(Receipt::new(id, recorded, false, followed));
    }
    let live = pipeline.cursor.as_ref().is_none_or(|cursor| cursor.live);
    engine.live.store(live, Ordering::Release);
    drop(pipeline);
    engine.wake(wake);
    if !live {
        engine.fell_behind();
    }
    receipts
}

/// The receipt's side of an event that was committed after the bus had stopped.
fn stopped(engine: &Engine, pipeline: &Pipeline, event: Arc<EventEnvelope>) -> Arc<Followed> {
    let targets = pipeline.subscriptions.targets(event.event_type(), None);
    let record = Record::new(event, targets, Instant::now(), false, false);
    record.stop();
    Followed::new(engine.id, record)
}
