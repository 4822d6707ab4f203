//! Waiting for room, and places that are reserved: both given up when dropped.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use domain_events::{NewEvent, PublishError};
use tokio::time::Instant;

use crate::{
    admission::Needs,
    after::After,
    engine::{Engine, discard},
    pipeline::PipelineId,
    state::State,
    waiters::{Entered, Waiter, Wanted},
};

/// What to do where there is no room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    Wait,
    WaitFor(Duration),
    GiveBack,
    /// Nobody waits for room: a bus with a log does without, and leaves the events to it.
    DoWithout,
}

/// A turn in the queue of those who wait for room; given up when dropped.
pub(crate) struct Waiting<'a> {
    engine: &'a Arc<Engine>,
    /// `None` once it is known what became of it.
    ticket: Option<u64>,
    /// The places that are waited for, where it is not events that do.
    places: Needs,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(engine: &'a Arc<Engine>, ticket: u64, places: Needs) -> Self {
        let ticket = Some(ticket);
        Self {
            engine,
            ticket,
            places,
        }
    }

    /// Waits for what becomes of it; not longer than said, and then takes back what was wanted.
    pub(crate) async fn entered(mut self, no_room: NoRoom) -> Result<Entered, Wanted> {
        let NoRoom::WaitFor(limit) = no_room else {
            return Ok(self.turn().await);
        };
        if let Ok(entered) = tokio::time::timeout(limit, self.turn()).await {
            return Ok(entered);
        }
        match self.withdraw() {
            Some(Ok(wanted)) => Err(wanted),
            // It came in at the last moment.
            Some(Err(entered)) => Ok(entered),
            None => Ok(Entered::Stopped),
        }
    }

    async fn turn(&mut self) -> Entered {
        std::future::poll_fn(|cx| {
            let Some(ticket) = self.ticket else {
                return Poll::Pending;
            };
            // A waker is anybody's code, to be cloned and dropped as well.
            let waker = cx.waker().clone();
            let (entered, old) = self
                .engine
                .step(|state, _| state.waiters.poll(ticket, waker));
            discard(old);
            let Some(entered) = entered else {
                return Poll::Pending;
            };
            self.ticket = None;
            Poll::Ready(entered)
        })
        .await
    }

    /// Takes it out: what was wanted, or what became of it already.
    fn withdraw(&mut self) -> Option<Result<Wanted, Entered>> {
        let ticket = self.ticket.take()?;
        let withdrawn = self.engine.step(|state, after| {
            let mut withdrawn = state.waiters.withdraw(ticket);
            if let Ok(waiter) = &mut withdrawn {
                state.give_back(&waiter.take_held());
            }
            // Who waited behind may have room now.
            state.admit(after);
            withdrawn
        });
        match withdrawn {
            Ok(waiter) => Some(Ok(waiter.into_wanted())),
            Err(entered) => entered.map(Err),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        match self.withdraw() {
            Some(Err(Entered::Places)) => self
                .engine
                .step(|state, after| state.give_back_places(&self.places, after)),
            // Events are the user's, and receipts may hold them.
            other => discard(other),
        }
    }
}

/// Places of a pipeline that are reserved and not yet taken; given back when dropped, which is not
/// to be under the lock.
pub(crate) struct Reservation {
    engine: Arc<Engine>,
    pipeline: PipelineId,
    left: usize,
}

impl Reservation {
    /// Takes the place of one event, if there is one left; whoever takes it gives it back.
    pub(crate) fn take(&mut self) -> bool {
        let taken = self.left > 0;
        self.left -= usize::from(taken);
        taken
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.left > 0 {
            let places = Needs::of(self.pipeline, self.left);
            self.engine
                .step(|state, after| state.give_back_places(&places, after));
        }
    }
}

/// Waits for places of a pipeline; cancel-safe. `None` where none are to be had: the time is up, the
/// events can do without, or the bus has stopped.
pub(crate) async fn wait_for_places(
    engine: &Arc<Engine>,
    pipeline: PipelineId,
    count: usize,
    wanted: Wanted,
    no_room: NoRoom,
) -> Result<Reservation, Option<Entered>> {
    let places = Needs::of(pipeline, count);
    let ticket = engine.step(|state, after| {
        if state.is_stopping || state.is_closed {
            return None;
        }
        let ticket = state.waiters.push(places.clone(), wanted);
        state.admit(after);
        Some(ticket)
    });
    let Some(ticket) = ticket else {
        return Err(Some(Entered::Stopped));
    };
    let waiting = Waiting::new(engine, ticket, places);
    match waiting.entered(no_room).await {
        Ok(Entered::Places) => Ok(Reservation {
            engine: Arc::clone(engine),
            pipeline,
            left: count,
        }),
        Ok(other) => Err(Some(other)),
        Err(_) => Err(None),
    }
}

/// Room for durable events in the default pipeline. There may be none: the events are then left to
/// the log.
pub(crate) async fn reserve(
    engine: &Arc<Engine>,
    events: Vec<NewEvent>,
    no_room: NoRoom,
    from_handler: bool,
) -> Result<(Vec<NewEvent>, Option<Reservation>), PublishError> {
    let capacity = engine.config.capacity;
    if !engine.live.load(Ordering::Acquire) {
        return Ok((events, None));
    }
    // Who comes to want an event meanwhile finds no place for it, and reads it from the log.
    let count = engine.look(|state| state.subscriptions.count_shared(&events));
    if count == 0 || count > capacity {
        return Ok((events, None));
    }
    let at_once = engine.step(|state, _| state.reserve(count, from_handler));
    if at_once {
        let room = Reservation {
            engine: Arc::clone(engine),
            pipeline: PipelineId::SHARED,
            left: count,
        };
        return Ok((events, Some(room)));
    }
    if from_handler || no_room == NoRoom::DoWithout {
        return Ok((events, None));
    }
    if no_room == NoRoom::GiveBack {
        return Err(PublishError::Full { capacity, events });
    }
    match wait_for_places(
        engine,
        PipelineId::SHARED,
        count,
        Wanted::PlacesOrLog,
        no_room,
    )
    .await
    {
        Ok(room) => Ok((events, Some(room))),
        Err(None) => Err(PublishError::Full { capacity, events }),
        Err(Some(Entered::WithoutRoom)) => Ok((events, None)),
        Err(Some(_)) => Err(PublishError::Stopped),
    }
}

impl State {
    /// Takes places of the default pipeline, if there are as many at once.
    fn reserve(&mut self, count: usize, from_handler: bool) -> bool {
        let needs = Needs::of(PipelineId::SHARED, count);
        let overtakes = !from_handler
            && self
                .waiters
                .are_ahead_of(&needs, |id, count| self.pipelines.fits(id, count));
        let Some(pipeline) = self.pipelines.get_mut(PipelineId::SHARED) else {
            return false;
        };
        let room = &mut pipeline.room;
        let fits = if from_handler {
            room.fits_inside(count)
        } else {
            room.fits(count) && !overtakes
        };
        if fits {
            room.take(count);
        }
        fits
    }

    /// Lets those in who wait for room and have it now.
    pub(crate) fn admit(&mut self, after: &mut After) {
        loop {
            self.waiters.hold_for_first(&mut self.pipelines);
            let fits = |id, count| self.pipelines.fits(id, count);
            let Some(mut waiter) = self.waiters.next(fits) else {
                return;
            };
            self.give_back(&waiter.take_held());
            let wanted = std::mem::replace(&mut waiter.wanted, Wanted::Places);
            let entered = match wanted {
                Wanted::Events(events) => {
                    Entered::Events(self.accept_all(events, Some(Instant::now()), after))
                }
                Wanted::Places | Wanted::PlacesOrLog => {
                    self.take_places(&waiter.needs);
                    Entered::Places
                }
            };
            after.wake(self.waiters.enter(waiter, entered));
        }
    }

    pub(crate) fn take_places(&mut self, needs: &Needs) {
        for (id, count) in needs.iter() {
            if let Some(pipeline) = self.pipelines.get_mut(id) {
                pipeline.room.take(count);
            }
        }
    }

    fn give_back(&mut self, needs: &Needs) {
        for (id, count) in needs.iter() {
            if let Some(pipeline) = self.pipelines.get_mut(id) {
                pipeline.room.give_back(count);
            }
        }
    }

    pub(crate) fn give_back_places(&mut self, needs: &Needs, after: &mut After) {
        self.give_back(needs);
        self.admit(after);
    }

    /// Nobody who waits keeps anything: what they need is worked out anew.
    pub(crate) fn give_back_held(&mut self) {
        let held: Vec<_> = self.waiters.iter_mut().map(Waiter::take_held).collect();
        held.iter().for_each(|held| self.give_back(held));
    }

    /// Tells everybody who waits for room that the bus has stopped.
    pub(crate) fn turn_away(&mut self, after: &mut After) {
        for waiter in self.waiters.drain() {
            self.turn_away_one(waiter, Entered::Stopped, after);
        }
    }

    pub(crate) fn turn_away_one(&mut self, mut waiter: Waiter, told: Entered, after: &mut After) {
        self.give_back(&waiter.take_held());
        let wanted = std::mem::replace(&mut waiter.wanted, Wanted::Places);
        after.dropped.push(Box::new(wanted));
        after.wake(self.waiters.enter(waiter, told));
    }

    /// Tells those who wait for room and can do without that they need none.
    pub(crate) fn let_go_without_room(&mut self, after: &mut After) {
        for waiter in self.waiters.drain_without() {
            after.wake(self.waiters.enter(waiter, Entered::WithoutRoom));
        }
    }
}
