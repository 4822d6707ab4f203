//! One run of a handler, and what follows from its end.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use domain_events::{
    AttemptInfo, BoxFuture, DeadLetterReason, DeliveryOutcome, EventEnvelope, HandlerContext,
    HandlerError, RetryPolicy, Verdict,
};

use crate::{
    dead_letters::cut,
    engine::{Engine, discard},
    inside::{self, BusId},
    subscriptions::Subscribed,
};

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Handled,
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
        Ended::Skipped(_) => return Decision::Done(DeliveryOutcome::Skipped),
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

/// Runs one attempt: catches panics, stops it at its time-out (F1). Also returns when it ended.
pub(crate) async fn attempt(
    engine: &Arc<Engine>,
    subscribed: &Subscribed,
    envelope: &Arc<EventEnvelope>,
    attempt: u32,
    may_be_repeat: bool,
    began: Instant,
) -> (Ended, Instant) {
    let info = AttemptInfo {
        subscription: Arc::clone(subscribed.name()),
        attempt,
        may_be_repeat,
        is_replay: false,
    };
    let publisher = Arc::clone(engine) as _;
    let cx = HandlerContext::new(Arc::clone(envelope), info, publisher);
    let running = engine.lifecycle.begin_attempt();
    let ended = run(engine.id, subscribed, Arc::clone(envelope), cx).await;
    running.end();
    let now = Instant::now();
    subscribed.meters.handling.record(now - began);
    if attempt > 1 {
        subscribed.meters.retries.up();
    }
    if let Ended::Failed(_, error) | Ended::Unreadable(error) = &ended {
        subscribed.meters.failed_attempts.up();
        let (name, id) = (subscribed.name(), envelope.id());
        log::debug!("attempt failed: subscription={name} event.id={id} attempt={attempt}: {error}");
    }
    (ended, now)
}

async fn run(
    bus: BusId,
    subscribed: &Subscribed,
    envelope: Arc<EventEnvelope>,
    cx: HandlerContext,
) -> Ended {
    let subscription = &subscribed.subscription;
    let call = || inside::enter(bus, || subscription.call(envelope, cx));
    let mut handling = match catch_unwind(AssertUnwindSafe(call)) {
        Err(panic) => return panicked(panic),
        Ok(Err(unreadable)) => return Ended::Unreadable(unreadable.to_string()),
        Ok(Ok(future)) => Guarded {
            bus,
            future: Some(future),
        },
    };
    // Most handlers never wait, so the timer is made only for those that do.
    if let Poll::Ready(ended) = poll_once(&mut handling).await {
        return ended;
    }
    let limit = subscription.attempt_timeout();
    match tokio::time::timeout(limit, &mut handling).await {
        Ok(ended) => ended,
        Err(_) => Ended::Failed(
            Verdict::Transient,
            format!("ran past its time-out of {limit:?}"),
        ),
    }
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
