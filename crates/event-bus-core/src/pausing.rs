//! Pausing and resuming a subscription: what it would be given waits, in order.

use std::sync::Arc;

use domain_events::{DeliveryChange, PauseReason};

use crate::{
    after::After, claims::until_settled, engine::Engine, inside, progress, record::Rest, say::say,
    state::State, subscribed::Subscribed,
};

/// Pauses a subscription; returns after its running attempts, and durable once that is committed.
/// Whether there is one of the name.
pub(crate) async fn pause(engine: &Engine, name: &str) -> bool {
    until_settled(engine, name).await;
    let paused = engine.step(|state, after| {
        let subscribed = state.subscriptions.named(name).cloned()?;
        state.pause(&subscribed, PauseReason::Asked, after);
        Some((subscribed, state.unsaved.next_save()))
    });
    let Some((subscribed, save)) = paused else {
        return false;
    };
    say!(info, "subscription paused", "subscription" = name);
    if !inside::is_inside(engine.id) {
        subscribed.at_rest().await;
    }
    if subscribed.id.is_some() {
        progress::committed(engine, save).await;
    }
    true
}

/// Lets a subscription go on; durable, returns once that is committed. Whether there is one of the
/// name.
pub(crate) async fn resume(engine: &Engine, name: &str) -> bool {
    until_settled(engine, name).await;
    let resumed = engine.step(|state, after| {
        let subscribed = state.subscriptions.named(name).cloned()?;
        state.resume(&subscribed, after);
        Some((subscribed, state.unsaved.next_save()))
    });
    let Some((subscribed, save)) = resumed else {
        return false;
    };
    say!(info, "subscription resumed", "subscription" = name);
    if subscribed.id.is_some() {
        progress::committed(engine, save).await;
    }
    true
}

impl State {
    /// Pauses a subscription: no attempt of it begins from now on.
    pub(crate) fn pause(
        &mut self,
        subscribed: &Arc<Subscribed>,
        why: PauseReason,
        after: &mut After,
    ) {
        self.set_paused(subscribed, Some(why), after);
    }

    fn resume(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) {
        self.set_paused(subscribed, None, after);
        self.let_held_go(subscribed, after);
    }

    fn set_paused(
        &mut self,
        subscribed: &Arc<Subscribed>,
        why: Option<PauseReason>,
        after: &mut After,
    ) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        mailboxes.change(subscribed, || subscribed.set_paused(why));
        for mailbox in mailboxes.places(subscribed) {
            if let Some(blocked) = mailboxes.blocked(mailbox, subscribed) {
                after.told.extend(blocked.note_rest());
            }
        }
        if let Some(cursor) = &pipeline.cursor {
            let rest = why.map(|_| Rest::Paused);
            after.told.extend(cursor.note_rest(subscribed, None, rest));
        }
        // A newer schema is found anew by each run, and by one that knows it never.
        if let Some(id) = subscribed
            .id
            .filter(|_| why != Some(PauseReason::NewerSchema))
        {
            self.unsaved.change([DeliveryChange::Paused(id, why)], None);
            after.saver = true;
        }
        after.quiet = true;
    }
}
