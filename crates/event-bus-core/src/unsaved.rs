//! What is to be committed next: how far everyone has come, with whatever deviates from success.

use std::sync::Arc;

use domain_events::{DeliveryChange, DeliveryChanges, Progress, SubscriptionId};

use crate::{ashore::Leaving, state::State, subscribed::Subscribed, timers::Due};

/// Changes of the delivery state since the last save was taken.
#[derive(Default)]
pub(crate) struct Unsaved {
    changes: DeliveryChanges,
    /// Retries that may start once the changes are committed (F4).
    retries: Vec<Due>,
    progressed: bool,
    /// Whether a backlog in the log has come further.
    moved: bool,
    in_commit: bool,
    /// How many times what is unsaved was taken to be committed, and was committed.
    taken: u64,
    saves: u64,
}

impl Unsaved {
    /// Notes that somebody has come further. Returns whether that is the first time since the last
    /// save was taken.
    pub(crate) fn progress(&mut self) -> bool {
        !std::mem::replace(&mut self.progressed, true)
    }

    /// Notes that a backlog in the log has come further. Returns as [`progress`](Self::progress).
    pub(crate) fn moved(&mut self) -> bool {
        self.moved = true;
        self.progress()
    }

    /// Adds changes to be committed, and a retry that waits for that.
    pub(crate) fn change(
        &mut self,
        changes: impl IntoIterator<Item = DeliveryChange>,
        retry: Option<Due>,
    ) {
        self.changes.extend(changes);
        self.retries.extend(retry);
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    pub(crate) fn is_saved(&self) -> bool {
        !self.has_changes() && !self.progressed && !self.in_commit
    }

    pub(crate) fn saved(&mut self) {
        self.in_commit = false;
        self.saves = self.taken;
    }

    /// How many saves were committed.
    pub(crate) fn saves(&self) -> u64 {
        self.saves
    }

    /// The number of the save that commits a change made now.
    pub(crate) fn next_save(&self) -> u64 {
        self.taken + 1
    }

    /// The number of the save with which everything until now is committed.
    pub(crate) fn last_save(&self) -> u64 {
        self.taken + u64::from(self.has_changes() || self.progressed)
    }
}

impl State {
    /// How far a subscription has come that has deliveries made in a transaction of the store, where nobody
    /// else saves meanwhile; an error is the save that has to be committed before. `None` where it has
    /// gone.
    pub(crate) fn progress_in_transaction(
        &self,
        subscribed: &Arc<Subscribed>,
    ) -> Option<Result<Progress, u64>> {
        let unsaved = &self.unsaved;
        let is_own = |change: &DeliveryChange| subscription_of(change) == subscribed.id;
        // What a row stands for is not in the progress any more.
        if unsaved.changes.iter().any(is_own) {
            return Some(Err(unsaved.next_save()));
        }
        // A save that has failed is made again.
        if unsaved.in_commit {
            return Some(Err(unsaved.taken));
        }
        self.progress_of(subscribed).map(Ok)
    }

    /// How far a subscription has come that has a pipeline of its own.
    fn progress_of(&self, subscribed: &Arc<Subscribed>) -> Option<Progress> {
        let is_it = |it: &&Arc<Leaving>| Arc::ptr_eq(it.subscribed(), subscribed);
        let change = match self.leaving.iter().find(is_it) {
            Some(leaving) => leaving.progress(),
            None => {
                let pipeline = self.pipelines.get(subscribed.pipeline)?;
                let members: Vec<_> = self.subscriptions.of(subscribed.pipeline).collect();
                let cursor = pipeline.cursor.as_ref()?;
                cursor.progress(&members, &pipeline.mailboxes).pop()
            }
        };
        match change? {
            DeliveryChange::Progressed(_, progress) => Some(progress),
            _ => None,
        }
    }

    /// Takes out what was known of deliveries before their transaction was cut off, as only a stop does:
    /// they may be over by it.
    pub(crate) fn leave_in_doubt(&self, changes: &mut DeliveryChanges) {
        if !self.is_stopping {
            return;
        }
        let all = self.subscribed();
        let is_sure = |change: &DeliveryChange| {
            let of = subscription_of(change);
            !all.iter().any(|it| it.id == of && it.is_in_doubt(change))
        };
        changes.retain(is_sure);
    }

    /// Takes what is to be committed: the changes, and how far everyone has come with them.
    ///
    /// Both are taken in one step, so that no progress passes a position that only a later commit
    /// covers (R1).
    pub(crate) fn take_unsaved(&mut self) -> (DeliveryChanges, Vec<Due>) {
        let unsaved = &mut self.unsaved;
        let mut changes = std::mem::take(&mut unsaved.changes);
        let retries = std::mem::take(&mut unsaved.retries);
        unsaved.progressed = false;
        unsaved.in_commit = true;
        unsaved.taken += 1;
        if std::mem::take(&mut unsaved.moved) {
            let pipelines = self.pipelines.iter_mut();
            changes.extend(pipelines.flat_map(|(_, it)| it.mailboxes.moved_rows()));
        }
        changes.extend(self.leaving.iter().filter_map(|it| it.progress()));
        for (pipeline, members) in self.pipeline_members() {
            if let Some(cursor) = &pipeline.cursor {
                changes.extend(cursor.progress(&members, &pipeline.mailboxes));
            }
        }
        (changes, retries)
    }
}

/// Whose delivery state a change is of, if it is of a single subscription that is known by its number.
fn subscription_of(change: &DeliveryChange) -> Option<SubscriptionId> {
    match change {
        DeliveryChange::Progressed(id, _)
        | DeliveryChange::Waiting(id, _)
        | DeliveryChange::Finished(id, _)
        | DeliveryChange::Dead(id, _)
        | DeliveryChange::Blocked(id, _)
        | DeliveryChange::Unblocked(id, _)
        | DeliveryChange::Paused(id, _)
        | DeliveryChange::Started(id, _)
        | DeliveryChange::Ended(id, _)
        | DeliveryChange::Replayed(id, _) => Some(*id),
        _ => None,
    }
}
