//! What the promises say of dead letters: listed, replayed, discarded (F6).

use super::{
    delivery::{Delivery, State},
    known::Model,
    rules::Verdict,
};

/// A call to replay or to discard a dead letter.
pub(super) struct LetterCall {
    call: usize,
    subscription: usize,
    event: usize,
    is_replay: bool,
    /// Whether its replay began before it returned.
    has_begun: bool,
}

impl Model<'_> {
    /// Checks a list of all dead letters of a subscription: those that there are, oldest first.
    pub(super) fn letters(&self, one: usize, listed: &[usize]) -> Verdict {
        let known = &self.subscriptions[one];
        if !self.is_exact() || known.unsubscribing || !self.letter_calls.is_empty() {
            return Ok(());
        }
        let mut dead: Vec<&Delivery> = self.deliveries.iter().collect();
        dead.retain(|delivery| delivery.subscription == one && delivery.state == State::Dead);
        // Its last attempt may have been cut off by the stop in the moment of its time-out.
        dead.retain(|delivery| !delivery.may_be_cut_off || listed.contains(&delivery.event));
        dead.sort_by_key(|delivery| delivery.ended_step);
        let dead: Vec<usize> = dead.iter().map(|delivery| delivery.event).collect();
        if dead != listed {
            let why = format!("the dead letters of s{one} are {dead:?}, listed were {listed:?}");
            return self.refuse("F6", why);
        }
        Ok(())
    }

    pub(super) fn letter_call(
        &mut self,
        call: usize,
        subscription: usize,
        event: usize,
        is_replay: bool,
    ) -> Verdict {
        self.letter_calls.push(LetterCall {
            call,
            subscription,
            event,
            is_replay,
            has_begun: false,
        });
        Ok(())
    }

    pub(super) fn has_open_letter_call(&self, delivery: &Delivery) -> bool {
        let place = (delivery.subscription, delivery.event);
        let mut calls = self.letter_calls.iter();
        calls.any(|call| (call.subscription, call.event) == place)
    }

    /// Begins the replay that a call has asked for which has not returned. Returns whether one has.
    pub(super) fn begin_open_replay(&mut self, place: usize) -> bool {
        let delivery = &mut self.deliveries[place];
        let letter = (delivery.subscription, delivery.event);
        let call = self.letter_calls.iter_mut().find(|call| {
            call.is_replay && !call.has_begun && (call.subscription, call.event) == letter
        });
        let Some(call) = call else {
            return false;
        };
        call.has_begun = true;
        (delivery.state, delivery.attempts, delivery.is_replay) = (State::Waiting, 0, true);
        true
    }

    pub(super) fn letter_answered(&mut self, call: usize, done: bool) -> Verdict {
        let place = self
            .letter_calls
            .iter()
            .position(|known| known.call == call);
        let Some(place) = place else {
            return self.refuse("F6", format!("call {call} was answered, not asked"));
        };
        let call = self.letter_calls.swap_remove(place);
        if call.has_begun {
            if !done {
                return self.refuse("F6", "a replay ran that was refused".to_owned());
            }
            return Ok(());
        }
        let letter = self.find(call.subscription, call.event);
        let letter = letter.filter(|&place| self.deliveries[place].state == State::Dead);
        let (one, event) = (call.subscription, call.event);
        match (letter, done) {
            (None, false) => Ok(()),
            (None, true) => {
                let why = format!("s{one} had no dead letter of event {event}");
                self.refuse("F6", why)
            }
            (Some(place), true) => {
                let delivery = &mut self.deliveries[place];
                if call.is_replay {
                    (delivery.state, delivery.attempts) = (State::Waiting, 0);
                    delivery.is_replay = true;
                } else {
                    delivery.state = State::Discarded;
                    let aggregate = usize::from(delivery.aggregate);
                    self.subscriptions[one].lingers[aggregate] = true;
                }
                Ok(())
            }
            (Some(_), false) => {
                let excused = self.stopping.is_some() || self.subscriptions[one].unsubscribing;
                if excused || !self.is_exact() {
                    return Ok(());
                }
                let why = format!("the dead letter of event {event} for s{one} was not found");
                self.refuse("F6", why)
            }
        }
    }
}
