//! What the promises say of whose turn it is: one delivery of a lane at a time and in order (D2),
//! first attempts by priority (D3), and no more at once than there are workers (D6).

use domain_events::FailurePolicy;

use super::{
    delivery::{Delivery, State},
    known::Model,
    rules::Verdict,
};

impl Model<'_> {
    /// Checks that the subscription runs nothing else of the lane (D2, F6).
    pub(super) fn check_alone(&self, delivery: &Delivery) -> Verdict {
        let runs_beside = |other: &&Delivery| {
            let is_other = other.event != delivery.event;
            is_other && other.state == State::Running && self.same_lane(delivery, other)
        };
        let Some(beside) = self.deliveries.iter().find(runs_beside) else {
            return Ok(());
        };
        let replays = delivery.is_replay || beside.is_replay;
        let why = format!("{} began beside {}", self.name(delivery), self.name(beside));
        self.refuse(if replays { "F6" } else { "D2" }, why)
    }

    /// Checks that no earlier event of the lane is unfinished (D2), or a dead letter that parks it
    /// (F5).
    pub(super) fn check_first_unfinished(&self, delivery: &Delivery) -> Verdict {
        for other in &self.deliveries {
            let is_earlier = other.event != delivery.event
                && self.same_lane(delivery, other)
                && self.is_before(other.event, delivery.event);
            if !is_earlier || !other.is_sure || !self.surely_accepted(other.call) {
                continue;
            }
            let parks = self.policy(delivery) == FailurePolicy::ParkAggregate;
            let who = || format!("{} began before {}", self.name(delivery), self.name(other));
            if other.is_open() && (!other.is_replay || parks) {
                let promise = if self.is_amid_batch(delivery, other) {
                    "P3"
                } else {
                    "D2"
                };
                return self.refuse(promise, format!("{} was done", who()));
            }
            if other.state == State::Dead && parks && !self.has_open_letter_call(other) {
                return self.refuse("F5", format!("{}, which parks it, was gone", who()));
            }
        }
        Ok(())
    }

    /// Whether a delivery comes between the events of the batch that another one is of.
    fn is_amid_batch(&self, delivery: &Delivery, other: &Delivery) -> bool {
        other.call != delivery.call
            && self.deliveries.iter().any(|mate| {
                let is_mate = mate.call == other.call && mate.event != other.event;
                is_mate && mate.has_begun && self.same_lane(other, mate)
            })
    }

    /// Checks that first attempts of an event in one pipeline come one after the other, by priority
    /// and then registration (D3). Whoever was behind since the event was published is passed over
    /// by its round.
    pub(super) fn check_priority(&self, delivery: &Delivery) -> Verdict {
        let since = self.calls[delivery.call].began_step;
        let was_behind = |one: &Delivery| {
            let subscription = &self.subscriptions[one.subscription];
            let behind = subscription.behind[usize::from(one.aggregate)];
            behind.is_some_and(|step| step >= since) || subscription.unsubscribing
        };
        if self.pipeline(delivery).is_some() || was_behind(delivery) {
            return Ok(());
        }
        for other in &self.deliveries {
            let takes_part = other.event == delivery.event
                && other.subscription != delivery.subscription
                && self.pipeline(other).is_none()
                && !was_behind(other);
            if !takes_part {
                continue;
            }
            let who = || format!("{} began first, and", self.name(delivery));
            if other.runs_in_round() {
                let why = format!("{} s{} still runs", who(), other.subscription);
                return self.refuse("D3", why);
            }
            let is_due = other.state == State::Waiting && other.is_sure;
            if is_due && self.outranks(other.subscription, delivery.subscription) {
                let why = format!("{} s{} comes before it", who(), other.subscription);
                return self.refuse("D3", why);
            }
        }
        Ok(())
    }

    fn outranks(&self, one: usize, other: usize) -> bool {
        let priority = |one: usize| self.program.subscribers[one].priority;
        let (first, second) = (&self.subscriptions[one], &self.subscriptions[other]);
        let was_earlier = first.subscribed < second.subscribing && first.subscribed.is_some();
        priority(one) > priority(other) || (priority(one) == priority(other) && was_earlier)
    }

    pub(super) fn check_workers(&self, delivery: &Delivery) -> Verdict {
        let pipeline = self.pipeline(delivery);
        let (running, workers) = (self.running_in(pipeline), self.program.workers_of(pipeline));
        if running > workers {
            let why = format!("{running} handlers run in a pipeline of {workers} workers");
            return self.refuse("D6", why);
        }
        Ok(())
    }

    pub(super) fn running_in(&self, pipeline: Option<usize>) -> usize {
        let running =
            |one: &&Delivery| one.state == State::Running && self.pipeline(one) == pipeline;
        self.deliveries.iter().filter(running).count()
    }
}
