//! The turns of workers: what they take, and what they bring back.

use std::{
    sync::Arc,
    task::{Poll, Waker},
};

use domain_events::WaitingDelivery;

use crate::{
    after::After,
    blocked::{Behind, Blocked, Stand},
    mailboxes::{MOST_TAKEN, Start},
    pipeline::{Pipeline, PipelineId},
    record::{Record, Rest},
    run::Run,
    seat::Worker,
    state::State,
    subscribed::Subscribed,
    timers::Due,
};

impl State {
    /// What a worker does next, after what it did last; its waker is kept where that is nothing.
    /// Ready with `None` once there is nothing more to be done in the pipeline.
    pub(crate) fn next(
        &mut self,
        worker: &Worker,
        run: &mut Run,
        waker: &Waker,
        after: &mut After,
    ) -> Poll<Option<Start>> {
        let id = worker.pipeline;
        if self.is_closed {
            return Poll::Ready(None);
        }
        let ready = self.finish_run(id, run, after);
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return Poll::Ready(None);
        };
        // The worker itself takes one.
        pipeline.wake_workers(ready.saturating_sub(1), after);
        let most = pipeline.batch.map_or(MOST_TAKEN, |batch| batch.size);
        let Some(start) = pipeline.mailboxes.take(run, most) else {
            pipeline.idle.rest(worker.number, waker);
            return Poll::Pending;
        };
        pipeline.idle.leave(worker.number);
        if let Start::Backlog(start) = &start {
            // In this step, so that whoever removes the subscription waits for what comes of it.
            start.subscribed.announce(worker.seat());
        }
        if let Start::Run = start {
            pipeline.lingers_until = None;
            self.pass_over(id, run, after);
        }
        Poll::Ready(Some(start))
    }

    /// Has those passed over who are blocked on the aggregate of a run that begins. The event is in their
    /// backlogs now, or is left to the log in this very step.
    pub(crate) fn pass_over(&mut self, id: PipelineId, run: &Run, after: &mut After) {
        let ([_, ..], Some(record)) = (&*run.passed_over, run.records.first()) else {
            return;
        };
        after.tell(Arc::clone(record));
        let pipeline = self.pipelines.get(id);
        if pipeline.is_some_and(Pipeline::leaves_to_log) {
            after.saver |= self.unsaved.moved();
            for &target in &run.passed_over {
                self.leave(id, record, target, after);
            }
        }
    }

    /// Ends a worker's run, and the events of it that no delivery holds. Returns how many workers have
    /// something to do by that.
    pub(crate) fn finish_run(&mut self, id: PipelineId, run: &mut Run, after: &mut After) -> usize {
        if run.records.is_empty() {
            return 0;
        }
        self.settle(id, run, after);
        let mut ready = 0;
        if let Some(pipeline) = self.pipelines.get_mut(id) {
            let has_moved;
            (ready, has_moved) = pipeline.mailboxes.finish_run(run);
            after.saver |= has_moved && self.unsaved.moved();
            after.quiet |= pipeline.mailboxes.is_drained();
        }
        run.spend();
        ready
    }

    /// Ends those events of a run that had their round; the run goes on.
    pub(crate) fn settle(&mut self, id: PipelineId, run: &mut Run, after: &mut After) {
        for place in run.settled..run.done() {
            if run.finished[place] {
                self.finish(id, &run.records[place], after);
            }
        }
        if let Some(pipeline) = self.pipelines.get_mut(id) {
            pipeline.mailboxes.settle(run);
        }
        self.admit(after);
    }

    /// Notes that no delivery of a pipeline holds the event any more. Whoever calls it
    /// [admits](Self::admit) those who wait for the room.
    pub(crate) fn finish(&mut self, id: PipelineId, record: &Arc<Record>, after: &mut After) {
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return;
        };
        if record.marks.has_room {
            pipeline.room.give_back(1);
            pipeline.note_crossing(id, after);
        }
        if let Some(cursor) = &mut pipeline.cursor {
            cursor.closed(record);
            after.saver |= self.unsaved.progress();
        }
        if record.leave_pipeline() {
            self.figures.finished += 1;
            self.figures.in_flight -= 1;
        }
        after.quiet |= pipeline.mailboxes.is_drained();
    }

    /// Leaves a delivery to the log, where a row covers it.
    pub(crate) fn leave(
        &mut self,
        id: PipelineId,
        record: &Arc<Record>,
        target: usize,
        after: &mut After,
    ) {
        if let Some(cursor) = self
            .pipelines
            .get_mut(id)
            .and_then(|pipeline| pipeline.cursor.as_mut())
        {
            cursor.keep_left(record);
        }
        if record.targets()[target].is_paused() {
            record.rest(target, Rest::Paused);
            after.tell(Arc::clone(record));
        }
        record.targets()[target].steps.left.up();
        if record.leave(target) {
            self.finish(id, record, after);
            self.admit(after);
        }
    }
}

impl Pipeline {
    /// Notes whether the room has become nearly full, or is so no more.
    pub(crate) fn note_crossing(&mut self, id: PipelineId, after: &mut After) {
        after
            .crossings
            .extend(self.room.crossed().map(|crossing| (id, crossing)));
    }

    /// Queues an event.
    pub(crate) fn push(&mut self, id: PipelineId, record: Arc<Record>, after: &mut After) {
        self.note_crossing(id, after);
        let ready = self.mailboxes.push(record);
        self.wake_workers(usize::from(ready), after);
        if self.batch.is_some_and(|batch| self.is_full(batch.size)) {
            after.wake(self.lingering.wake_one());
        }
    }

    /// Has a delivery go on that was left waiting, of a subscription whose backlogs are in memory; a replay
    /// once this `save` is committed.
    pub(crate) fn go_on(
        &mut self,
        subscribed: &Arc<Subscribed>,
        record: &Arc<Record>,
        waiting: &WaitingDelivery,
        save: u64,
        after: &mut After,
    ) {
        let mailboxes = &mut self.mailboxes;
        let mailbox = mailboxes.mailbox(record.envelope.aggregate());
        if mailboxes.blocked(mailbox, subscribed).is_none() {
            let nothing = Behind::Memory([].into());
            mailboxes.block(mailbox, Blocked::new(subscribed, nothing, Stand::Waiting));
        }
        let Some(blocked) = mailboxes.blocked(mailbox, subscribed) else {
            return;
        };
        if waiting.is_replay {
            blocked.replays_from = save;
        }
        let delay = blocked.resume_in_memory(record, waiting);
        after.told.extend(blocked.note_rest());
        if let Some(delay) = delay {
            after.due.push(match waiting.attempts {
                0 => Due::now(mailbox, subscribed),
                _ => Due::after(delay, mailbox, subscribed),
            });
        }
    }

    /// Wakes as many workers, of those that rest.
    pub(crate) fn wake_workers(&mut self, count: usize, after: &mut After) {
        for _ in 0..count {
            let lingering = || self.lingering.wake_one();
            let is_due = self.mailboxes.is_backlog_ready();
            let woken = self.idle.wake_one();
            after.wake(woken.or_else(|| is_due.then(lingering).flatten()));
        }
    }
}
