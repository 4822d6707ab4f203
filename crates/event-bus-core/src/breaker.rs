//! Leaving a failing handler alone, and probing whether it is well again (F8).
//!
//! A tripped subscription is passed over like a paused one, so that what it would be given waits in
//! its backlogs. One of those at a time is let go as the probe.

use std::sync::{Arc, atomic::Ordering};

use domain_events::{CircuitBreaker, Verdict};

use crate::{
    after::After,
    attempt::Ended,
    blocked::Stand,
    engine::Engine,
    mailboxes::{BacklogStart, MailboxId},
    say::say,
    state::State,
    subscribed::Subscribed,
    sync::{AtomicUsize, Mutex, lock},
    timers::Due,
};

/// The breaker of one subscription.
pub(crate) struct Breaker {
    policy: CircuitBreaker,
    /// How many attempts have failed in a row.
    failures: AtomicUsize,
    /// Changed in steps of the bus only.
    stage: Mutex<Stage>,
    /// The mailbox that was the probe the last time; as `stage`.
    last_probe: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not tripped.
    Closed,
    /// It has, and nothing goes until a timer says so.
    Open,
    /// The next delivery that could be made is the probe.
    Ready,
    /// The backlog of this mailbox is the probe.
    Probing(MailboxId),
}

impl Breaker {
    pub(crate) fn new(policy: CircuitBreaker) -> Self {
        Self {
            policy,
            failures: AtomicUsize::new(0),
            stage: Mutex::new(Stage::Closed),
            last_probe: AtomicUsize::new(0),
        }
    }

    fn stage(&self) -> Stage {
        *lock(&self.stage)
    }

    fn set(&self, stage: Stage) {
        *lock(&self.stage) = stage;
    }

    pub(crate) fn is_tripped(&self) -> bool {
        self.stage() != Stage::Closed
    }

    /// Whether the backlog of a mailbox is the probe.
    pub(crate) fn is_probe(&self, mailbox: MailboxId) -> bool {
        self.stage() == Stage::Probing(mailbox)
    }

    /// Whether the backlog of a mailbox may go: as the probe, where there is to be one.
    pub(crate) fn lets(&self, mailbox: MailboxId) -> bool {
        match self.stage() {
            Stage::Closed => true,
            Stage::Open => false,
            Stage::Ready => {
                self.set(Stage::Probing(mailbox));
                self.last_probe.store(mailbox, Ordering::Relaxed);
                true
            }
            Stage::Probing(probe) => probe == mailbox,
        }
    }
}

/// Whether an end speaks for the handler, against it, or only of its event.
pub(crate) fn speaks(ended: &Ended) -> Option<bool> {
    match ended {
        Ended::Handled | Ended::Skipped(_) => Some(true),
        Ended::Failed(Verdict::Transient | Verdict::RetryAfter(_) | Verdict::Skip, _) => {
            Some(false)
        }
        Ended::Failed(Verdict::Permanent, _)
        | Ended::Unreadable(_)
        | Ended::Newer(_)
        | Ended::Crashed(_)
        | Ended::Unwanted => None,
    }
}

/// Notes what the end of an attempt that was no probe has said; trips the breaker where it was one
/// failure in a row too many.
pub(crate) fn note(engine: &Engine, subscribed: &Arc<Subscribed>, speaks: Option<bool>) {
    let Some(breaker) = &subscribed.breaker else {
        return;
    };
    match speaks {
        None => {}
        Some(true) => breaker.failures.store(0, Ordering::Release),
        Some(false) => {
            let failures = breaker.failures.fetch_add(1, Ordering::AcqRel) + 1;
            if failures >= breaker.policy.failures() as usize
                && engine.step(|state, after| state.trip(subscribed, after))
            {
                let (name, pause) = (subscribed.name(), breaker.policy.pause());
                say!(
                    warn,
                    "circuit breaker tripped",
                    "subscription" = name,
                    "failures" = failures,
                    "pause.ms" = pause.as_millis()
                );
            }
        }
    }
}

/// Closes the breaker, as the probe was handled.
pub(crate) fn close(engine: &Engine, subscribed: &Arc<Subscribed>) {
    engine.step(|state, after| state.close_breaker(subscribed, after));
    say!(
        info,
        "circuit breaker closed",
        "subscription" = subscribed.name()
    );
}

impl State {
    /// Returns whether the breaker had not tripped before.
    fn trip(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) -> bool {
        let breaker = subscribed.breaker.as_ref();
        let Some(breaker) = breaker.filter(|it| !it.is_tripped()) else {
            return false;
        };
        self.leave_alone(breaker, subscribed, after);
        true
    }

    fn leave_alone(&mut self, breaker: &Breaker, subscribed: &Arc<Subscribed>, after: &mut After) {
        breaker.set(Stage::Open);
        if !self.is_closed {
            after
                .due
                .push(Due::probe(breaker.policy.pause(), subscribed));
        }
    }

    /// Has the next delivery be the probe, now that the pause is over.
    pub(crate) fn probe_is_due(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) {
        let breaker = subscribed.breaker.as_ref();
        if let Some(breaker) = breaker.filter(|it| it.stage() == Stage::Open) {
            breaker.set(Stage::Ready);
            self.let_held_go(subscribed, after);
        }
    }

    /// A probe that failed does not count: its delivery is held, and the handler left alone again.
    pub(crate) fn probe_failed(&mut self, start: &BacklogStart, after: &mut After) {
        let BacklogStart {
            mailbox,
            subscribed,
            ..
        } = start;
        if let Some(breaker) = &subscribed.breaker {
            self.leave_alone(breaker, subscribed, after);
        }
        if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
            let mailboxes = &mut pipeline.mailboxes;
            mailboxes.set_stand(*mailbox, subscribed, Stand::Held);
            if let Some(blocked) = mailboxes.blocked(*mailbox, subscribed) {
                after.told.extend(blocked.note_rest());
            }
        }
        after.quiet = true;
        self.drop_if_removed(*mailbox, subscribed, after);
    }

    /// Looks for another probe, where the backlog that was it does not go on.
    pub(crate) fn probe_over(&mut self, start: &BacklogStart, after: &mut After) {
        let BacklogStart {
            mailbox,
            subscribed,
            ..
        } = start;
        let breaker = subscribed.breaker.as_ref();
        let Some(breaker) = breaker.filter(|it| it.is_probe(*mailbox)) else {
            return;
        };
        let pipeline = self.pipelines.get_mut(subscribed.pipeline);
        let blocked = pipeline.and_then(|it| it.mailboxes.blocked(*mailbox, subscribed));
        let goes_on = |stand| matches!(stand, Stand::Ready | Stand::Running | Stand::AfterRun);
        if !blocked.is_some_and(|blocked| goes_on(blocked.stand())) {
            breaker.set(Stage::Ready);
            self.let_held_go(subscribed, after);
        }
    }

    fn close_breaker(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) {
        if let Some(breaker) = &subscribed.breaker {
            breaker.failures.store(0, Ordering::Release);
            breaker.set(Stage::Closed);
            self.let_held_go(subscribed, after);
        }
    }

    /// Lets the backlogs go that are held, as far as they may; where one is to be the probe, they take
    /// turns, so that an event that always fails is not the only one asked.
    pub(crate) fn let_held_go(&mut self, subscribed: &Arc<Subscribed>, after: &mut After) {
        let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) else {
            return;
        };
        let mut ready = 0;
        let mut places = pipeline.mailboxes.places(subscribed);
        if let Some(breaker) = &subscribed.breaker {
            let last = breaker.last_probe.load(Ordering::Relaxed);
            places.sort_by_key(|&mailbox| (mailbox <= last, mailbox));
        }
        for mailbox in places {
            let held = pipeline
                .mailboxes
                .blocked(mailbox, subscribed)
                .is_some_and(|blocked| blocked.stand() == Stand::Held);
            ready += usize::from(held && pipeline.mailboxes.go(mailbox, subscribed));
        }
        pipeline.wake_workers(ready, after);
    }
}
