//! Taking volatile events in: into every pipeline that wants them, or into none.

use std::sync::Arc;

use domain_events::{EventEnvelope, Handling, Receipt};
use tokio::time::Instant;

use crate::{
    admission::Needs,
    after::After,
    followed::Followed,
    pipeline::PipelineId,
    record::{Marks, Record},
    state::State,
    subscriptions::{Route, Subscriptions, Targets},
    sync::AtomicUsize,
    waiters::{Arriving, Wanted},
};

/// How events come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From outside, waiting for room.
    Wait,
    /// From outside, if there is room.
    Try,
    /// From a handler.
    Inside,
}

/// What became of events that were to come in.
pub(crate) enum Entry {
    In(Vec<Receipt>),
    /// They wait under this ticket for room in a pipeline that holds so many.
    Waits(u64, usize),
    /// The pipeline that is full holds so many.
    Full(usize, Vec<Arriving>),
    /// They never fit into a pipeline, which holds so many.
    TooLarge(usize),
    Closed,
}

impl State {
    /// Takes volatile events in, all or none, where there is room for them.
    pub(crate) fn enter(
        &mut self,
        events: Vec<Arriving>,
        way: Way,
        now: Instant,
        after: &mut After,
    ) -> Entry {
        if self.is_closed || (self.is_stopping && way != Way::Inside) {
            after.dropped.push(Box::new(events));
            return Entry::Closed;
        }
        let needs = needs(&self.subscriptions, &events);
        if let Some(capacity) = self.pipelines.too_small_for(&needs) {
            after.dropped.push(Box::new(events));
            return Entry::TooLarge(capacity);
        }
        let room = |(id, count)| Some((&self.pipelines.get(id)?.room, count));
        let full = needs.iter().filter_map(room).find(|(room, count)| {
            let fits = match way {
                Way::Inside => room.fits_inside(*count),
                Way::Wait | Way::Try => room.fits(*count),
            };
            !fits
        });
        let full = full.map(|(room, _)| room.capacity());
        let full = full.or_else(|| {
            // Nobody who waits is overtaken; what they wait for is all but taken.
            let waits = way != Way::Inside
                && self
                    .waiters
                    .are_ahead_of(&needs, |id, count| self.pipelines.fits(id, count));
            let (room, _) = needs.iter().find_map(room).filter(|_| waits)?;
            Some(room.capacity())
        });
        match full {
            None => Entry::In(self.accept_all(events, now, after)),
            Some(capacity) if way == Way::Wait => {
                let ticket = self.waiters.push(needs, Wanted::Events(events));
                Entry::Waits(ticket, capacity)
            }
            Some(capacity) => Entry::Full(capacity, events),
        }
    }

    /// Takes events in that are accepted as of `now`.
    pub(crate) fn accept_all(
        &mut self,
        events: Vec<Arriving>,
        now: Instant,
        after: &mut After,
    ) -> Vec<Receipt> {
        // Events that come together are mostly of one type, and go one way.
        let mut way: Option<(Arc<EventEnvelope>, Route)> = None;
        let accept = |Arriving { envelope, .. }: Arriving| {
            let (id, name) = (envelope.id(), envelope.event_type());
            let route = match &way {
                Some((like, route)) if like.event_type() == name => route,
                _ => {
                    let route = Arc::clone(self.subscriptions.route(name));
                    &way.insert((Arc::clone(&envelope), route)).1
                }
            };
            Receipt::new(id, None, false, self.accept(&envelope, route, now, after))
        };
        events.into_iter().map(accept).collect()
    }

    /// Puts a volatile event into the pipelines that want it. An event that nobody wants is done by
    /// that (D7).
    fn accept(
        &mut self,
        envelope: &Arc<EventEnvelope>,
        route: &Route,
        now: Instant,
        after: &mut After,
    ) -> Arc<dyn Handling> {
        let Self {
            bus,
            pipelines,
            figures,
            ..
        } = self;
        figures.accepted += 1;
        if route.is_empty() {
            figures.finished += 1;
            after.dropped.push(Box::new(Arc::clone(envelope)));
            return Followed::new(*bus, []);
        }
        figures.in_flight += 1;
        let shared = (route.len() > 1).then(|| Arc::new(AtomicUsize::new(route.len())));
        let marks = Marks {
            has_room: true,
            ..Marks::default()
        };
        let mut put = |(id, targets): &(PipelineId, _)| {
            let (envelope, targets): (_, Targets) = (Arc::clone(envelope), Arc::clone(targets));
            targets.iter().for_each(|target| target.steps.matching.up());
            let record = Record::new(*bus, envelope, targets, now, marks);
            let record = Arc::new(record.shared(shared.clone()));
            if let Some(pipeline) = pipelines.get_mut(*id) {
                pipeline.room.take(1);
                pipeline.push(*id, Arc::clone(&record), after);
            }
            record
        };
        match &**route {
            [only] => put(only),
            all => Followed::new(*bus, all.iter().map(put).collect::<Vec<_>>()),
        }
    }
}

/// How many places the events need of each pipeline (P4): none where nobody wants them (D7).
pub(crate) fn needs(subscriptions: &Subscriptions, events: &[Arriving]) -> Needs {
    let mut needs = Needs::default();
    for Arriving { envelope, .. } in events {
        for (pipeline, _) in subscriptions.route(envelope.event_type()).iter() {
            needs.add(*pipeline, 1);
        }
    }
    needs
}
