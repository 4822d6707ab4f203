//! The steps that block a subscription on an aggregate: its delivery failed, or it is paused.

use std::{sync::Arc, time::Duration};

use domain_events::{DeliveryChange, Timestamp, WaitingDelivery};
use tokio::time::Instant;

use crate::{
    after::After,
    blocked::{Behind, Blocked, Stand},
    mailboxes::MailboxId,
    record::Record,
    state::State,
    timers::Due,
};

/// A first attempt that failed.
pub(crate) struct Failed<'a> {
    pub(crate) mailbox: MailboxId,
    pub(crate) record: &'a Arc<Record>,
    pub(crate) target: usize,
    pub(crate) took: Duration,
}

impl State {
    /// Blocks a subscription on the aggregate whose event it failed to handle, until the retry is
    /// through; durable, the delivery and all later ones of the aggregate are left to the log.
    pub(crate) fn block(
        &mut self,
        failed: &Failed<'_>,
        delay: Duration,
        error: String,
        after: &mut After,
    ) {
        let Failed {
            mailbox,
            record,
            target,
            took,
        } = *failed;
        let subscribed = &record.targets()[target];
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        if self.is_closed {
            return;
        }
        let now = Instant::now();
        let began = now.checked_sub(took).unwrap_or(now);
        let due = Due::after(delay, mailbox, subscribed);
        let in_log = pipeline.leaves_to_log();
        let behind = Behind::of(record, in_log);
        let blocked = Blocked::new(subscribed, behind, Stand::Waiting);
        let blocked = blocked.attempted(1, began);
        after.told.extend(blocked.note_rest());
        let Some((id, recorded)) = subscribed.id.zip(record.envelope.recorded()) else {
            after.due.push(due);
            pipeline.mailboxes.block(mailbox, blocked);
            return self.drop_if_removed(mailbox, subscribed, after);
        };
        let aggregate = record.envelope.aggregate();
        let waiting = WaitingDelivery {
            position: recorded.position,
            aggregate: aggregate.clone(),
            attempts: 1,
            first_attempt_at: blocked.first_attempt_at(),
            due_at: Timestamp::now().after(delay),
            last_error: error,
            is_replay: false,
        };
        // The rows and the leaving are one step, so that progress never passes without the rows (R1).
        let rows = [DeliveryChange::Waiting(id, waiting)];
        self.unsaved
            .change(rows.into_iter().chain(blocked.row(aggregate)), Some(due));
        pipeline.mailboxes.block(mailbox, blocked);
        after.saver = true;
        if in_log {
            self.leave(subscribed.pipeline, record, target, after);
        }
        self.drop_if_removed(mailbox, subscribed, after);
    }

    /// Holds a delivery until its subscription is resumed. Where it has been already, the delivery
    /// waits for the end of the run alone.
    pub(crate) fn hold(
        &mut self,
        mailbox: MailboxId,
        record: &Arc<Record>,
        target: usize,
        after: &mut After,
    ) {
        let subscribed = &record.targets()[target];
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        if self.is_closed {
            return;
        }
        let in_log = pipeline.leaves_to_log();
        let behind = Behind::of(record, in_log);
        let blocked = Blocked::new(subscribed, behind, Stand::AfterRun);
        let row = blocked.row(record.envelope.aggregate());
        pipeline.mailboxes.block(mailbox, blocked);
        if let Some(blocked) = pipeline.mailboxes.blocked(mailbox, subscribed) {
            after.told.extend(blocked.note_rest());
        }
        if in_log {
            self.unsaved.change(row, None);
            after.saver = true;
            self.leave(subscribed.pipeline, record, target, after);
        }
        self.drop_if_removed(mailbox, subscribed, after);
    }
}

impl Behind {
    /// The backlog that begins, and ends, with this event.
    pub(crate) fn of(record: &Arc<Record>, in_log: bool) -> Self {
        match record.envelope.recorded().filter(|_| in_log) {
            None => Self::Memory([Arc::clone(record)].into()),
            Some(recorded) => Self::Log {
                from: recorded.position,
                version: recorded.version,
                through: recorded.position,
                passed_over: 1,
            },
        }
    }
}
