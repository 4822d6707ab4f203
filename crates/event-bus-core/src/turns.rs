//! The turns of workers: what they take, and what they bring back.

use std::{
    sync::Arc,
    task::{Poll, Waker},
};

use crate::{
    after::After,
    mailboxes::Start,
    pipeline::{Pipeline, PipelineId},
    record::{Record, Rest},
    run::Run,
    seat::Worker,
    state::State,
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
        self.finish_run(id, run, after);
        let Some(pipeline) = self.pipelines.get_mut(id) else {
            return Poll::Ready(None);
        };
        let Some(start) = pipeline.mailboxes.take(run) else {
            pipeline.idle.rest(worker.number, waker);
            return Poll::Pending;
        };
        pipeline.idle.leave(worker.number);
        if let Start::Backlog(start) = &start {
            // In this step, so that whoever removes the subscription waits for what comes of it.
            start.subscribed.announce(worker.seat());
        }
        let is_durable = pipeline.cursor.is_some();
        if let (Start::Run, [_, ..], Some(record)) =
            (&start, &*run.passed_over, run.records.first())
        {
            // Durable: what a round passes over is left to the log, in the step that passes it
            // over. Volatile: it is in the backlog now.
            after.tell(Arc::clone(record));
            if is_durable {
                let record = Arc::clone(record);
                for &target in &run.passed_over {
                    self.leave(id, &record, target, after);
                }
            }
        }
        Poll::Ready(Some(start))
    }

    /// Ends a worker's run, and the events of it that no delivery holds.
    fn finish_run(&mut self, id: PipelineId, run: &mut Run, after: &mut After) {
        if run.records.is_empty() {
            return;
        }
        self.settle(id, run, after);
        if let Some(pipeline) = self.pipelines.get_mut(id) {
            let ready = pipeline.mailboxes.finish_run(run);
            // The worker itself takes one.
            pipeline.wake_workers(ready.saturating_sub(1), after);
            after.quiet |= pipeline.mailboxes.is_drained();
        }
        run.spend();
    }

    /// Ends those events of a run that had their round; the run goes on.
    pub(crate) fn settle(&mut self, id: PipelineId, run: &mut Run, after: &mut After) {
        for place in run.settled..run.done {
            if run.finished & (1 << place) != 0 {
                let record = Arc::clone(&run.records[place]);
                self.finish(id, &record, after);
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
        if record.targets[target].is_paused() {
            record.rest(target, Rest::Paused);
            after.tell(Arc::clone(record));
        }
        if record.leave(target) {
            self.finish(id, record, after);
            self.admit(after);
        }
    }
}

impl Pipeline {
    /// Notes whether the room has become nearly full, or is so no more.
    fn note_crossing(&mut self, id: PipelineId, after: &mut After) {
        after
            .crossings
            .extend(self.room.crossed().map(|crossing| (id, crossing)));
    }

    /// Queues an event.
    pub(crate) fn push(&mut self, id: PipelineId, record: Arc<Record>, after: &mut After) {
        self.note_crossing(id, after);
        let ready = self.mailboxes.push(record);
        self.wake_workers(usize::from(ready), after);
    }

    /// Wakes as many workers, of those that rest.
    pub(crate) fn wake_workers(&mut self, count: usize, after: &mut After) {
        for _ in 0..count {
            after.wake(self.idle.wake_one());
        }
    }
}
