//! The way in: room first, then the log, then the mailboxes.

use std::sync::{Arc, Weak};

use domain_events::{
    BoxFuture, ExpectedVersion, HandlerPublisher, NewEvent, PublishError, Receipt, UnfaithfulError,
};
use tokio::time::Instant;

use crate::{
    admission::Needs,
    append::append,
    engine::Engine,
    entry::{Entry, Way},
    inside,
    lifecycle::Phase,
    waiters::{Arriving, Entered, Wanted},
    waiting::{NoRoom, Waiting, reserve},
};

/// Publishes events atomically and consecutively (P3); cancel-safe, as only waiting for room can
/// be given up.
pub(crate) async fn publish(
    engine: &Arc<Engine>,
    events: Vec<NewEvent>,
    no_room: NoRoom,
    from_handler: bool,
) -> Result<Vec<Receipt>, PublishError> {
    let from_handler = from_handler || inside::is_inside(engine.id);
    // Who publishes on and on lets others have the thread now and then.
    tokio::task::coop::consume_budget().await;
    check(engine, &events, from_handler)?;
    if events.is_empty() {
        return Ok(Vec::new());
    }
    match &engine.stores {
        None => enter(engine, events, no_room, from_handler).await,
        Some(stores) => {
            let (events, room) = reserve(engine, events, no_room, from_handler).await?;
            append(engine, stores, events, room, from_handler).await
        }
    }
}

/// The way in from the handlers that a worker runs; each worker has its own, as the count of those
/// who hold one would be passed between their processors.
pub(crate) struct FromHandlers(pub(crate) Weak<Engine>);

impl HandlerPublisher for FromHandlers {
    fn publish_from_handler(
        &self,
        events: Vec<NewEvent>,
    ) -> BoxFuture<'static, Result<Vec<Receipt>, PublishError>> {
        let engine = self.0.upgrade();
        // Not made to give way to others: a plain closure blocks on it, in the task of its worker.
        Box::pin(tokio::task::unconstrained(async move {
            let engine = engine.ok_or(PublishError::Stopped)?;
            publish(&engine, events, NoRoom::GiveBack, true).await
        }))
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
        if cfg!(debug_assertions) {
            faithful(event)?;
        }
        if engine.stores.is_none() && event.expected() != ExpectedVersion::Any {
            return Err(PublishError::VersionWithoutStore);
        }
    }
    Ok(())
}

/// Checks that handlers would be given the same event after a restart as now (D11).
fn faithful(event: &NewEvent) -> Result<(), PublishError> {
    event.check_faithful().map_err(|error| match error {
        UnfaithfulError::Encode(error) => PublishError::Encode(error),
        error => PublishError::Unfaithful(error),
    })
}

/// Puts volatile events into the mailboxes, once there is room for all of them.
async fn enter(
    engine: &Arc<Engine>,
    events: Vec<NewEvent>,
    no_room: NoRoom,
    from_handler: bool,
) -> Result<Vec<Receipt>, PublishError> {
    let batch = events.len();
    let way = match no_room {
        _ if from_handler => Way::Inside,
        NoRoom::GiveBack | NoRoom::DoWithout => Way::Try,
        NoRoom::Wait | NoRoom::WaitFor(_) => Way::Wait,
    };
    let now = Instant::now();
    let arriving = |event| Arriving::new(engine.id, event, now);
    let events = events.into_iter().map(arriving).collect();
    match engine.step(|state, after| state.enter(events, way, after)) {
        Entry::In(receipts) => Ok(receipts),
        Entry::Full(capacity, events) => Err(full(capacity, events)),
        Entry::TooLarge(capacity) => Err(PublishError::BatchTooLarge { batch, capacity }),
        Entry::Closed => Err(PublishError::Stopped),
        Entry::Waits(ticket, capacity) => {
            let waiting = Waiting::new(engine, ticket, Needs::default());
            match waiting.entered(no_room).await {
                Ok(Entered::Events(receipts)) => Ok(receipts),
                Ok(Entered::TooLarge(capacity)) => {
                    Err(PublishError::BatchTooLarge { batch, capacity })
                }
                Ok(_) | Err(Wanted::Places | Wanted::PlacesOrLog) => Err(PublishError::Stopped),
                Err(Wanted::Events(events)) => Err(full(capacity, events)),
            }
        }
    }
}

fn full(capacity: usize, events: Vec<Arriving>) -> PublishError {
    let events = events.into_iter().filter_map(Arriving::give_back).collect();
    PublishError::Full { capacity, events }
}
