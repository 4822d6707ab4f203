//! What the promises say of publishing: order (P3), answers (P2, P4), causes (P9).

use domain_events::{EventId, Ordering};

use super::{
    delivery::{Delivery, State},
    handler,
    known::{Call, Event, Model},
    program::{How, Raised},
    rules::Verdict,
    trace::{Answer, Told},
};

impl Model<'_> {
    pub(super) fn publishing(
        &mut self,
        call: usize,
        how: How,
        first: usize,
        events: &[Raised],
        inside: Option<(usize, usize)>,
    ) -> Verdict {
        self.order.add_call();
        for (before, known) in self.calls.iter().enumerate() {
            if matches!(known.answer, Some(Answer::Accepted(_) | Answer::Dropped)) {
                self.order.learn(before, call);
            }
        }
        self.calls.push(Call {
            how,
            first,
            count: events.len(),
            is_inside: inside.is_some(),
            after_stopping: self.ends_at_stop.is_some(),
            began: self.now,
            began_step: self.step,
            answer: None,
            is_proved: false,
        });
        let published = inside.map_or(0, |inside| self.published_by(inside));
        for (&raised, place) in events.iter().zip(1..) {
            let cause = inside.map(|(one, event)| (one, event, published + place));
            self.events.push(Event {
                call,
                raised,
                cause,
                id: None,
                told: None,
            });
            for subscription in 0..self.subscriptions.len() {
                self.expect(subscription, self.events.len() - 1);
            }
        }
        Ok(())
    }

    /// How many events the attempt of a subscription at an event has published.
    fn published_by(&self, (subscription, event): (usize, usize)) -> u32 {
        let own = self.events.iter().filter(|published| {
            let by = published.cause.map(|(one, event, _)| (one, event));
            by == Some((subscription, event)) && self.surely_accepted(published.call)
        });
        own.count() as u32
    }

    /// Expects an event at a subscription, where that wants it and may be there.
    pub(super) fn expect(&mut self, subscription: usize, event: usize) {
        let Event { call, raised, .. } = self.events[event];
        let known = &self.subscriptions[subscription];
        let subscriber = &self.program.subscribers[subscription];
        if known.subscribing.is_none() || known.is_gone || !subscriber.wants(raised.kind) {
            return;
        }
        let is_filtered = subscriber.passes_over == Some(raised.aggregate);
        self.deliveries.push(Delivery {
            subscription,
            event,
            call,
            aggregate: raised.aggregate,
            is_sure: known.subscribed.is_some() && !known.unsubscribing,
            state: if is_filtered {
                State::Filtered
            } else {
                State::Waiting
            },
            attempts: 0,
            has_begun: false,
            is_replay: false,
            may_be_passed_over: false,
            may_be_cut_off: false,
            began: self.now,
            ended: self.now,
            due: (self.now, self.now),
            outcomes: Vec::new(),
            ended_step: self.step,
        });
    }

    pub(super) fn published(&mut self, call: usize, answer: &Answer) -> Verdict {
        self.calls[call].answer = Some(answer.clone());
        match answer {
            Answer::Accepted(ids) => return self.accepted(call, ids),
            // It was accepted or not: the deliveries will tell.
            Answer::Dropped => return Ok(()),
            Answer::Full(given_back) => self.check_full(call, *given_back)?,
            Answer::TooLarge => self.check_too_large(call)?,
            Answer::Stopped if self.stopping.is_some() => {}
            Answer::Stopped => return self.refuse("L2", "a running bus said it is stopped".into()),
            Answer::Failed(error) => {
                return self.refuse("P2", format!("call {call} failed: {error}"));
            }
        }
        if self.calls[call].is_proved {
            let why = format!("call {call} was refused, and its events were delivered");
            return self.refuse("P4", why);
        }
        self.give_up(|delivery| delivery.call == call);
        Ok(())
    }

    pub(super) fn give_up(&mut self, which: impl Fn(&Delivery) -> bool) {
        for delivery in self.deliveries.iter_mut().filter(|it| which(it)) {
            if delivery.is_open() || delivery.state == State::Filtered {
                (delivery.state, delivery.ended_step) = (State::Gone, self.step);
            }
        }
    }

    fn accepted(&mut self, call: usize, ids: &[EventId]) -> Verdict {
        let Call {
            first,
            count,
            is_inside,
            after_stopping,
            ..
        } = self.calls[call];
        if ids.len() != count {
            let why = format!("{} receipts for {count} events", ids.len());
            return self.refuse("P2", why);
        }
        if after_stopping && !is_inside && self.is_exact() {
            return self.refuse("L2", format!("call {call} was accepted by a stopping bus"));
        }
        for (event, id) in (first..).zip(ids) {
            let known = self.events[event].told.map(|told| told.id);
            if known.is_some_and(|known| known != *id) {
                let why = format!("the receipt of event {event} names another event");
                return self.refuse("P2", why);
            }
            self.events[event].id = Some(*id);
        }
        self.check_fits(call)?;
        self.check_room()
    }

    /// Checks what an envelope says of its causes (P9).
    pub(super) fn check_told(&mut self, event: usize, told: Told) -> Verdict {
        let known = &self.events[event];
        if known.id.is_some_and(|id| id != told.id) {
            let why = format!("event {event} has another id than its receipt");
            return self.refuse("P2", why);
        }
        if known.told.is_some_and(|before| before != told) {
            return self.refuse("P9", format!("event {event} has changed"));
        }
        let expected = match known.cause {
            None => Told {
                id: told.id,
                causation: None,
                correlation: told.id.into(),
            },
            Some((subscription, cause, number)) => {
                let Some(cause) = self.events[cause].told else {
                    return self.refuse("P9", format!("event {event} came before its cause"));
                };
                Told {
                    id: EventId::derived(cause.id, &handler::name(subscription), number),
                    causation: Some(cause.id),
                    correlation: cause.correlation,
                }
            }
        };
        if told != expected {
            let why = format!("event {event} says {told:?}, and not {expected:?}");
            return self.refuse("P9", why);
        }
        self.events[event].told = Some(told);
        Ok(())
    }

    /// Learns from the first attempt of a delivery which events were accepted before its own (P3).
    pub(super) fn learn_order(&mut self, delivery: &Delivery) -> Verdict {
        let subscriber = &self.program.subscribers[delivery.subscription];
        if subscriber.ordering == Ordering::None {
            return Ok(());
        }
        let begun = |other: &&Delivery| {
            let is_other = other.event != delivery.event && other.has_begun;
            is_other && self.same_lane(delivery, other)
        };
        let earlier: Vec<usize> = self
            .deliveries
            .iter()
            .filter(begun)
            .map(|other| other.event)
            .collect();
        for before in earlier {
            let call = self.events[before].call;
            let in_batch = call == delivery.call && before < delivery.event;
            if !in_batch && !self.order.learn(call, delivery.call) {
                let why = format!(
                    "{} began after event {before}, which was accepted later, or apart from its batch",
                    self.name(delivery)
                );
                return self.refuse("P3", why);
            }
        }
        Ok(())
    }
}
