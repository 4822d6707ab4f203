//! What follows from the end of an attempt (F1–F3, F5).

use std::time::Duration;

use domain_events::{DeliveryOutcome, FailurePolicy};

use super::{
    attempts::SLACK,
    delivery::{Delivery, State},
    known::Model,
    program::{BASE, CAP, JITTER, TIMEOUT},
    rules::Verdict,
    trace::Ended,
};

impl Model<'_> {
    pub(super) fn attempt_ended(
        &mut self,
        subscription: usize,
        event: usize,
        how: Ended,
    ) -> Verdict {
        let running = self.find(subscription, event);
        let running = running.filter(|&place| self.deliveries[place].state == State::Running);
        let Some(place) = running else {
            let why = format!("s{subscription} ended event {event}, which does not run");
            return self.refuse("D2", why);
        };
        self.note_busy(place);
        match how {
            Ended::Handled => self.end(place, DeliveryOutcome::Handled),
            Ended::Skipped => self.end(place, DeliveryOutcome::Skipped),
            Ended::Dropped => return self.dropped(place),
            Ended::Failed => self.failed(place, self.delay_of(place)),
            Ended::RetryAfter(units) => {
                let delay = self.units(units);
                self.failed(place, (delay, delay));
            }
            Ended::FailedForGood => {
                self.subscriptions[subscription].failed_attempts += 1;
                self.end(place, DeliveryOutcome::Dead);
            }
        }
        Ok(())
    }

    /// Notes that the pipeline had no worker free, where it had none.
    fn note_busy(&mut self, place: usize) {
        let delivery = &self.deliveries[place];
        let pipeline = self.pipeline(delivery);
        let is_full = self.running_in(pipeline) >= self.program.workers_of(pipeline);
        let at = self.pipeline_place(delivery);
        if is_full {
            self.busy_until[at] = self.now;
        }
        self.deliveries[place].ended = self.now;
    }

    /// An attempt was dropped: by its time-out (F1), or by the stop (L2).
    fn dropped(&mut self, place: usize) -> Verdict {
        let delivery = &self.deliveries[place];
        let ran = self.now.saturating_sub(delivery.began);
        let is_over_time = !self.is_exact() || ran >= self.units(TIMEOUT);
        if self.stopping.is_some() && !is_over_time {
            let delivery = &mut self.deliveries[place];
            delivery.state = State::Gone;
            self.cut_off.0 += 1;
            return Ok(());
        }
        if !is_over_time {
            let who = self.name(delivery);
            return self.refuse("F1", format!("{who} was cut off after {ran:?}"));
        }
        if self.stopping.is_some() {
            self.cut_off.1 += 1;
            self.deliveries[place].may_be_cut_off = true;
        }
        self.failed(place, self.delay_of(place));
        Ok(())
    }

    /// The shortest and the longest delay after the attempt that has just failed (F3).
    fn delay_of(&self, place: usize) -> (Duration, Duration) {
        let doubled = BASE << (self.deliveries[place].attempts - 1);
        let delay = self.units(doubled.min(CAP));
        (delay, delay.mul_f64(1.0 + JITTER))
    }

    fn failed(&mut self, place: usize, (shortest, longest): (Duration, Duration)) {
        let now = self.now;
        let delivery = &mut self.deliveries[place];
        let one = delivery.subscription;
        self.subscriptions[one].failed_attempts += 1;
        if delivery.attempts < self.program.subscribers[one].attempts {
            delivery.state = State::Retrying;
            delivery.due = (now + shortest, now + longest);
        } else {
            self.end(place, DeliveryOutcome::Dead);
        }
    }

    fn end(&mut self, place: usize, outcome: DeliveryOutcome) {
        self.ends += 1;
        let delivery = &mut self.deliveries[place];
        delivery.outcomes.push(outcome);
        delivery.ended_step = self.step;
        delivery.state = match outcome {
            DeliveryOutcome::Handled => State::Handled,
            DeliveryOutcome::Skipped => State::Skipped,
            _ => State::Dead,
        };
        let delivery = &self.deliveries[place];
        let pauses = self.policy(delivery) == FailurePolicy::PauseSubscription;
        if delivery.state == State::Dead && pauses {
            let is_exact = self.is_exact();
            self.subscriptions[delivery.subscription]
                .rest
                .paused_by_letter(is_exact);
        }
    }

    /// Checks that no attempt runs past its time-out (F1).
    pub(super) fn check_timeouts(&self) -> Verdict {
        let latest = |one: &Delivery| one.began + self.units(TIMEOUT + SLACK);
        let is_late = |one: &&Delivery| one.state == State::Running && self.now > latest(one);
        match self.deliveries.iter().find(is_late) {
            Some(late) if self.is_exact() => {
                let why = format!("{} runs past its time-out", self.name(late));
                self.refuse("F1", why)
            }
            _ => Ok(()),
        }
    }
}
