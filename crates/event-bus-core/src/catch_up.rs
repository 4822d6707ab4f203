//! From the log to the mailboxes, in bounded pages, until the pipeline is live again (R4).

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use domain_events::{EventEnvelope, Position, StoreError, StoreErrorKind, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::{
    after::After,
    engine::{AFTER_FAULT, Engine, Stores},
    pipeline::PipelineId,
    say::say,
    state::State,
    subscriptions::Targets,
    waiters::Wanted,
    waiting::{NoRoom, wait_for_places},
};

/// How many events are read at a time.
const PAGE: usize = 512;

/// Reads the log whenever the pipeline is behind it, for as long as there is the pipeline.
pub(crate) async fn run(engine: Arc<Engine>, stores: Stores, pipeline: PipelineId) {
    while let Some(place) = engine.step(|state, after| state.place_in_log(&engine, pipeline, after))
    {
        let through = match place {
            Place::Behind(through) => through,
            Place::Live(behind) => {
                behind.notified().await;
                continue;
            }
        };
        let fault = match stores.events.read_log(through, PAGE).await {
            Ok(page) if starts_after(through, &page) => {
                engine.store_works();
                hand_over(&engine, pipeline, page).await;
                continue;
            }
            Ok(_) => match skip_pruned(&engine, &stores, pipeline, through).await {
                Ok(true) => continue,
                Ok(false) => {
                    let missing = format!("position {} is missing", through.next());
                    (StoreErrorKind::Corrupt, missing)
                }
                Err(error) => (error.kind(), error.to_string()),
            },
            Err(error) => (error.kind(), error.to_string()),
        };
        let (kind, fault) = fault;
        engine.store_fails(kind, &fault);
        say!(error, "log not read", "after" = through, "again.in.ms" = AFTER_FAULT.as_millis(); fault);
        tokio::time::sleep(AFTER_FAULT).await;
    }
}

fn starts_after(through: Position, page: &[EventEnvelope]) -> bool {
    page.first()
        .is_some_and(|event| event.position() == Some(through.next()))
}

/// Goes on behind what was pruned, or with the next of it that is still to be delivered. Returns whether
/// anything was.
async fn skip_pruned(
    engine: &Arc<Engine>,
    stores: &Stores,
    pipeline: PipelineId,
    through: Position,
) -> Result<bool, StoreError> {
    let pruned = stores.events.pruned_through().await?;
    if pruned <= through {
        return Ok(false);
    }
    let waiting = engine.look(|state| {
        state
            .subscriptions
            .first_waiting(pipeline, (through, pruned))
    });
    let kept = match waiting {
        Some(position) => stores.events.at(position).await?,
        None => None,
    };
    let skipped = waiting.map_or(pruned, Position::previous);
    engine.step(|state, after| state.skip(pipeline, (through, skipped), after));
    match (waiting, kept) {
        (None, _) => Ok(true),
        (Some(_), Some(event)) => {
            hand_over(engine, pipeline, vec![event]).await;
            Ok(true)
        }
        // What waits is kept, unless its subscription has gone meanwhile.
        (Some(position), None) => Ok(engine.look(|state| {
            let range = (position.previous(), position);
            state.subscriptions.first_waiting(pipeline, range).is_none()
        })),
    }
}

/// Where a pipeline is in the log.
enum Place {
    /// It has everything up to here, and is to read on.
    Behind(Position),
    /// There is nothing left to read, until this is told.
    Live(Arc<Notify>),
}

impl State {
    fn place_in_log(
        &mut self,
        engine: &Engine,
        id: PipelineId,
        after: &mut After,
    ) -> Option<Place> {
        if self.is_stopping || self.is_closed {
            return None;
        }
        let pipeline = self.pipelines.get_mut(id)?;
        let cursor = pipeline.cursor.as_mut()?;
        // Appends are announced in the order of the log, under this lock: nothing comes between.
        if !cursor.live && cursor.through < cursor.head {
            return Some(Place::Behind(cursor.through));
        }
        after.quiet |= !std::mem::replace(&mut cursor.live, true);
        if id == PipelineId::SHARED {
            engine.live.store(true, Ordering::Release);
        }
        Some(Place::Live(Arc::clone(&pipeline.behind)))
    }

    /// Passes over what nobody is to have any more, unless the pipeline was set back meanwhile.
    fn skip(&mut self, id: PipelineId, (from, through): (Position, Position), after: &mut After) {
        let (bus, subscriptions) = (self.bus, &self.subscriptions);
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return;
        };
        let cursor = pipeline.cursor.as_mut();
        if let Some(cursor) = cursor.filter(|cursor| cursor.through == from) {
            cursor.through = through;
            cursor.find_awaited(through, bus, id, subscriptions, after);
        }
    }

    /// Takes an event up from the log, if it is the next and there is room for it.
    fn take_up(&mut self, id: PipelineId, event: &Arc<EventEnvelope>, after: &mut After) -> Next {
        let Some(position) = event.position() else {
            return Next::Other;
        };
        let targets = self.uncovered(id, event, position, after);
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return Next::Other;
        };
        // The cursor may have been set back while the page was read, or the event is committed and
        // not announced yet: its receipt is still on the way.
        let is_next = pipeline.cursor.as_ref().is_some_and(|cursor| {
            position == cursor.through.next() && cursor.through < cursor.head
        });
        if !is_next {
            return Next::Other;
        }
        let is_wanted = !targets.is_empty();
        if is_wanted && !pipeline.room.try_take() {
            return Next::NoRoom;
        }
        self.figures.taken_up(id == PipelineId::SHARED, is_wanted);
        let since_recorded = event.recorded().map_or(Duration::ZERO, |recorded| {
            Timestamp::now().since(recorded.at)
        });
        let now = Instant::now();
        let accepted_at = now.checked_sub(since_recorded).unwrap_or(now);
        self.take_in(id, Arc::clone(event), targets, accepted_at, None, after);
        Next::Taken
    }
}

impl State {
    /// Who wants an event of the log, but for those in whose backlog it is since an earlier run, which
    /// delivers it: whatever that run had listed as unfinished, the row goes before it (R1).
    fn uncovered(
        &mut self,
        id: PipelineId,
        event: &EventEnvelope,
        position: Position,
        after: &mut After,
    ) -> Targets {
        let subscriptions = &mut self.subscriptions;
        let targets = subscriptions.targets(id, event.event_type(), position);
        let Some(mailboxes) = self.pipelines.get_mut(id).map(|it| &mut it.mailboxes) else {
            return targets;
        };
        let mailbox = mailboxes.known(event.aggregate());
        let (Some(mailbox), Some(recorded)) = (mailbox, event.recorded()) else {
            return targets;
        };
        let (covered, open): (Vec<_>, Vec<_>) = targets.iter().cloned().partition(|target| {
            let blocked = mailboxes.blocked(mailbox, target);
            blocked.is_some_and(|blocked| blocked.takes_in(recorded))
        });
        if covered.is_empty() {
            return targets;
        }
        for target in &covered {
            subscriptions.covered(target, position);
        }
        after.saver |= self.unsaved.moved();
        open.into()
    }
}

/// Whether an event of the log was taken up.
#[derive(PartialEq, Eq)]
enum Next {
    Taken,
    NoRoom,
    /// Another one is the next.
    Other,
}

/// Hands a page over as room comes free.
async fn hand_over(engine: &Arc<Engine>, pipeline: PipelineId, page: Vec<EventEnvelope>) {
    let mut page = page.into_iter().map(Arc::new).peekable();
    while page.peek().is_some() {
        let next = engine.step(|state, after| {
            while let Some(event) = page.peek() {
                let next = state.take_up(pipeline, event, after);
                if next != Next::Taken {
                    return next;
                }
                page.next();
            }
            Next::Taken
        });
        match next {
            Next::Taken => {}
            Next::Other => return,
            // Wait for one place, in turn, and give it back for the step that uses it.
            Next::NoRoom => {
                let room = wait_for_places(engine, pipeline, 1, Wanted::Places, NoRoom::Wait).await;
                // The bus is stopping, and what is left in the log is for the next run.
                if room.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use domain_events::{EventBus, EventEnvelope, Subscription};
    use event_testkit::{event_store::noted, memory_store::MemoryStore};
    use tokio::task::yield_now;

    use crate::{BusConfig, InMemoryEventBus, state::State};

    /// The reader must not ask for room again and again, on a thread that it gives to nobody.
    #[tokio::test]
    async fn l2_a_reader_that_waits_for_room_ends_with_the_bus() {
        let store = Arc::new(MemoryStore::new());
        let bus = InMemoryEventBus::with_store(BusConfig::default(), store).unwrap();
        let hangs = Subscription::to_all("hangs", |_: Arc<EventEnvelope>, _| async {
            std::future::pending().await
        });
        bus.subscribe(hangs.isolated(1).capacity(1)).await.unwrap();
        bus.start().await.unwrap();
        for _ in 0..3 {
            bus.publish(noted("a", "")).await.unwrap();
        }
        let engine = &bus.engine;
        let waits = || engine.step(|state, _| state.waiters.iter_mut().next().is_some());
        while !waits() {
            yield_now().await;
        }
        engine.step(State::stop_entering);
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(!waits());
    }
}
