//! What the parts of a running bus share under one lock: who is subscribed, what waits, how far the
//! log was read. No user code runs under the lock, and nobody awaits with it.

use std::sync::Arc;

use domain_events::{Ordering, Position, Subscription, Timestamp};

use crate::{
    BusConfig,
    after::After,
    ashore::Leaving,
    dead_letters::DeadLetters,
    entry::needs,
    figures::Figures,
    inside::BusId,
    pipeline::{Pipeline, PipelineId, Pipelines},
    record::Record,
    subscribed::Subscribed,
    subscriptions::{Member, Subscriptions},
    unsaved::Unsaved,
    waiters::{Entered, Waiters},
    watch::Looks,
};

/// The state of a bus.
pub(crate) struct State {
    pub(crate) bus: BusId,
    pub(crate) made_at: Timestamp,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) pipelines: Pipelines,
    pub(crate) waiters: Waiters,
    pub(crate) figures: Figures,
    /// What is to be committed next; stays empty on a volatile bus.
    pub(crate) unsaved: Unsaved,
    /// The dead letters of a volatile bus.
    pub(crate) letters: DeadLetters,
    /// Subscriptions that were removed, whose last attempt may run or last progress is still to be
    /// committed.
    pub(crate) leaving: Vec<Arc<Leaving>>,
    /// Names that somebody registers, resets or forgets at this moment.
    pub(crate) claims: Vec<Arc<str>>,
    /// Whether the last run has ended uncleanly.
    pub(crate) after_unclean_end: bool,
    /// Up to here an unclean end may have left effects of unfinished deliveries.
    pub(crate) repeats_through: Position,
    /// Looks at the log for what others have appended, asked for and made.
    pub(crate) looks: Looks,
    /// How many batches are on their way to the log; a stop waits for them.
    pub(crate) appending: usize,
    /// Whether the bus is stopping: nothing is taken in from outside.
    pub(crate) is_stopping: bool,
    /// Whether the bus has stopped: nothing is taken in, and nothing is left to be done.
    pub(crate) is_closed: bool,
}

impl State {
    pub(crate) fn new(bus: BusId, config: &BusConfig) -> Self {
        let mut pipelines = Pipelines::default();
        pipelines.add(Pipeline::new(
            "default".into(),
            Ordering::PerAggregate,
            config.capacity,
            config.workers,
        ));
        Self {
            bus,
            made_at: Timestamp::now(),
            subscriptions: Subscriptions::default(),
            pipelines,
            waiters: Waiters::default(),
            figures: Figures::default(),
            unsaved: Unsaved::default(),
            letters: DeadLetters::new(config.dead_letters),
            leaving: Vec::new(),
            claims: Vec::new(),
            after_unclean_end: false,
            repeats_through: Position::ZERO,
            looks: Looks::default(),
            appending: 0,
            is_stopping: false,
            is_closed: false,
        }
    }

    /// The pipeline that a subscription is to be in, made where it asks for one of its own (D4).
    pub(crate) fn pipeline_for(
        &mut self,
        subscription: &Subscription,
        config: &BusConfig,
    ) -> PipelineId {
        let Some(isolation) = subscription.isolation() else {
            return PipelineId::SHARED;
        };
        let pipeline = Pipeline::new(
            Arc::clone(subscription.name()),
            subscription.order(),
            isolation.capacity.unwrap_or(config.capacity),
            isolation.workers.unwrap_or(config.workers),
        );
        let batch = subscription.batch();
        self.pipelines.add(Pipeline { batch, ..pipeline })
    }

    /// Takes in nothing more from outside.
    pub(crate) fn stop_entering(&mut self, after: &mut After) {
        self.is_stopping = true;
        self.turn_away(after);
        self.end_lingering(after);
    }

    /// Looks at what follows from a subscription having come or gone.
    pub(crate) fn subscriptions_changed(&mut self, after: &mut After) {
        self.give_back_held();
        let Self {
            waiters,
            subscriptions,
            pipelines,
            ..
        } = self;
        let out = waiters.renew(
            |events| needs(subscriptions, events),
            |needs| pipelines.too_small_for(needs),
        );
        for (waiter, capacity) in out {
            self.turn_away_one(waiter, Entered::TooLarge(capacity), after);
        }
        self.admit(after);
    }

    /// Every subscription there is, those counted that are on their way off.
    pub(crate) fn subscribed(&self) -> Vec<Arc<Subscribed>> {
        let members = self.subscriptions.members().iter();
        members
            .map(|member| &member.subscribed)
            .chain(self.leaving.iter().map(|leaving| leaving.subscribed()))
            .cloned()
            .collect()
    }

    /// How many handlers run.
    pub(crate) fn attempting(&self) -> usize {
        let seats = self.pipelines.iter().flat_map(|(_, it)| it.seats.iter());
        seats.filter(|seat| seat.is_attempting()).count()
    }

    /// Whether a subscription of this name is on its way off.
    pub(crate) fn is_leaving(&self, name: &str) -> bool {
        let mut names = self
            .leaving
            .iter()
            .map(|leaving| leaving.subscribed().name());
        names.any(|other| &**other == name)
    }

    /// Whether nothing is queued, running, waiting or behind, and all is saved (L3).
    pub(crate) fn is_idle(&self) -> bool {
        let mut pipelines = self.pipelines.iter();
        pipelines
            .all(|(id, it)| it.mailboxes.is_idle() && (it.is_caught_up() || self.is_paused(id)))
            && self.unsaved.is_saved()
            && self.looks.are_made()
    }

    /// Whether nobody in a pipeline is given anything: it may have no room to take up what is behind.
    fn is_paused(&self, id: PipelineId) -> bool {
        let mut members = self.subscriptions.of(id).peekable();
        members.peek().is_some() && members.all(|it| it.subscribed.is_paused())
    }

    /// Whether nothing runs or could run at once; on a volatile bus, nothing could run later.
    pub(crate) fn is_drained(&self) -> bool {
        let drained = |(_, pipeline): (PipelineId, &Pipeline)| {
            let mailboxes = &pipeline.mailboxes;
            if pipeline.cursor.is_some() {
                mailboxes.is_drained()
            } else {
                mailboxes.is_idle()
            }
        };
        self.appending == 0 && self.pipelines.iter().all(drained)
    }

    /// The members of a pipeline with the pipeline itself.
    pub(crate) fn pipeline_members(&self) -> impl Iterator<Item = (&Pipeline, Vec<&Member>)> {
        self.pipelines.iter().map(|(id, pipeline)| {
            let members = self.subscriptions.of(id).collect();
            (pipeline, members)
        })
    }

    /// Gives up every event whose receipt may be waiting: the bus has stopped. The caller
    /// [stops](Record::stop) them without the lock.
    pub(crate) fn abandon(&mut self, after: &mut After) -> Vec<Arc<Record>> {
        self.is_closed = true;
        self.turn_away(after);
        self.end_lingering(after);
        let mut records = Vec::new();
        for (id, pipeline) in self.pipelines.iter_mut() {
            records.extend(pipeline.mailboxes.drain());
            let workers: Vec<_> = pipeline.idle.wake_all().collect();
            workers
                .into_iter()
                .for_each(|waker| after.wake(Some(waker)));
            if let Some(cursor) = &mut pipeline.cursor {
                records.extend(cursor.drain());
                let (bus, subscriptions) = (self.bus, &self.subscriptions);
                records.extend(cursor.find_awaited(
                    Position::new(u64::MAX),
                    bus,
                    id,
                    subscriptions,
                    after,
                ));
            }
        }
        records
    }
}
