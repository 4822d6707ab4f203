//! What the promises say of room (P4, P5): the bound of each pipeline, and when there is none.

use super::{
    delivery::{Delivery, State},
    known::{Call, Model},
    program::How,
    rules::Verdict,
    trace::Answer,
};

impl Model<'_> {
    fn pipelines(&self) -> impl Iterator<Item = Option<usize>> + use<> {
        let mut pipelines: Vec<_> = (0..self.subscriptions.len())
            .map(|one| self.program.pipeline(one))
            .collect();
        pipelines.push(None);
        pipelines.sort_unstable();
        pipelines.dedup();
        pipelines.into_iter()
    }

    /// Checks that no pipeline holds more than it may.
    pub(super) fn check_room(&self) -> Verdict {
        for pipeline in self.pipelines() {
            let capacity = self.program.capacity_of(pipeline);
            let (outside, all) = self.held(pipeline);
            if outside > capacity || all > 2 * capacity {
                let why = format!(
                    "a pipeline of capacity {capacity} holds {outside} events of publishers, {all} in all"
                );
                return self.refuse("P4", why);
            }
        }
        Ok(())
    }

    /// How many events surely take room: those from outside, and all.
    fn held(&self, pipeline: Option<usize>) -> (usize, usize) {
        let takes_room = |delivery: &Delivery| {
            delivery.is_open()
                && delivery.is_sure
                && !delivery.is_replay
                && self.pipeline(delivery) == pipeline
                && self.surely_accepted(delivery.call)
        };
        let events = self.events_of(takes_room);
        let is_outside = |event: &&usize| !self.calls[self.events[**event].call].is_inside;
        (events.iter().filter(is_outside).count(), events.len())
    }

    /// How many events may have taken room at some time since a step, those of one call left out.
    fn may_have_held(&self, pipeline: Option<usize>, since: usize, but: usize) -> usize {
        let may_take_room = |delivery: &Delivery| {
            let accepted = !matches!(
                self.calls[delivery.call].answer,
                Some(Answer::Full(_) | Answer::TooLarge | Answer::Stopped | Answer::Failed(_))
            );
            if !accepted {
                return false;
            }
            let may = delivery.is_open()
                || delivery.state == State::Filtered
                || delivery.ended_step >= since
                || self.subscriptions[delivery.subscription].unsubscribing;
            let may = may || self.is_led_on(delivery);
            may && delivery.call != but && self.pipeline(delivery) == pipeline
        };
        self.events_of(may_take_room).len()
    }

    /// Whether a worker may still be leading later events of the aggregate in one go: it gives room
    /// back when it comes to wait.
    fn is_led_on(&self, delivery: &Delivery) -> bool {
        delivery.ended == self.now
            && self.deliveries.iter().any(|other| {
                other.state == State::Running
                    && (other.aggregate == delivery.aggregate || self.same_lane(other, delivery))
                    && self.pipeline(other) == self.pipeline(delivery)
            })
    }

    fn events_of(&self, which: impl Fn(&Delivery) -> bool) -> Vec<usize> {
        let deliveries = self.deliveries.iter().filter(|delivery| which(delivery));
        let mut events: Vec<usize> = deliveries.map(|delivery| delivery.event).collect();
        events.sort_unstable();
        events.dedup();
        events
    }

    /// How many events of a call a pipeline may want, or wants.
    fn wanted(&self, call: usize, pipeline: Option<usize>, surely: bool) -> usize {
        let wants = |delivery: &Delivery| {
            let sure = delivery.is_sure && delivery.state != State::Filtered;
            delivery.call == call && self.pipeline(delivery) == pipeline && (sure || !surely)
        };
        self.events_of(wants).len()
    }

    /// Checks that a publish was refused only where there was no room, and gave its events back.
    pub(super) fn check_full(&self, call: usize, given_back: usize) -> Verdict {
        let Call {
            how,
            count,
            is_inside,
            began,
            began_step,
            ..
        } = self.calls[call];
        if given_back != count {
            let why = format!("{given_back} of {count} events were given back");
            return self.refuse("P4", why);
        }
        if !is_inside && !matches!(how, How::Try | How::Timeout(_)) {
            return self.refuse("P4", format!("call {call} was to wait for room"));
        }
        if !self.is_exact() {
            return Ok(());
        }
        if let How::Timeout(units) = how {
            let waited = self.now - began;
            if waited < self.units(units) {
                let why = format!("call {call} waited {waited:?} of {units} units");
                return self.refuse("P4", why);
            }
        }
        let others_wait = self.calls.iter().any(|other| {
            other.answer.is_none() && !other.is_inside && other.first != self.calls[call].first
        });
        let no_room = |pipeline: Option<usize>| {
            // What nobody wants is asked of the default pipeline, if of any.
            let wanted = self.wanted(call, pipeline, false);
            let wanted = wanted.max(usize::from(pipeline.is_none()));
            let limit = self.program.capacity_of(pipeline) * if is_inside { 2 } else { 1 };
            wanted > 0 && self.may_have_held(pipeline, began_step, call) + wanted > limit
        };
        if self.pipelines().any(no_room) || (others_wait && !is_inside) {
            return Ok(());
        }
        let promise = if is_inside { "P5" } else { "P4" };
        self.refuse(
            promise,
            format!("call {call} was refused, and there was room"),
        )
    }

    pub(super) fn check_too_large(&self, call: usize) -> Verdict {
        let count = self.calls[call].count;
        let least = self.pipelines().map(|own| self.program.capacity_of(own));
        if least.min().is_some_and(|least| count > least) {
            return Ok(());
        }
        let why = format!("a batch of {count} was called too large");
        self.refuse("P3", why)
    }

    /// Checks that a batch that can never fit was not accepted.
    pub(super) fn check_fits(&self, call: usize) -> Verdict {
        for pipeline in self.pipelines() {
            let (wanted, capacity) = (
                self.wanted(call, pipeline, true),
                self.program.capacity_of(pipeline),
            );
            let accepted = matches!(self.calls[call].answer, Some(Answer::Accepted(_)));
            if accepted && !self.calls[call].is_inside && wanted > capacity {
                let why = format!("a batch of {wanted} is in a pipeline of {capacity}");
                return self.refuse("P3", why);
            }
        }
        Ok(())
    }
}
