//! Who is there and who rests: subscribing and unsubscribing (L4), pausing and resuming (F5).

use std::time::Duration;

use super::{delivery::State, known::Model, rules::Verdict};

/// Whether a subscription is paused, as far as its calls tell: what overlaps tells nothing.
#[derive(Clone, Default)]
pub(super) struct Rest {
    surely: bool,
    perhaps: bool,
    /// Calls to pause that have not returned, and how many resumes had been called before.
    pausing: Vec<(usize, usize)>,
    /// Calls to resume that have not returned, and how many pauses had come before.
    resuming: Vec<(usize, usize)>,
    pauses: usize,
    resumes: usize,
    /// When it may have been paused the last time.
    pub(super) until: Duration,
}

impl Rest {
    pub(super) fn is_paused(&self) -> bool {
        self.surely
    }

    pub(super) fn may_be_paused(&self) -> bool {
        self.perhaps
    }

    /// Whether calls overlap.
    fn is_unclear(&self) -> bool {
        !self.pausing.is_empty() || !self.resuming.is_empty()
    }

    /// A dead letter pauses the subscription, at once where `is_exact`.
    pub(super) fn paused_by_letter(&mut self, is_exact: bool) {
        self.pauses += 1;
        self.perhaps = true;
        self.surely |= is_exact && self.resuming.is_empty();
        if !is_exact {
            // It takes effect at some moment after the attempt, perhaps after a resume: a call that never
            // returns, as far as anybody can tell.
            self.pausing.push((usize::MAX, self.resumes));
        }
    }
}

impl Model<'_> {
    pub(super) fn subscribing(&mut self, one: usize) -> Verdict {
        self.subscriptions[one].subscribing = Some(self.step);
        for event in 0..self.events.len() {
            let call = &self.calls[self.events[event].call];
            if call.answer.is_none() {
                self.expect(one, event);
            }
        }
        Ok(())
    }

    pub(super) fn subscribed(&mut self, one: usize, made: bool) -> Verdict {
        if !made && self.stopping.is_none() {
            return self.refuse("L4", format!("s{one} was not subscribed"));
        }
        self.subscriptions[one].subscribed = made.then_some(self.step);
        Ok(())
    }

    pub(super) fn unsubscribing(&mut self, one: usize) -> Verdict {
        self.subscriptions[one].unsubscribing = true;
        let own = self.deliveries.iter_mut();
        for delivery in own.filter(|delivery| delivery.subscription == one) {
            delivery.is_sure &= !delivery.is_open();
        }
        Ok(())
    }

    pub(super) fn unsubscribed(&mut self, one: usize, there: bool) -> Verdict {
        if !there {
            // It was not there yet, or another call has removed it.
            let known = &mut self.subscriptions[one];
            known.unsubscribing = known.is_gone || known.subscribed.is_some();
            return Ok(());
        }
        self.check_none_runs(one, "unsubscribe")?;
        self.subscriptions[one].is_gone = true;
        self.give_up(|delivery| delivery.subscription == one);
        Ok(())
    }

    fn check_none_runs(&self, one: usize, call: &str) -> Verdict {
        let runs = self
            .deliveries
            .iter()
            .any(|delivery| delivery.subscription == one && delivery.state == State::Running);
        if runs {
            let why = format!("{call} returned while a handler of s{one} runs");
            return self.refuse("L4", why);
        }
        Ok(())
    }

    pub(super) fn pausing(&mut self, call: usize, one: usize) -> Verdict {
        let rest = &mut self.subscriptions[one].rest;
        rest.pausing.push((call, rest.resumes));
        rest.pauses += 1;
        rest.perhaps = true;
        Ok(())
    }

    pub(super) fn paused(&mut self, call: usize, one: usize, there: bool) -> Verdict {
        let rest = &mut self.subscriptions[one].rest;
        let place = rest.pausing.iter().position(|pausing| pausing.0 == call);
        let began = place.map(|place| rest.pausing.swap_remove(place));
        let alone = began.is_some_and(|(_, resumes)| resumes == rest.resumes);
        if !there {
            // Nobody of the name was there to be paused.
            rest.perhaps = rest.surely || rest.is_unclear() || !alone || rest.pauses > 1;
            return Ok(());
        }
        if alone && rest.resuming.is_empty() {
            rest.surely = true;
            return self.check_none_runs(one, "pause");
        }
        Ok(())
    }

    pub(super) fn resuming(&mut self, call: usize, one: usize) -> Verdict {
        let now = self.now;
        let rest = &mut self.subscriptions[one].rest;
        rest.resuming.push((call, rest.pauses));
        rest.resumes += 1;
        rest.surely = false;
        if rest.perhaps {
            rest.until = now;
        }
        Ok(())
    }

    pub(super) fn resumed(&mut self, call: usize, one: usize, _there: bool) -> Verdict {
        let now = self.now;
        let rest = &mut self.subscriptions[one].rest;
        if rest.perhaps {
            rest.until = now;
        }
        let place = rest.resuming.iter().position(|resuming| resuming.0 == call);
        let began = place.map(|place| rest.resuming.swap_remove(place));
        let alone = began.is_some_and(|(_, pauses)| pauses == rest.pauses);
        if alone && rest.pausing.is_empty() {
            rest.perhaps = false;
        }
        Ok(())
    }
}
