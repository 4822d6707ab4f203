//! What the promises say of the beginning of an attempt: for whom (D1), how often and when (F2, F3,
//! F6).

use super::{
    delivery::{Delivery, State},
    known::Model,
    rules::Verdict,
    trace::{Answer, Told},
};

/// By how many units of time a timer may be late.
pub(super) const SLACK: u32 = 3;

impl Model<'_> {
    pub(super) fn attempt_began(
        &mut self,
        subscription: usize,
        event: usize,
        attempt: u32,
        is_replay: bool,
        told: Told,
    ) -> Verdict {
        let Some(place) = self.find(subscription, event) else {
            let why = format!("event {event} is not for s{subscription}");
            return self.refuse("D1", why);
        };
        self.check_told(event, told)?;
        self.check_allowed(place)?;
        self.check_replay(place, is_replay)?;
        self.check_number(place, attempt)?;
        self.check_due(place)?;
        let delivery = self.deliveries[place].clone();
        self.check_alone(&delivery)?;
        if !delivery.is_replay && !delivery.has_begun {
            self.learn_order(&delivery)?;
            self.check_first_unfinished(&delivery)?;
            self.check_priority(&delivery)?;
        }
        self.begin(place);
        self.check_workers(&delivery)?;
        self.check_room()
    }

    fn begin(&mut self, place: usize) {
        let (step, now) = (self.step, self.now);
        let delivery = &mut self.deliveries[place];
        delivery.attempts += 1;
        (delivery.state, delivery.began, delivery.has_begun) = (State::Running, now, true);
        let (call, one, attempt) = (delivery.call, delivery.subscription, delivery.attempts);
        delivery.ended_step = step;
        self.calls[call].is_proved = true;
        self.subscriptions[one].retries += u64::from(attempt > 1);
        self.subscriptions[one].lingers[usize::from(self.deliveries[place].aggregate)] = false;
        // A call is accepted as a whole, so the subscription was there for all of it.
        for other in &mut self.deliveries {
            other.is_sure |= (other.call, other.subscription) == (call, one);
        }
    }

    /// Checks that attempts are made at all: by a running bus, of a subscription that is there and
    /// not paused, of an event that was not refused.
    fn check_allowed(&self, place: usize) -> Verdict {
        let delivery = &self.deliveries[place];
        let who = self.name(delivery);
        let subscription = &self.subscriptions[delivery.subscription];
        if self.is_stopped {
            return self.refuse("L2", format!("{who} began after the stop"));
        }
        if subscription.is_gone {
            return self.refuse("L4", format!("{who} began after unsubscribe"));
        }
        if subscription.rest.is_paused() {
            return self.refuse("F5", format!("{who} began although it is paused"));
        }
        let answer = &self.calls[delivery.call].answer;
        if !matches!(answer, None | Some(Answer::Accepted(_) | Answer::Dropped)) {
            return self.refuse("P4", format!("{who} began, whose publish was refused"));
        }
        let (promise, why) = match delivery.state {
            State::Waiting | State::Retrying | State::Dead => return Ok(()),
            State::Running => ("D2", "runs already"),
            State::Handled | State::Skipped => ("F2", "has ended"),
            State::Discarded => ("F6", "was discarded"),
            State::Filtered => ("D10", "was filtered out"),
            State::Gone => ("L4", "is gone"),
        };
        self.refuse(promise, format!("{who} began, which {why}"))
    }

    fn check_replay(&mut self, place: usize, is_replay: bool) -> Verdict {
        if self.deliveries[place].state == State::Dead && !self.begin_open_replay(place) {
            let who = self.name(&self.deliveries[place]);
            return self.refuse("F3", format!("{who} began after it was given up"));
        }
        if self.deliveries[place].is_replay != is_replay {
            let who = self.name(&self.deliveries[place]);
            return self.refuse("F6", format!("{who} is told is_replay = {is_replay}"));
        }
        Ok(())
    }

    fn check_number(&self, place: usize, attempt: u32) -> Verdict {
        let delivery = &self.deliveries[place];
        if attempt == delivery.attempts + 1 {
            return Ok(());
        }
        let (who, made) = (self.name(delivery), delivery.attempts);
        let why = format!("attempt {attempt} of {who} after {made} attempts");
        self.refuse("F3", why)
    }

    /// Checks that a retry begins when it is due, or once a worker is free after that.
    fn check_due(&self, place: usize) -> Verdict {
        let delivery = &self.deliveries[place];
        if delivery.state != State::Retrying || !self.is_exact() {
            return Ok(());
        }
        let (earliest, latest) = delivery.due;
        let (who, now) = (self.name(delivery), self.now);
        if now < earliest {
            let why = format!("{who} was tried again at {now:?}, due at {earliest:?}");
            return self.refuse("F3", why);
        }
        let neighbours = self
            .deliveries
            .iter()
            .filter(|other| other.event != delivery.event && self.same_lane(delivery, other));
        let held_until = neighbours
            .map(|other| other.ended)
            .chain([
                latest,
                self.busy_until[self.pipeline_place(delivery)],
                self.subscriptions[delivery.subscription].rest.until,
            ])
            .max()
            .unwrap_or(latest);
        if now > held_until + self.units(SLACK) {
            let why = format!("{who} was tried again at {now:?}, due by {held_until:?}");
            return self.refuse("F3", why);
        }
        Ok(())
    }

    pub(super) fn pipeline_place(&self, delivery: &Delivery) -> usize {
        self.pipeline(delivery).map_or(0, |own| own + 1)
    }
}
