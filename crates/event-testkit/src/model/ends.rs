//! What the promises say of waiting and of the end: idle (L3) and stopped (L2).

use domain_events::StopReport;

use super::{
    delivery::{Delivery, State},
    known::Model,
    rules::Verdict,
    trace::Answer,
};

impl Model<'_> {
    pub(super) fn idle(&mut self, call: usize) -> Verdict {
        let place = self.waits.iter().position(|wait| wait.0 == call);
        let was_idle = place.is_some_and(|place| self.waits.swap_remove(place).1);
        if self.stopping.is_some() {
            return Ok(());
        }
        if !was_idle && let Some(pending) = self.first_pending() {
            let why = format!("wait_idle returned before {}", self.name(pending));
            return self.refuse("L3", why);
        }
        self.settle_unseen();
        Ok(())
    }

    /// Settles what nobody sees but what an idle bus is done with: filtered deliveries, and
    /// dropped calls of which nothing came.
    fn settle_unseen(&mut self) {
        if self.first_pending().is_some() {
            return;
        }
        for subscription in &mut self.subscriptions {
            subscription.lingers = Default::default();
        }
        let settled: Vec<usize> = (0..self.deliveries.len())
            .filter(|&place| self.is_passed_over(&self.deliveries[place]))
            .collect();
        for place in settled {
            self.deliveries[place].state = State::Gone;
            self.deliveries[place].ended_step = self.step;
        }
    }

    fn is_passed_over(&self, delivery: &Delivery) -> bool {
        let rests = self.subscriptions[delivery.subscription]
            .rest
            .may_be_paused();
        let was_dropped = self.calls[delivery.call].answer == Some(Answer::Dropped);
        let unseen = was_dropped && !self.surely_accepted(delivery.call);
        let is_open = delivery.state == State::Filtered || (unseen && delivery.is_open());
        is_open && !rests && !self.is_parked(delivery)
    }

    pub(super) fn stopped(&mut self, report: &StopReport) -> Verdict {
        let runs = |delivery: &Delivery| delivery.state == State::Running;
        if let Some(running) = self.deliveries.iter().find(|one| runs(one)) {
            let why = format!("stop returned while {} runs", self.name(running));
            return self.refuse("L2", why);
        }
        if self.is_exact() {
            self.check_report(report)?;
        }
        self.is_stopped = true;
        Ok(())
    }

    fn check_report(&self, report: &StopReport) -> Verdict {
        let count = |which: &dyn Fn(&Delivery) -> bool| {
            let which = self.deliveries.iter().filter(|delivery| which(delivery));
            which.count() as u64
        };
        let filtered = count(&|delivery| self.is_filtered(delivery));
        let since = |ends: Option<u64>| ends.map_or(0, |ends| self.ends - ends);
        let drained = since(self.ends_at_stop).saturating_sub(self.cut_off.1);
        let most = since(self.stopping.map(|stopping| stopping.0)) + filtered;
        self.check_figure("drained", report.drained, (drained, most))?;
        let (cut_off, perhaps) = self.cut_off;
        self.check_figure("cut off", report.cut_off, (cut_off, cut_off + perhaps))?;
        let surely = |delivery: &Delivery| {
            let left = delivery.is_open() && delivery.is_sure;
            let there = !self.subscriptions[delivery.subscription].unsubscribing;
            left && there && self.surely_accepted(delivery.call)
        };
        let surely = count(&surely);
        // Who was removed meanwhile may have been counted before.
        let removed = |one: usize| self.subscriptions[one].unsubscribing;
        let most = count(&|delivery| delivery.is_open() || removed(delivery.subscription))
            + filtered
            + cut_off
            + perhaps;
        self.check_figure("abandoned", report.abandoned, (surely, most))?;
        self.check_figure("left in the log", report.left_in_log, (0, 0))
    }

    fn check_figure(&self, name: &str, told: u64, (least, most): (u64, u64)) -> Verdict {
        if (least..=most).contains(&told) {
            return Ok(());
        }
        let why = format!("the stop reports {told} {name}, and {least} to {most} were");
        self.refuse("L2", why)
    }
}
