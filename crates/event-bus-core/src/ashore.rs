//! How subscriptions go: given nothing more, and where they have a place in the log, that is kept.

use std::sync::Arc;

use domain_events::{DeliveryChange, Position, Subscription};

use crate::{
    after::After,
    engine::{Engine, discard},
    pipeline::PipelineId,
    record::Record,
    state::State,
    subscriptions::Member,
};

/// A subscription on its way off: its progress is still to be committed.
pub(crate) struct Leaving {
    member: Member,
    /// The last position of which it was given what it wants.
    given: Position,
    /// What it had not finished when it went; some of it may be finished yet.
    open: Vec<Arc<Record>>,
}

/// Takes a subscription out: it is given nothing more, and its waiting retries end at once.
pub(crate) fn leave(engine: &Engine, name: &str) -> Option<Leaving> {
    engine.step(|state, after| state.take_out(name, after))
}

/// Takes a subscription out, and waits for nothing: what is left to be done is done by a task. Another
/// one of its name stays.
pub(crate) fn leave_later(engine: &Arc<Engine>, subscription: &Subscription) {
    let leaving = engine.step(|state, after| {
        let named = state.subscriptions.named(subscription.name())?;
        let same = named.subscription.is_same(subscription);
        same.then(|| state.take_out(subscription.name(), after))?
    });
    if let (Some(leaving), Some(runtime)) = (leaving, engine.lifecycle.runtime()) {
        let engine = Arc::clone(engine);
        runtime.spawn(async move { left(&engine, leaving).await });
    }
}

/// Waits for a leaving subscription's running attempts, and then until its progress is committed:
/// only then does its name begin where it has ended.
pub(crate) async fn left(engine: &Engine, leaving: Leaving) {
    let Leaving {
        member,
        given,
        open,
    } = leaving;
    let subscribed = Arc::clone(&member.subscribed);
    subscribed.at_rest().await;
    if engine.stores.is_some() {
        let save = engine.step(|state, after| state.save_last(&member, given, &open, after));
        let committed = |state: &State| state.is_closed || state.unsaved.saves() >= save;
        engine.until_quiet(committed).await;
    }
    discard(open);
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
        state
            .leaving
            .retain(|leaving| !Arc::ptr_eq(leaving, &subscribed));
        after.quiet = true;
    });
    discard((member, subscribed));
}

impl State {
    fn take_out(&mut self, name: &str, after: &mut After) -> Option<Leaving> {
        let member = self.subscriptions.remove(name)?;
        let subscribed = &member.subscribed;
        self.leaving.push(Arc::clone(subscribed));
        let (mut given, mut open) = (Position::ZERO, Vec::new());
        if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
            if pipeline.batch.is_some() {
                // Its one subscription goes.
                pipeline.end_lingering(after);
            }
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.change(subscribed, || subscribed.remove());
            let places = mailboxes.places(subscribed);
            if let Some(cursor) = &pipeline.cursor {
                given = cursor.through;
                let covered = mailboxes.covered_of(subscribed);
                open = cursor.open_of(subscribed, &covered);
            }
            for mailbox in places {
                self.drop_if_removed(mailbox, subscribed, after);
            }
        }
        self.subscriptions_changed(after);
        Some(Leaving {
            member,
            given,
            open,
        })
    }

    /// Has a leaving subscription's last progress committed. Returns the number of the save.
    fn save_last(
        &mut self,
        member: &Member,
        given: Position,
        open: &[Arc<Record>],
        after: &mut After,
    ) -> u64 {
        let subscribed = &member.subscribed;
        if let (Some(id), Some(pipeline)) =
            (subscribed.id, self.pipelines.get_mut(subscribed.pipeline))
            && let Some(cursor) = &mut pipeline.cursor
        {
            // What workers have met since it went, and not delivered, is not finished either.
            let unfinished = open.iter().filter(|record| {
                let target = record.target(subscribed);
                target.is_some_and(|it| record.is_open(it) || record.is_stopped(it))
            });
            let unfinished = unfinished.filter_map(|record| record.envelope.position());
            let progress = member.joined.progress(given, unfinished);
            let rows = pipeline.mailboxes.rows(subscribed).into_iter();
            let progressed = DeliveryChange::Progressed(id, progress);
            self.unsaved.change(rows.chain([progressed]), None);
            after.told.extend(cursor.stop_left(subscribed));
        }
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
                cursor.find_all_awaited(bus, id, subscriptions, after);
            }
        }
        self.subscriptions_changed(after);
    }
}
