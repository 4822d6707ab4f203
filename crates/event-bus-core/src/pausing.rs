//! Pausing and resuming a subscription: what it would be given waits, in order.

use std::sync::Arc;

use crate::{after::After, engine::Engine, inside, say::say, state::State, subscribed::Subscribed};

/// Pauses a subscription; returns after its running attempts. Whether there is one of the name.
pub(crate) async fn pause(engine: &Engine, name: &str) -> bool {
    let paused = engine.step(|state, after| {
        let subscribed = state.subscriptions.named(name).cloned()?;
        state.pause(&subscribed, after);
        Some(subscribed)
    });
    match paused {
        Some(subscribed) if !inside::is_inside(engine.id) => subscribed.at_rest().await,
        Some(_) => {}
        None => return false,
    }
    say!(info, "subscription paused", "subscription" = name);
    true
}

/// Lets a subscription go on. Whether there is one of the name.
pub(crate) fn resume(engine: &Engine, name: &str) -> bool {
    let resumed = engine.step(|state, after| {
        let subscribed = state.subscriptions.named(name).cloned()?;
        state.resume(&subscribed, after);
        Some(())
    });
    if resumed.is_some() {
        say!(info, "subscription resumed", "subscription" = name);
    }
    resumed.is_some()
}

impl State {
    /// Pauses a subscription: no attempt of it begins from now on.
    pub(crate) fn pause(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) {
        self.set_paused(subscribed, true, after);
    }

    fn resume(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) {
        self.set_paused(subscribed, false, after);
        self.let_held_go(subscribed, after);
    }

    fn set_paused(&mut self, subscribed: &Arc<Subscribed>, paused: bool, after: &mut After) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mailboxes = &mut pipeline.mailboxes;
        mailboxes.change(subscribed, || subscribed.set_paused(paused));
        for mailbox in mailboxes.places(subscribed) {
            if let Some(blocked) = mailboxes.blocked(mailbox, subscribed) {
                after.told.extend(blocked.note_rest());
            }
        }
        if let Some(cursor) = &pipeline.cursor {
            let why = paused.then_some(crate::record::Rest::Paused);
            after.told.extend(cursor.note_rest(subscribed, why));
        }
        after.quiet = true;
    }
}
