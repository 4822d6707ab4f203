//! How subscriptions go: given nothing more, and where they have a place in the log, that is kept.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use domain_events::{AggregateRef, DeliveryChange, FailurePolicy, Position, Subscription};

use crate::{
    after::After,
    engine::{Engine, discard},
    pipeline::PipelineId,
    record::Record,
    state::State,
    subscribed::Subscribed,
    subscriptions::Member,
};

/// A subscription on its way off: its progress is still to be committed.
pub(crate) struct Leaving {
    member: Member,
    /// The last position of which it was given what it wants.
    given: Position,
    /// What it had not finished when it went, in the order of the log; some of it may be finished yet.
    open: Vec<Arc<Record>>,
    /// Whether its last progress was taken to be committed.
    is_over: AtomicBool,
}

/// Takes a subscription out: it is given nothing more, and its waiting retries end at once.
pub(crate) fn leave(engine: &Engine, name: &str) -> Option<Arc<Leaving>> {
    engine.step(|state, after| state.take_out(name, after))
}

/// Takes a subscription out, and waits for nothing: what is left to be done is done by a task. Another
/// one of its name stays.
pub(crate) fn leave_later(engine: &Arc<Engine>, subscription: Subscription) {
    let name = Arc::clone(subscription.name());
    let leaves = unsubscribe(engine, name, move |it| it.is_same(&subscription));
    if let (Some(leaves), Some(runtime)) = (leaves, engine.lifecycle.runtime()) {
        runtime.spawn(leaves);
    }
}

/// What was found of a subscription that is to go.
enum Found {
    Leaving(Arc<Leaving>),
    /// Somebody registers or resets it: it goes after that.
    Claimed,
}

/// Takes a subscription out, if it is meant: at once, or where its name is claimed, as soon as it is no
/// more. What is returned waits until it has [left](left), and says whether there was one; `None` where
/// there is none.
pub(crate) fn unsubscribe<F: Fn(&Subscription) -> bool>(
    engine: &Arc<Engine>,
    name: Arc<str>,
    is_meant: F,
) -> Option<impl Future<Output = bool> + use<F>> {
    let mut found = find(engine, &name, &is_meant)?;
    let engine = Arc::clone(engine);
    Some(async move {
        loop {
            if let Found::Leaving(leaving) = found {
                left(&engine, leaving).await;
                return true;
            }
            engine.until_quiet(|state| !state.is_claimed(&name)).await;
            match find(&engine, &name, &is_meant) {
                Some(next) => found = next,
                None => return false,
            }
        }
    })
}

fn find(engine: &Engine, name: &str, is_meant: &impl Fn(&Subscription) -> bool) -> Option<Found> {
    engine.step(|state, after| {
        if state.is_claimed(name) {
            return Some(Found::Claimed);
        }
        let named = state.subscriptions.named(name)?;
        let is_meant = is_meant(&named.subscription);
        let leaving = is_meant.then(|| state.take_out(name, after))?;
        leaving.map(Found::Leaving)
    })
}

/// Waits for a leaving subscription's running attempts, and then until its progress is committed:
/// only then does its name begin where it has ended.
pub(crate) async fn left(engine: &Engine, leaving: Arc<Leaving>) {
    let subscribed = leaving.subscribed();
    subscribed.at_rest().await;
    if engine.stores.is_some() {
        let save = engine.step(|state, after| state.save_last(&leaving, after));
        let committed = |state: &State| state.is_closed || state.unsaved.saves() >= save;
        engine.until_quiet(committed).await;
    }
    if subscribed.pipeline != PipelineId::SHARED {
        let id = subscribed.pipeline;
        let is_empty = |state: &State| {
            let pipeline = state.pipelines.get(id);
            state.is_closed || pipeline.is_none_or(|it| it.mailboxes.is_idle())
        };
        engine.until_quiet(is_empty).await;
        engine.step(|state, after| state.close_pipeline(id, after));
    }
    engine.step(|state, after| {
        state.leaving.retain(|other| !Arc::ptr_eq(other, &leaving));
        after.quiet = true;
    });
    discard(leaving);
}

impl Leaving {
    pub(crate) fn subscribed(&self) -> &Arc<Subscribed> {
        &self.member.subscribed
    }

    /// How far it has come, as long as that is still to be committed: whatever else is committed of it
    /// meanwhile covers what this would leave out or say twice (R1).
    pub(crate) fn progress(&self) -> Option<DeliveryChange> {
        if self.is_over.load(Ordering::Acquire) {
            return None;
        }
        let progress = self.member.joined.progress(self.given, self.unfinished());
        Some(DeliveryChange::Progressed(self.subscribed().id?, progress))
    }

    /// What is neither finished nor covered by a row: where the order is per aggregate, what is left to
    /// the log leaves what is behind it in its aggregate, too.
    fn unfinished(&self) -> Vec<Position> {
        let mut unfinished = Vec::new();
        let mut blocked: Vec<&AggregateRef> = Vec::new();
        let subscription = &self.subscribed().subscription;
        let blocks = subscription.order() == domain_events::Ordering::PerAggregate;
        let policy = subscription.after_dead_letter();
        let parks = policy == FailurePolicy::ParkAggregate;
        for record in &self.open {
            let aggregate = record.envelope.aggregate();
            let target = record.target(self.subscribed());
            let is =
                |stands: fn(&Record, usize) -> bool| target.is_some_and(|it| stands(record, it));
            if blocks && is(Record::is_left) || parks && is(Record::is_dead) {
                blocked.push(aggregate);
            }
            // What workers have met since it went, and not delivered, is not finished either.
            if (is(Record::is_open) || is(Record::is_stopped)) && !blocked.contains(&aggregate) {
                unfinished.extend(record.envelope.position());
            }
        }
        unfinished
    }
}

impl State {
    fn take_out(&mut self, name: &str, after: &mut After) -> Option<Arc<Leaving>> {
        let member = self.subscriptions.remove(name)?;
        let subscribed = &member.subscribed;
        let (mut given, mut open) = (Position::ZERO, Vec::new());
        let mut places = Vec::new();
        if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
            if pipeline.batch.is_some() {
                // Its one subscription goes.
                pipeline.end_lingering(after);
            }
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.change(subscribed, || subscribed.remove());
            places = mailboxes.places(subscribed);
            if let Some(cursor) = &pipeline.cursor {
                given = cursor.through;
                let covered = mailboxes.covered_of(subscribed);
                open = cursor.open_of(subscribed, &covered);
            }
        }
        for mailbox in places {
            self.drop_if_removed(mailbox, subscribed, after);
        }
        let leaving = Arc::new(Leaving {
            member,
            given,
            open,
            is_over: AtomicBool::new(false),
        });
        self.leaving.push(Arc::clone(&leaving));
        self.subscriptions_changed(after);
        Some(leaving)
    }

    /// Has a leaving subscription's last progress committed. Returns the number of the save.
    fn save_last(&mut self, leaving: &Leaving, after: &mut After) -> u64 {
        let subscribed = leaving.subscribed();
        if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline)
            && let Some(cursor) = &mut pipeline.cursor
        {
            let rows = pipeline.mailboxes.rows(subscribed).into_iter();
            self.unsaved.change(rows.chain(leaving.progress()), None);
            after.told.extend(cursor.stop_left(subscribed));
        }
        leaving.is_over.store(true, Ordering::Release);
        after.saver = true;
        self.unsaved.next_save()
    }

    /// Removes a pipeline with nothing in it; its tasks end.
    fn close_pipeline(&mut self, id: PipelineId, after: &mut After) {
        if let Some(mut pipeline) = self.pipelines.remove(id) {
            let workers: Vec<_> = pipeline.idle.wake_all().collect();
            workers
                .into_iter()
                .for_each(|waker| after.wake(Some(waker)));
            after.behind.push(pipeline.behind);
            if let Some(mut cursor) = pipeline.cursor {
                // What it has not read nobody is given any more.
                let (bus, subscriptions) = (self.bus, &self.subscriptions);
                cursor.find_awaited(Position::new(u64::MAX), bus, id, subscriptions, after);
            }
        }
        self.subscriptions_changed(after);
    }
}
