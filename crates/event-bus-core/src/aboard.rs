//! How subscriptions come aboard: at the start with what an earlier run has left, or later.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use domain_events::{
    AggregateRef, HandlerError, Position, Registration, RunState, StartError, StoreError,
    SubscribeError, Subscription, SubscriptionId, SubscriptionState, WaitingDelivery,
};
use tokio::sync::oneshot;

use crate::{
    after::After,
    blocked::{Behind, Blocked, Stand},
    claims::Claim,
    cursor::Cursor,
    engine::{Engine, Stores, discard},
    inside, lifecycle,
    pipeline::PipelineId,
    starts::Started,
    state::State,
    subscribed::Subscribed,
    subscriptions::Joined,
    timers::Due,
    watch,
};

/// Takes the subscriptions aboard at the start, with what an earlier run has left of them.
pub(crate) async fn begin(
    engine: &Engine,
    subscriptions: Vec<Subscription>,
) -> Result<(), StartError> {
    let Some(stores) = &engine.stores else {
        engine.step(|state, after| {
            for subscription in subscriptions {
                state.add_volatile(engine, subscription, after);
            }
        });
        return Ok(());
    };
    let registrations = subscriptions.iter().map(|it| registration(engine, it));
    let registrations = registrations.collect();
    let begun = stores.deliveries.begin_run(registrations).await;
    let run = begun.map_err(StartError::Store)?;
    engine.step(|state, after| state.recover(engine, subscriptions, run, after));
    Ok(())
}

/// Takes a subscription aboard while the bus runs (D8, L4).
pub(crate) async fn join(
    engine: &Arc<Engine>,
    subscription: Subscription,
) -> Result<(), SubscribeError> {
    // Taken within a step, and left where it refuses: its handler is the user's.
    let mut subscription = Some(subscription);
    let Some(stores) = &engine.stores else {
        let joined = engine.step(|state, after| {
            state.may_join(subscription.as_ref())?;
            Ok(subscription
                .take()
                .map(|it| state.add_volatile(engine, it, after)))
        });
        return joined.map(|pipeline| serve(engine, pipeline));
    };
    let Some(subscription) = subscription else {
        return Err(SubscribeError::Stopped);
    };
    // What the store knows by a former name becomes this one's.
    let mut names = subscription.former_names().to_vec();
    names.push(Arc::clone(subscription.name()));
    match Claim::of(engine, names).await {
        Some(claim) => register(engine, stores, subscription, Some(claim)).await,
        None => Err(SubscribeError::DuplicateName(Arc::clone(
            subscription.name(),
        ))),
    }
}

/// Takes a subscription aboard with what the store knows of its name, which is claimed until it is: with
/// `claim`, or by the caller, who must not be dropped meanwhile.
pub(crate) async fn register(
    engine: &Arc<Engine>,
    stores: &Stores,
    subscription: Subscription,
    claim: Option<Claim>,
) -> Result<(), SubscribeError> {
    let wanted = registration(engine, &subscription);
    let mut subscription = Some(subscription);
    engine.step(|state, _| state.may_join(subscription.as_ref()))?;
    let (tell, told) = oneshot::channel();
    let joining = Arc::clone(engine);
    let done = move |known: Result<SubscriptionState, StoreError>| {
        let joined = known.map_err(SubscribeError::Store).and_then(|known| {
            joining.step(|state, after| {
                // The bus may have been stopped meanwhile.
                state.may_join(subscription.as_ref())?;
                let subscription = subscription.take();
                Ok(subscription.map(|it| state.join_log(&joining, it, known, after)))
            })
        });
        discard(subscription);
        drop(claim);
        drop(tell.send(joined.map(|pipeline| serve(&joining, pipeline))));
    };
    stores
        .deliveries
        .submit_registration(wanted, Box::new(done));
    let joined = told.await.unwrap_or(Err(SubscribeError::Stopped));
    // A projection may have appended as it began.
    watch::ask(engine);
    joined
}

fn serve(engine: &Arc<Engine>, pipeline: Option<PipelineId>) {
    if let Some(own) = pipeline.filter(|id| *id != PipelineId::SHARED) {
        lifecycle::serve(engine, own, None);
    }
}

fn registration(engine: &Engine, subscription: &Subscription) -> Registration {
    let bus = engine.id;
    let begins = move |begin: &mut dyn FnMut() -> Result<(), HandlerError>| {
        inside::transaction(bus, || inside::enter(bus, begin))
    };
    let projection = subscription.projection_start().cloned();
    Registration {
        name: Arc::clone(subscription.name()),
        former_names: subscription.former_names().to_vec(),
        start_from: subscription.start(),
        projection: projection.map(|it| it.around(begins)),
    }
}

impl State {
    fn may_join(&mut self, subscription: Option<&Subscription>) -> Result<(), SubscribeError> {
        match subscription {
            Some(subscription) if !self.is_stopping && !self.is_closed => {
                self.subscriptions.check(subscription)
            }
            _ => Err(SubscribeError::Stopped),
        }
    }

    fn subscribed_to(
        &self,
        id: PipelineId,
        subscription: Subscription,
        number: Option<SubscriptionId>,
        started: Started,
    ) -> Arc<Subscribed> {
        let seats = self.pipelines.get(id).map(|pipeline| &pipeline.seats);
        let seats = seats.cloned().unwrap_or_default();
        Subscribed::new(subscription, number, id, &seats, started)
    }

    fn add_volatile(
        &mut self,
        engine: &Engine,
        subscription: Subscription,
        after: &mut After,
    ) -> PipelineId {
        let pipeline = self.pipeline_for(&subscription, &engine.config);
        let subscribed = self.subscribed_to(pipeline, subscription, None, Started::default());
        self.subscriptions.add(subscribed, Joined::default());
        self.subscriptions_changed(after);
        pipeline
    }

    /// Sets the bus up as the last run has left it: each pipeline reads from the first event that
    /// one of its subscriptions has not finished.
    fn recover(
        &mut self,
        engine: &Engine,
        subscriptions: Vec<Subscription>,
        run: RunState,
        after: &mut After,
    ) {
        let RunState {
            after_clean_end,
            repeats_through,
            head,
            subscriptions: states,
        } = run;
        self.after_unclean_end = !after_clean_end;
        self.repeats_through = repeats_through;
        let mut placed = Vec::new();
        for (subscription, known) in subscriptions.into_iter().zip(states) {
            let pipeline = self.pipeline_for(&subscription, &engine.config);
            placed.push((pipeline, subscription, known));
        }
        for (id, pipeline) in self.pipelines.iter_mut() {
            let of = placed.iter().filter(|(pipeline, ..)| *pipeline == id);
            let first = of
                .map(|(_, it, known)| first_unread(it.order(), known))
                .min();
            let through = first.unwrap_or(head).min(head);
            pipeline.cursor = Some(Cursor::new(through, head, self.repeats_through));
            if id == PipelineId::SHARED {
                engine.live.store(through == head, Ordering::Release);
            }
        }
        for (pipeline, subscription, known) in placed {
            self.add_known(pipeline, subscription, known, after);
        }
    }

    /// Adds a subscription to a running bus; called in the order of the log.
    fn join_log(
        &mut self,
        engine: &Engine,
        subscription: Subscription,
        known: SubscriptionState,
        after: &mut After,
    ) -> PipelineId {
        let id = self.pipeline_for(&subscription, &engine.config);
        let unread = first_unread(subscription.order(), &known);
        let shared = self.pipelines.get(PipelineId::SHARED);
        let head = shared
            .and_then(|it| it.cursor.as_ref())
            .map_or(unread, |cursor| cursor.head);
        let joins = self.pipelines.get_mut(id).map(|it| &mut it.cursor);
        match joins {
            Some(Some(cursor)) if unread < cursor.through => {
                // A newcomer that has not read what the others have sets the pipeline back.
                self.subscriptions.pass_over_through(id, cursor.through);
                cursor.through = unread;
                cursor.live = false;
            }
            Some(cursor @ None) => {
                let unread = unread.min(head);
                *cursor = Some(Cursor::new(unread, head, self.repeats_through));
            }
            _ => {}
        }
        self.add_known(id, subscription, known, after);
        let live = self.tell_who_is_behind(after);
        engine.live.store(live, Ordering::Release);
        id
    }

    /// Adds a subscription with what the store knows of it, and sets the retries to be made.
    fn add_known(
        &mut self,
        id: PipelineId,
        subscription: Subscription,
        known: SubscriptionState,
        after: &mut After,
    ) {
        let started = match self.pipelines.get(id) {
            Some(pipeline) if self.after_unclean_end => {
                let (through, capacity) = (known.progress.through, pipeline.room.capacity());
                Started::new(known.started, through, capacity)
            }
            _ => Started::default(),
        };
        let subscribed = self.subscribed_to(id, subscription, Some(known.id), started);
        subscribed.set_paused(known.paused);
        let through = known.progress.through;
        let mut joined = Joined::from(known.progress);
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return;
        };
        let mut waiting: HashMap<AggregateRef, Vec<WaitingDelivery>> = HashMap::new();
        for delivery in known.waiting {
            if !pipeline.leaves_to_log() {
                joined.waiting.insert(delivery.position, delivery);
                continue;
            }
            let of = waiting.entry(delivery.aggregate.clone());
            of.or_default().push(delivery);
        }
        for blocked in known.blocked {
            let mailbox = pipeline.mailboxes.mailbox(&blocked.aggregate);
            let behind = Behind::Log {
                from: blocked.from,
                version: blocked.version,
                through,
                passed_over: 0,
            };
            let mut entry = Blocked::new(&subscribed, behind, Stand::Waiting);
            entry.uncounted = through;
            entry.parked_again = blocked.parked_behind;
            let mut delay = Duration::ZERO;
            for delivery in waiting.remove(&blocked.aggregate).unwrap_or_default() {
                subscribed.steps.matching.up();
                subscribed.steps.left.up();
                delay = delay.max(entry.resume(&delivery));
            }
            if let Some(by) = entry.parked_again.filter(|_| entry.is_only_parked()) {
                (entry.stand, entry.parked_again) = (Stand::Parked(by), None);
            } else {
                after.due.push(Due::after(delay, mailbox, &subscribed));
            }
            pipeline.mailboxes.block(mailbox, entry);
        }
        self.subscriptions.add(subscribed, joined);
        self.subscriptions_changed(after);
    }
}

/// The position after which a subscription has something to read.
fn first_unread(order: domain_events::Ordering, known: &SubscriptionState) -> Position {
    // In another order than per aggregate, what waits has no block that it is read back for.
    let in_memory = order != domain_events::Ordering::PerAggregate;
    let waiting = known.waiting.iter().filter(|_| in_memory);
    let waiting = waiting.map(|delivery| delivery.position);
    let unfinished = known.progress.unfinished.iter().copied();
    let first = unfinished.chain(waiting).min();
    let first = first.map(|position| position.previous());
    let through = known.progress.through;
    first.unwrap_or(through).min(through)
}
