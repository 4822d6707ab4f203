//! Taking volatile events in: into every pipeline that wants them, or into none.

use std::sync::Arc;

use domain_events::{Handling, Receipt};
use tokio::time::Instant;

use crate::{
    admission::Needs,
    after::After,
    followed::Followed,
    pipeline::PipelineId,
    record::Record,
    state::State,
    subscriptions::{Lent, Subscriptions},
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
    pub(crate) fn enter(&mut self, events: Vec<Arriving>, way: Way, after: &mut After) -> Entry {
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
            None => Entry::In(self.accept_all(events, None, after)),
            Some(capacity) if way == Way::Wait => {
                let ticket = self.waiters.push(needs, Wanted::Events(events));
                Entry::Waits(ticket, capacity)
            }
            Some(capacity) => Entry::Full(capacity, events),
        }
    }

    /// Takes events in for which there is room; `now` where they have waited for it.
    pub(crate) fn accept_all(
        &mut self,
        events: Vec<Arriving>,
        now: Option<Instant>,
        after: &mut After,
    ) -> Vec<Receipt> {
        let accept = |Arriving { record, .. }: Arriving| {
            let id = record.envelope.id();
            Receipt::new(id, None, false, self.accept(record, now, after))
        };
        events.into_iter().map(accept).collect()
    }

    /// Puts a volatile event into the pipelines that want it. An event that nobody wants is done by
    /// that (D7).
    fn accept(
        &mut self,
        record: Arc<Record>,
        now: Option<Instant>,
        after: &mut After,
    ) -> Arc<dyn Handling> {
        let Self {
            bus,
            subscriptions,
            pipelines,
            figures,
            ..
        } = self;
        figures.accepted += 1;
        let route = subscriptions.lend_route(record.envelope.event_type());
        let count = route.len();
        let Some((first, others)) = route.split_first_mut() else {
            figures.finished += 1;
            after.dropped.push(Box::new(record));
            return Followed::new(*bus, []);
        };
        figures.in_flight += 1;
        let now = now.unwrap_or(record.accepted_at);
        let shared = (count > 1).then(|| Arc::new(AtomicUsize::new(count)));
        let mut put = |mut record: Arc<Record>, (id, lent): &mut (PipelineId, Lent)| {
            let targets = lent.lend();
            targets.iter().for_each(|target| target.steps.matching.up());
            if let Some(record) = Arc::get_mut(&mut record) {
                record.accepted_at = now;
                record.marks.has_room = true;
                record.aim(targets);
                record.share(shared.clone());
            }
            if let Some(pipeline) = pipelines.get_mut(*id) {
                pipeline.room.take(1);
                pipeline.push(*id, Arc::clone(&record), after);
            }
            record
        };
        let first = put(record, first);
        if others.is_empty() {
            return first;
        }
        let others = others.iter_mut().map(|part| {
            let record = Record::arriving(*bus, Arc::clone(&first.envelope), now);
            put(Arc::new(record), part)
        });
        Followed::new(*bus, [Arc::clone(&first)].into_iter().chain(others))
    }
}

/// How many places the events need of each pipeline (P4): none where nobody wants them (D7).
pub(crate) fn needs(subscriptions: &Subscriptions, events: &[Arriving]) -> Needs {
    let mut needs = Needs::default();
    let mut last = None;
    for Arriving { record, .. } in events {
        let event_type = record.envelope.event_type();
        let route = match last {
            Some((same, route)) if std::ptr::eq(same, event_type) => route,
            _ => subscriptions.route(event_type),
        };
        last = Some((event_type, route));
        for (pipeline, _) in route {
            needs.add(*pipeline, 1);
        }
    }
    needs
}
