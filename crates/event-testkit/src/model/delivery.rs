//! One delivery as the model knows it.

use std::time::Duration;

use domain_events::DeliveryOutcome;

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be attempted, or to be replayed.
    Waiting,
    Running,
    /// To be attempted again.
    Retrying,
    Handled,
    Skipped,
    Dead,
    Discarded,
    /// To be passed over by a filter, at a moment that nobody sees.
    Filtered,
    /// Nobody will make it: refused, unsubscribed, or cut off.
    Gone,
}

/// One event on its way to one subscription.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) subscription: usize,
    pub(super) event: usize,
    pub(super) call: usize,
    pub(super) aggregate: u8,
    /// Whether the subscription was there when the event was accepted, whenever that was.
    pub(super) is_sure: bool,
    pub(super) state: State,
    /// Attempts begun, of the replay where it is one.
    pub(super) attempts: u32,
    /// Whether it was ever attempted.
    pub(super) has_begun: bool,
    pub(super) is_replay: bool,
    /// Whether a round may have passed it over, as the subscription was behind.
    pub(super) may_be_passed_over: bool,
    /// Whether its last attempt may have been cut off by the stop, and not by its time-out.
    pub(super) may_be_cut_off: bool,
    /// When the last attempt began.
    pub(super) began: Duration,
    /// When the last attempt ended.
    pub(super) ended: Duration,
    /// The earliest and the latest moment at which the next attempt is due.
    pub(super) due: (Duration, Duration),
    /// The outcomes it has had.
    pub(super) outcomes: Vec<DeliveryOutcome>,
    /// The step at which it ended last.
    pub(super) ended_step: usize,
}

impl Delivery {
    pub(super) fn is_open(&self) -> bool {
        matches!(
            self.state,
            State::Waiting | State::Running | State::Retrying
        )
    }

    /// Whether it is an attempt that a round of its event makes.
    pub(super) fn runs_in_round(&self) -> bool {
        let first = self.state == State::Running && self.attempts == 1;
        first && !self.is_replay && !self.may_be_passed_over
    }

    /// Whether its subscription is behind on its aggregate because of it.
    pub(super) fn lags(&self) -> bool {
        let untouched = self.state == State::Waiting && self.attempts == 0 && !self.is_replay;
        let in_turn = untouched && !self.may_be_passed_over;
        self.is_open() && !in_turn && !self.runs_in_round()
    }
}
