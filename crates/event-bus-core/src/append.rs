//! From the publisher to the log, and from the log to every pipeline that wants the event (durable).

use std::sync::{Arc, Weak, atomic::Ordering};

use domain_events::{
    Append, AppendError, Appended, EventEnvelope, NewEvent, Position, PublishError, Receipt,
    StoreError, StoreErrorKind,
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    after::After,
    engine::{Engine, Stores},
    followed::Followed,
    pipeline::PipelineId,
    record::{Marks, Record},
    state::State,
    subscriptions::Targets,
    sync::AtomicUsize,
    waiting::Reservation,
};

/// Appends events, all or none, and hands them over once they are committed.
pub(crate) async fn append(
    engine: &Arc<Engine>,
    stores: &Stores,
    events: Vec<NewEvent>,
    mut room: Option<Reservation>,
    from_handler: bool,
) -> Result<Vec<Receipt>, PublishError> {
    let mut batch = Vec::with_capacity(events.len());
    for event in events {
        let expected = event.expected();
        let event = event.seal();
        event.payload().map_err(PublishError::Encode)?;
        batch.push(Append { event, expected });
    }
    if !engine.step(|state, _| state.appends(from_handler)) {
        return Err(PublishError::Stopped);
    }
    let accepted_at = Instant::now();
    let (tell, told) = oneshot::channel();
    let engine = Arc::clone(engine);
    let done = move |result: Result<Vec<Appended>, AppendError>| {
        let hand_over = |state: &mut State, after: &mut After| {
            let receipts = result.map(|appended| {
                state.committed(&engine, appended, room.as_mut(), accepted_at, after)
            });
            state.appended(after);
            receipts
        };
        // Before the workers are woken: it has waited longer than they.
        engine.step_then(hand_over, |receipts| drop(tell.send(receipts)));
        drop(room);
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

/// A pipeline that is to have an event.
struct Part {
    pipeline: PipelineId,
    targets: Targets,
    /// Whether it takes the event in now; else it reads it from the log.
    now: bool,
}

impl State {
    /// Hands committed events to the pipelines; called in the order of the log.
    fn committed(
        &mut self,
        engine: &Engine,
        appended: Vec<Appended>,
        mut room: Option<&mut Reservation>,
        accepted_at: Instant,
        after: &mut After,
    ) -> Vec<Receipt> {
        let mut receipts = Vec::with_capacity(appended.len());
        for appended in appended {
            let room = room.as_deref_mut();
            receipts.extend(self.hand_over(engine, appended, room, accepted_at, after));
        }
        engine
            .live
            .store(self.tell_who_is_behind(after), Ordering::Release);
        receipts
    }

    /// Hands a committed event to every pipeline that is live and has room; the others read it from
    /// the log later.
    fn hand_over(
        &mut self,
        engine: &Engine,
        appended: Appended,
        room: Option<&mut Reservation>,
        accepted_at: Instant,
        after: &mut After,
    ) -> Option<Receipt> {
        let Appended {
            event,
            already_there,
        } = appended;
        let (id, recorded, position) = (event.id(), event.recorded(), event.position()?);
        let receipt = |handling| Some(Receipt::new(id, recorded, already_there, handling));
        if already_there || self.is_closed {
            for (_, pipeline) in self.pipelines.iter_mut() {
                if let Some(cursor) = &mut pipeline.cursor {
                    cursor.head = cursor.head.max(position);
                    // Where its append was answered as unknown, nobody has taken it up.
                    cursor.live &= position <= cursor.through;
                }
            }
            if !already_there {
                return receipt(self.stopped(&event, position) as _);
            }
            return receipt(Followed::awaiting(engine.id, Weak::new(), event, [None]) as _);
        }
        let parts = self.parts(&event, position, room);
        let open = |part: &&Part| part.now && !part.targets.is_empty();
        let count = parts.iter().filter(open).count();
        let is_left = parts
            .iter()
            .any(|part| part.pipeline == PipelineId::SHARED && !part.now);
        self.figures.handed_over(count > 0, is_left);
        let shared = (count > 1).then(|| Arc::new(AtomicUsize::new(count)));
        let wanted = parts.iter().filter(|part| !part.targets.is_empty());
        let awaited: Vec<_> = wanted
            .enumerate()
            .filter(|(_, part)| !part.now)
            .map(|(place, part)| (place, part.pipeline))
            .collect();
        let mut records = Vec::with_capacity(parts.len());
        for Part {
            pipeline,
            targets,
            now,
        } in parts
        {
            let is_wanted = !targets.is_empty();
            let record = now.then(|| {
                let (event, shared) = (Arc::clone(&event), shared.clone());
                self.take_in(pipeline, event, targets, accepted_at, shared, after)
            });
            if is_wanted {
                records.push(record.flatten());
            }
        }
        let followed = Followed::awaiting(engine.id, engine.weak(), event, records);
        for (place, pipeline) in awaited {
            let pipeline = self.pipelines.get_mut(pipeline);
            if let Some(cursor) = pipeline.and_then(|it| it.cursor.as_mut()) {
                let awaited = (Arc::downgrade(&followed), place);
                cursor.awaited.insert(position, awaited);
            }
        }
        receipt(followed as _)
    }

    /// Who is to have an event, and who takes it in now: who is live, has nothing missing before it,
    /// and has room for it.
    fn parts(
        &mut self,
        event: &EventEnvelope,
        position: Position,
        mut room: Option<&mut Reservation>,
    ) -> Vec<Part> {
        let Self {
            pipelines,
            subscriptions,
            ..
        } = self;
        let mut parts = Vec::with_capacity(1);
        for (id, pipeline) in pipelines.iter_mut() {
            let targets = subscriptions.targets(id, event.event_type(), position);
            let Some(cursor) = &mut pipeline.cursor else {
                continue;
            };
            cursor.head = cursor.head.max(position);
            let is_next = cursor.live && position == cursor.through.next();
            let now = is_next
                && (targets.is_empty()
                    || if id == PipelineId::SHARED {
                        room.as_mut().is_some_and(|room| room.take())
                    } else {
                        pipeline.room.try_take()
                    });
            cursor.live &= now;
            parts.push(Part {
                pipeline: id,
                targets,
                now,
            });
        }
        parts
    }

    /// Takes an event of the log into a pipeline, with a place where somebody wants it.
    pub(crate) fn take_in(
        &mut self,
        id: PipelineId,
        event: Arc<EventEnvelope>,
        targets: Targets,
        accepted_at: Instant,
        shared: Option<Arc<AtomicUsize>>,
        after: &mut After,
    ) -> Option<Arc<Record>> {
        let position = event.position()?;
        let pipeline = self.pipelines.get_mut(id)?;
        let cursor = pipeline.cursor.as_mut()?;
        let has_room = !targets.is_empty();
        let waiting = match pipeline.mailboxes.is_per_aggregate() {
            true => None,
            false => self.subscriptions.take_waiting(id, position),
        };
        let is_counted = waiting.as_ref().is_some_and(|it| it.2);
        let counts = targets.iter().filter(|_| !is_counted);
        counts.for_each(|target| target.steps.matching.up());
        let marks = Marks {
            has_room,
            may_be_repeat: position <= cursor.repeats_through,
            is_replay: waiting.as_ref().is_some_and(|it| it.1.is_replay),
        };
        let mut record = Record::new(self.bus, event, targets, accepted_at, marks);
        record.share(shared);
        let record = Arc::new(record);
        if let Some((followed, part)) = cursor.opened(position, &record) {
            after.found.push((followed, part, Arc::clone(&record)));
        }
        after.saver |= self.unsaved.progress();
        match waiting {
            Some((subscribed, waiting, _)) => {
                let save = self.unsaved.last_save();
                pipeline.go_on(&subscribed, &record, &waiting, save, after);
                after.dropped.push(Box::new(subscribed));
            }
            None if has_room => pipeline.push(id, Arc::clone(&record), after),
            None => {}
        }
        Some(record)
    }

    /// Tells those who have something to read from the log, and publishers that wait for room which
    /// is needed no more. Returns whether the default pipeline is live.
    pub(crate) fn tell_who_is_behind(&mut self, after: &mut After) -> bool {
        let mut live = true;
        for (id, pipeline) in self.pipelines.iter() {
            if pipeline.cursor.as_ref().is_some_and(|cursor| !cursor.live) {
                after.behind.push(Arc::clone(&pipeline.behind));
                live &= id != PipelineId::SHARED;
            }
        }
        if !live {
            self.let_go_without_room(after);
        }
        live
    }

    /// The receipt's side of an event that was committed after the bus had stopped.
    fn stopped(&self, event: &Arc<EventEnvelope>, position: Position) -> Arc<Followed> {
        let ids = self.pipelines.iter().map(|(id, _)| id);
        let record = |id| {
            let targets = self.subscriptions.targets(id, event.event_type(), position);
            let (event, now) = (Arc::clone(event), Instant::now());
            let record = Record::new(self.bus, event, targets, now, Marks::default());
            record.stop();
            Arc::new(record)
        };
        Followed::new(self.bus, ids.map(record))
    }

    /// Notes that events go to the log, until they are [appended](Self::appended). Returns whether
    /// they may.
    pub(crate) fn appends(&mut self, from_handler: bool) -> bool {
        let may = !self.is_closed && (from_handler || !self.is_stopping);
        self.appending += usize::from(may);
        may
    }

    pub(crate) fn appended(&mut self, after: &mut After) {
        self.appending -= 1;
        after.quiet |= self.is_stopping;
    }
}
