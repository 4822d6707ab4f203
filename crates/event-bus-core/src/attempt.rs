//! One run of a handler, and what follows from its end.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use domain_events::{
    AttemptInfo, BoxFuture, DeadLetterReason, DecodeError, DeliveryOutcome, EventEnvelope,
    HandlerContext, HandlerError, RetryPolicy, Verdict,
};
use tokio::time::Instant;

use crate::{
    dead_letters::cut,
    engine::{Engine, discard},
    inside::{self, BusId},
    record::Record,
    seat::Worker,
    subscribed::Subscribed,
};

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Handled,
    /// The filter did not let it pass.
    Unwanted,
    Skipped(String),
    Failed(Verdict, String),
    Unreadable(String),
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Done(DeliveryOutcome),
    Retry(Duration, String),
    GiveUp(DeadLetterReason, String),
}

/// Decides what follows attempt `attempt` (from 1) of a delivery first attempted `age` ago;
/// `random` is in `[0, 1)` (F2, F3).
pub(crate) fn decide(
    ended: Ended,
    policy: &RetryPolicy,
    attempt: u32,
    age: Duration,
    random: f64,
) -> Decision {
    let (delay, error) = match ended {
        Ended::Handled => return Decision::Done(DeliveryOutcome::Handled),
        Ended::Skipped(_) | Ended::Unwanted => return Decision::Done(DeliveryOutcome::Skipped),
        Ended::Unreadable(error) => return Decision::GiveUp(DeadLetterReason::Unreadable, error),
        Ended::Failed(Verdict::Permanent, error) => {
            return Decision::GiveUp(DeadLetterReason::Permanent, error);
        }
        Ended::Failed(Verdict::RetryAfter(delay), error) => {
            (policy.allows(attempt, age, delay).then_some(delay), error)
        }
        Ended::Failed(Verdict::Transient | Verdict::Skip, error) => {
            (policy.delay_after(attempt, age, random), error)
        }
    };
    match delay {
        Some(delay) => Decision::Retry(delay, error),
        None => Decision::GiveUp(DeadLetterReason::AttemptsExhausted, error),
    }
}

/// What is given to a handler.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) envelope: &'a Arc<EventEnvelope>,
    /// The number of the attempt, from 1.
    pub(crate) attempt: u32,
    pub(crate) may_be_repeat: bool,
    pub(crate) is_replay: bool,
}

impl<'a> Given<'a> {
    /// The first attempt of a delivery in memory.
    pub(crate) fn of(record: &'a Record) -> Self {
        Self {
            envelope: &record.envelope,
            attempt: 1,
            may_be_repeat: record.marks.may_be_repeat,
            is_replay: record.marks.is_replay,
        }
    }
}

/// An attempt that was made.
pub(crate) struct Attempt {
    pub(crate) ended: Ended,
    pub(crate) end: Instant,
    pub(crate) took: Duration,
}

/// Runs one attempt: catches panics, stops it at its time-out (F1). Calls `before_waiting` where the
/// handler does not come to its end at once.
pub(crate) async fn attempt(
    engine: &Arc<Engine>,
    worker: &Worker,
    subscribed: &Subscribed,
    given: Given<'_>,
    began: Instant,
    before_waiting: impl FnOnce(),
) -> Attempt {
    let Given {
        envelope, attempt, ..
    } = given;
    let info = AttemptInfo {
        subscription: subscribed.name_for(worker.number),
        attempt,
        may_be_repeat: given.may_be_repeat,
        is_replay: given.is_replay,
    };
    let publisher = Arc::clone(&worker.publisher);
    let cx = HandlerContext::new(Arc::clone(envelope), info, publisher);
    let running = engine.lifecycle.begin_attempt(worker.seat());
    let ended = run(engine.id, subscribed, envelope, cx, before_waiting).await;
    running.end();
    let end = Instant::now();
    let took = end.saturating_duration_since(began);
    let meters = subscribed.meters.of(worker.number);
    meters.handling.record(took);
    if attempt > 1 {
        meters.retries.up();
    }
    match &ended {
        Ended::Failed(_, error) | Ended::Unreadable(error) => {
            meters.failed_attempts.up();
            log::debug!(
                "attempt failed: subscription={} event.id={} attempt={attempt}: {error}",
                subscribed.name(),
                envelope.id(),
            );
        }
        Ended::Skipped(reason) => log::debug!(
            "delivery skipped: subscription={} event.id={}: {reason}",
            subscribed.name(),
            envelope.id(),
        ),
        Ended::Handled | Ended::Unwanted => {}
    }
    Attempt { ended, end, took }
}

async fn run(
    bus: BusId,
    subscribed: &Subscribed,
    envelope: &Arc<EventEnvelope>,
    cx: HandlerContext,
    before_waiting: impl FnOnce(),
) -> Ended {
    let subscription = &subscribed.subscription;
    let begin = || {
        if !subscription.wants(envelope)? {
            return Ok(None);
        }
        subscription.call(Arc::clone(envelope), cx).map(Some)
    };
    let begin = || inside::enter(bus, begin);
    let mut handling = match catch_unwind(AssertUnwindSafe(begin)) {
        Err(panic) => return panicked(panic),
        Ok(Err(error)) => return unreadable(&error),
        Ok(Ok(None)) => return Ended::Unwanted,
        Ok(Ok(Some(future))) => Guarded {
            bus,
            future: Some(future),
        },
    };
    // Most handlers never wait, so the timer is made only for those that do.
    if let Poll::Ready(ended) = poll_once(&mut handling).await {
        return ended;
    }
    before_waiting();
    let limit = subscription.attempt_timeout();
    match tokio::time::timeout(limit, &mut handling).await {
        Ok(ended) => ended,
        Err(_) => Ended::Failed(
            Verdict::Transient,
            format!("ran past its time-out of {limit:?}"),
        ),
    }
}

fn unreadable(error: &DecodeError) -> Ended {
    Ended::Unreadable(error.to_string())
}

async fn poll_once(handling: &mut Guarded) -> Poll<Ended> {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *handling).poll(cx))).await
}

type Future = BoxFuture<'static, Result<(), HandlerError>>;

/// A handler's future whose panics are ends, also those of its drop.
struct Guarded {
    bus: BusId,
    future: Option<Future>,
}

impl std::future::Future for Guarded {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let bus = self.bus;
        let Some(future) = self.future.as_mut() else {
            return Poll::Pending;
        };
        // The error is the user's too, and so is what its text and its drop do.
        let poll = || inside::enter(bus, || future.as_mut().poll(cx).map(Ended::from));
        let ended = match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(ended)) => ended,
            Err(panic) => panicked(panic),
        };
        Poll::Ready(self.discard().unwrap_or(ended))
    }
}

impl Guarded {
    /// Drops the future. A panic of its drop is the end of the attempt.
    fn discard(&mut self) -> Option<Ended> {
        let future = self.future.take();
        let discard = || inside::enter(self.bus, || drop(future));
        catch_unwind(AssertUnwindSafe(discard)).err().map(panicked)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.discard();
    }
}

impl From<Result<(), HandlerError>> for Ended {
    fn from(result: Result<(), HandlerError>) -> Self {
        let Err(error) = result else {
            return Self::Handled;
        };
        let text = cut(error.to_string());
        match error.verdict() {
            Verdict::Skip => Self::Skipped(text),
            verdict => Self::Failed(verdict, text),
        }
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Ended {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    let message = cut(format!("panicked: {message}"));
    discard(panic);
    Ended::Failed(Verdict::Transient, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide_on(verdict: Verdict, attempt: u32) -> Decision {
        let ended = Ended::Failed(verdict, "no".to_owned());
        decide(
            ended,
            &RetryPolicy::exponential(),
            attempt,
            Duration::ZERO,
            0.0,
        )
    }

    #[test]
    fn f2_each_verdict_has_its_consequence() {
        use DeadLetterReason::{AttemptsExhausted, Permanent};
        let no = || "no".to_owned();
        let after = Duration::from_millis(100);
        assert_eq!(
            decide_on(Verdict::Transient, 1),
            Decision::Retry(after, no())
        );
        assert_eq!(
            decide_on(Verdict::Permanent, 1),
            Decision::GiveUp(Permanent, no())
        );
        let hour = Duration::from_secs(3600);
        assert_eq!(
            decide_on(Verdict::RetryAfter(hour), 3),
            Decision::Retry(hour, no())
        );
        assert_eq!(
            decide_on(Verdict::RetryAfter(hour), 4),
            Decision::GiveUp(AttemptsExhausted, no())
        );
    }
}
