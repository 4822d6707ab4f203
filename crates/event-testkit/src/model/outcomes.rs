//! What the promises say of being told: receipts (P2), and the figures of a quiet bus (D1, N1).

use domain_events::{BusStatistics, DeliveryOutcome, FailurePolicy, SubscriptionStatistics};

use super::{
    delivery::{Delivery, State},
    handler,
    known::Model,
    rules::Verdict,
    trace::Answer,
};

impl Model<'_> {
    pub(super) fn outcomes(
        &mut self,
        call: usize,
        outcomes: &[(usize, DeliveryOutcome)],
    ) -> Verdict {
        let place = self.asked.iter().position(|asked| asked.0 == call);
        let Some((_, event, since)) = place.map(|place| self.asked.swap_remove(place)) else {
            return self.refuse("P2", format!("call {call} was answered, not asked"));
        };
        for one in 0..self.subscriptions.len() {
            let told: Vec<_> = outcomes.iter().filter(|told| told.0 == one).collect();
            let delivery = self.find(one, event).map(|place| &self.deliveries[place]);
            let is_told_right = match (delivery, &told[..]) {
                (None, []) => true,
                (Some(delivery), []) => {
                    let is_missed = delivery.is_sure && delivery.state != State::Filtered;
                    // Gone is what was removed, or filtered by an idle bus.
                    !is_missed || delivery.state == State::Gone
                }
                (Some(delivery), [(_, outcome)]) => self.may_tell(delivery, *outcome, since),
                _ => false,
            };
            if !is_told_right {
                let state = delivery.map(|delivery| delivery.state);
                let told: Vec<_> = told.iter().map(|told| told.1).collect();
                let why = format!("s{one} at event {event}: told {told:?}, and it is {state:?}");
                return self.refuse("P2", why);
            }
        }
        Ok(())
    }

    /// Whether a receipt that was asked at step `since` may tell this outcome of a delivery.
    fn may_tell(&self, delivery: &Delivery, outcome: DeliveryOutcome, since: usize) -> bool {
        let subscription = &self.subscriptions[delivery.subscription];
        let is_unseen = matches!(delivery.state, State::Filtered | State::Gone);
        let may_rest = delivery.is_open()
            || delivery.may_be_cut_off
            || is_unseen
            || delivery.ended_step >= since;
        let behind = subscription.behind[usize::from(delivery.aggregate)];
        match outcome {
            DeliveryOutcome::Handled | DeliveryOutcome::Skipped if is_unseen => {
                self.is_filtered(delivery)
            }
            DeliveryOutcome::Handled | DeliveryOutcome::Skipped => {
                delivery.outcomes.last() == Some(&outcome)
            }
            DeliveryOutcome::Dead => delivery.outcomes.contains(&outcome),
            DeliveryOutcome::Stopped => {
                let may_stop = self.stopping.is_some() || subscription.unsubscribing;
                may_stop && may_rest
            }
            DeliveryOutcome::Parked => {
                let parks = self.policy(delivery) == FailurePolicy::ParkAggregate;
                parks && may_rest && behind.is_some_and(|step| step + 1 >= since)
            }
            DeliveryOutcome::Paused => {
                let was_paused = behind.is_some_and(|step| step + 1 >= since);
                may_rest && (subscription.rest.may_be_paused() || was_paused)
            }
        }
    }

    /// Checks the figures of a bus that is idle while no client runs.
    pub(super) fn quiet(&self, figures: &BusStatistics) -> Verdict {
        if let Some(pending) = self.first_pending() {
            let why = format!("{} was never delivered", self.name(pending));
            return self.refuse("D1", why);
        }
        self.check_calls_whole()?;
        let surely = |event: &usize| self.surely_accepted(self.events[*event].call);
        let perhaps = |event: &usize| {
            let answer = &self.calls[self.events[*event].call].answer;
            surely(event) || matches!(answer, Some(Answer::Dropped) | None)
        };
        let accepted = (0..self.events.len()).filter(surely).count() as u64;
        let most = (0..self.events.len()).filter(perhaps).count() as u64;
        if !(accepted..=most).contains(&figures.accepted) {
            let why = format!(
                "{accepted} to {most} were accepted, not {}",
                figures.accepted
            );
            return self.refuse("N1", why);
        }
        if figures.accepted + figures.recovered != figures.finished + figures.in_flight {
            let BusStatistics {
                accepted,
                finished,
                in_flight,
                ..
            } = figures;
            let why = format!("accepted {accepted}, finished {finished}, in flight {in_flight}");
            return self.refuse("N1", why);
        }
        self.check_in_flight(figures.in_flight)?;
        let mut each = figures.subscriptions.iter();
        each.try_for_each(|figures| self.check_subscription(figures))
    }

    /// Checks that of each call all events or none were delivered (P3, P4).
    fn check_calls_whole(&self) -> Verdict {
        let missed = self.deliveries.iter().find(|delivery| {
            let unseen = delivery.state == State::Gone && !delivery.has_begun;
            let known = &self.subscriptions[delivery.subscription];
            unseen
                && delivery.is_sure
                && !known.unsubscribing
                && !self.is_filtered(delivery)
                && self.surely_accepted(delivery.call)
        });
        match missed {
            Some(missed) => {
                let why = format!(
                    "{} was never delivered, others of its call were",
                    self.name(missed)
                );
                self.refuse("P3", why)
            }
            None => Ok(()),
        }
    }

    fn check_in_flight(&self, told: u64) -> Verdict {
        let mut least: Vec<usize> = Vec::new();
        let mut most: Vec<usize> = Vec::new();
        for delivery in &self.deliveries {
            let is_unseen = delivery.state == State::Filtered;
            if delivery.is_open() || is_unseen {
                most.push(delivery.event);
            }
            let there = !self.subscriptions[delivery.subscription].unsubscribing;
            let surely = delivery.is_sure && self.surely_accepted(delivery.call);
            if delivery.is_open() && !delivery.is_replay && surely && there {
                least.push(delivery.event);
            }
        }
        let distinct = |mut events: Vec<usize>| {
            events.sort_unstable();
            events.dedup();
            events.len() as u64
        };
        // A replay may count as an event of its own.
        let replays = |delivery: &&Delivery| delivery.is_open() && delivery.is_replay;
        let replays = self.deliveries.iter().filter(replays).count() as u64;
        let (least, most) = (distinct(least), distinct(most) + replays);
        if !(least..=most).contains(&told) {
            let why = format!("{told} events are in flight, and {least} to {most} rest");
            return self.refuse("N1", why);
        }
        Ok(())
    }

    fn check_subscription(&self, figures: &SubscriptionStatistics) -> Verdict {
        let of_name = |one: &usize| handler::name(*one) == *figures.name;
        let Some(one) = (0..self.subscriptions.len()).find(of_name) else {
            return self.refuse("N1", format!("nobody is called {:?}", figures.name));
        };
        let own = || self.deliveries.iter().filter(|it| it.subscription == one);
        let count = |states: &[State]| {
            let own = own().filter(|delivery| states.contains(&delivery.state));
            own.count() as u64
        };
        let filtered = own().filter(|it| self.is_filtered(it)).count() as u64;
        let known = &self.subscriptions[one];
        let handled = count(&[State::Handled]);
        let skipped = count(&[State::Skipped]);
        // Replayed, it is dead no more.
        let (dead, discarded) = (count(&[State::Dead]), count(&[State::Discarded]));
        let done = handled + skipped;
        let told = [
            (figures.handled, handled, handled + filtered),
            (figures.skipped, skipped, skipped + filtered),
            (figures.handled + figures.skipped, done, done + filtered),
            (figures.dead, dead, dead),
            (figures.discarded, discarded, discarded),
            (
                figures.failed_attempts,
                known.failed_attempts,
                known.failed_attempts,
            ),
            (figures.retries, known.retries, known.retries),
            (
                u64::from(figures.paused.is_some()),
                u64::from(known.rest.is_paused()),
                u64::from(known.rest.may_be_paused()),
            ),
        ];
        let told = told.into_iter().chain(self.open_figures(one, figures));
        for (told, least, most) in told {
            if !(least..=most).contains(&told) {
                let why = format!(
                    "the figures {figures:?} do not agree: {told} is not {least} to {most}"
                );
                return self.refuse("N1", why);
            }
        }
        Ok(())
    }

    /// What the figures tell of deliveries that are not over, each with the least and the most it may be.
    fn open_figures(&self, one: usize, figures: &SubscriptionStatistics) -> [(u64, u64, u64); 3] {
        let own = || self.deliveries.iter().filter(|it| it.subscription == one);
        let is_sure = |it: &&Delivery| it.is_sure && self.surely_accepted(it.call);
        let runs = |it: &&Delivery| it.state == State::Running;
        let waits = |it: &&Delivery| it.is_open() && it.state != State::Running;
        let running = own().filter(runs).count() as u64;
        let least = own().filter(waits).filter(is_sure).count() as u64;
        // What the filter passes over may still have to be looked at.
        let may_wait = |it: &&Delivery| waits(it) || it.state == State::Filtered;
        let most = own().filter(may_wait).count() as u64;
        let given_up = figures.dead + figures.discarded;
        let ended = figures.handled + figures.skipped + given_up + figures.abandoned;
        let waiting = figures.lag() - figures.running + figures.abandoned;
        let gone = own().filter(|it| it.state == State::Gone).count() as u64;
        [
            (
                figures.matching,
                ended + figures.lag(),
                ended + figures.lag(),
            ),
            (figures.running, running, running),
            (waiting, least, most + gone),
        ]
    }
}
