//! The model: what is known after each step of a trace, and which step is refused.

use std::fmt;

use domain_events::FailurePolicy;

use super::{
    delivery::State,
    known::Model,
    play::Pace,
    program::Program,
    trace::{Entry, Observed},
};

/// A step that the promises do not allow.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The number of the promise.
    pub promise: &'static str,
    /// The place of the step in the trace.
    pub step: usize,
    /// Why.
    pub why: String,
    /// What had not ended then.
    pub state: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { promise, step, .. } = self;
        write!(f, "{promise}, step {step}: {}\n{}", self.why, self.state)
    }
}

pub(super) type Verdict = Result<(), Refusal>;

/// Says whether the promises allow this trace of `program`.
///
/// # Errors
/// The first step that they do not allow, and why.
pub fn check(program: &Program, pace: Pace, trace: &[Entry]) -> Result<(), Refusal> {
    let mut model = Model::new(program, pace);
    for (step, entry) in trace.iter().enumerate() {
        (model.step, model.now) = (step, entry.at);
        model.take(&entry.what)?;
        model.note_who_is_behind();
        model.note_idle();
    }
    Ok(())
}

impl Model<'_> {
    fn take(&mut self, what: &Observed) -> Verdict {
        self.check_timeouts()?;
        self.note_stopping();
        match *what {
            Observed::Publishing {
                call,
                how,
                first,
                ref events,
                inside,
            } => self.publishing(call, how, first, events, inside),
            Observed::Published(call, ref answer) => self.published(call, answer),
            Observed::AttemptBegan {
                subscription,
                event,
                attempt,
                is_replay,
                told,
            } => self.attempt_began(subscription, event, attempt, is_replay, told),
            Observed::AttemptEnded(subscription, event, how) => {
                self.attempt_ended(subscription, event, how)
            }
            Observed::Subscribing(one) => self.subscribing(one),
            Observed::Subscribed(one, made) => self.subscribed(one, made),
            Observed::Unsubscribing(one) => self.unsubscribing(one),
            Observed::Unsubscribed(one, there) => self.unsubscribed(one, there),
            Observed::Pausing(call, one) => self.pausing(call, one),
            Observed::Paused(call, one, there) => self.paused(call, one, there),
            Observed::Resuming(call, one) => self.resuming(call, one),
            Observed::Resumed(call, one, there) => self.resumed(call, one, there),
            Observed::Letters(one, ref events) => self.letters(one, events),
            Observed::Replaying(call, one, event) => self.letter_call(call, one, event, true),
            Observed::Discarding(call, one, event) => self.letter_call(call, one, event, false),
            Observed::Replayed(call, done) | Observed::Discarded(call, done) => {
                self.letter_answered(call, done)
            }
            Observed::WaitingIdle(call) => {
                self.waits.push((call, self.first_pending().is_none()));
                Ok(())
            }
            Observed::Idle(call) => self.idle(call),
            Observed::Asking(call, event) => {
                self.asked.push((call, event, self.step));
                Ok(())
            }
            Observed::Outcomes(call, ref outcomes) => self.outcomes(call, outcomes),
            Observed::Stopping => {
                self.stopping = self.stopping.or(Some((self.ends, self.now)));
                Ok(())
            }
            Observed::Stopped(ref report) => self.stopped(report),
            Observed::Quiet(ref figures) => self.quiet(figures),
            Observed::Stuck(what) => self.refuse("L3", format!("{what} never came")),
        }
    }

    pub(super) fn refuse<T>(&self, promise: &'static str, why: String) -> Result<T, Refusal> {
        let open = self.deliveries.iter().filter(|delivery| delivery.is_open());
        let open = open.map(|delivery| {
            let call = &self.calls[delivery.call].answer;
            format!("  {}: {:?}, {call:?}", self.name(delivery), delivery.state)
        });
        Err(Refusal {
            promise,
            step: self.step,
            why,
            state: open.collect::<Vec<_>>().join("\n"),
        })
    }

    /// Notes that a stop has begun: time passes only once everybody has done what he can.
    fn note_stopping(&mut self) {
        let has_begun = self.stopping.is_some_and(|(_, at)| self.now > at);
        if has_begun && self.is_exact() && self.ends_at_stop.is_none() {
            self.ends_at_stop = Some(self.ends);
        }
    }

    fn note_idle(&mut self) {
        if !self.waits.is_empty() && self.first_pending().is_none() {
            self.waits.iter_mut().for_each(|wait| wait.1 = true);
        }
    }

    /// Notes who cannot be held to the priorities of rounds: whoever has failed on an aggregate, is
    /// paused, or has not caught up since.
    fn note_who_is_behind(&mut self) {
        let step = self.step;
        for delivery in &self.deliveries {
            let parks = delivery.state == State::Dead
                && self.policy(delivery) == FailurePolicy::ParkAggregate;
            let one = &mut self.subscriptions[delivery.subscription];
            if parks || delivery.lags() || one.rest.may_be_paused() {
                one.behind[usize::from(delivery.aggregate)] = Some(step);
            }
        }
        for one in &mut self.subscriptions {
            for (behind, _) in one.behind.iter_mut().zip(one.lingers).filter(|it| it.1) {
                *behind = Some(step);
            }
        }
        for delivery in &mut self.deliveries {
            let one = &self.subscriptions[delivery.subscription];
            let is_behind = one.behind[usize::from(delivery.aggregate)] == Some(step);
            delivery.may_be_passed_over |= is_behind && delivery.state == State::Waiting;
        }
    }
}
