//! One run of a handler, and what follows from its end.

use std::{sync::Arc, time::Duration};

use domain_events::{
    AttemptInfo, AttemptResult, Cancellation, DeadLetterReason, DecodeError, DeliveryOutcome,
    EventEnvelope, HandlerContext, HandlerError, PauseReason, ProcessingOutcome, RetryPolicy,
    Timestamp, Verdict, Work,
};
use tokio::time::Instant;

use crate::{
    dead_letters::cut,
    engine::Engine,
    guarded::{self, Fault, Guarded},
    off_worker,
    record::Record,
    say::say,
    seat::Worker,
    starts,
    subscribed::Subscribed,
    transactional::{self, Turn},
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
    /// The event has a newer schema than this program knows (F7).
    Newer(String),
    /// So many unclean ends in a row have found the delivery running (F4).
    Crashed(u32),
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Done(DeliveryOutcome),
    Retry(Duration, String),
    /// The subscription is paused, and the delivery waits with the others.
    Pause(PauseReason),
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
        Ended::Newer(_) => return Decision::Pause(PauseReason::NewerSchema),
        Ended::Crashed(ends) => {
            return Decision::GiveUp(DeadLetterReason::Crashed, crashed(ends));
        }
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
    /// Held until its end was acted on, where it was made in a transaction of the store.
    pub(crate) turn: Option<Turn>,
}

/// Runs one attempt: catches panics, stops it at its time-out (F1). Calls `before_waiting` where the
/// handler does not come to its end at once.
pub(crate) async fn attempt(
    engine: &Arc<Engine>,
    worker: &Worker,
    subscribed: &Arc<Subscribed>,
    given: Given<'_>,
    began: Instant,
    mut before_waiting: impl FnMut(),
) -> Attempt {
    let mut started = None;
    if given.may_be_repeat {
        // Whoever replays it wants it called.
        if let Some(ends) = starts::too_many(engine, subscribed, given.envelope)
            && !given.is_replay
        {
            let (ended, end) = (Ended::Crashed(ends), Instant::now());
            let took = Duration::ZERO;
            return Attempt {
                ended,
                end,
                took,
                turn: None,
            };
        }
        before_waiting();
        started = starts::record(engine, subscribed, [given.envelope]).await;
    }
    let cancellation = worker.cancellation();
    let cx = context(worker, subscribed, given, began, &cancellation);
    let running = engine
        .lifecycle
        .begin_attempt(worker.seat(), 1, &cancellation);
    let (ended, turn) = run(
        engine,
        subscribed,
        given.envelope,
        cx,
        &cancellation,
        before_waiting,
    )
    .await;
    running.end();
    drop(started);
    let end = Instant::now();
    let took = end.saturating_duration_since(began);
    note(engine, worker, subscribed, given, &ended, took);
    Attempt {
        ended,
        end,
        took,
        turn,
    }
}

/// What a handler is told of its attempt.
pub(crate) fn context(
    worker: &Worker,
    subscribed: &Subscribed,
    given: Given<'_>,
    began: Instant,
    cancellation: &Cancellation,
) -> HandlerContext {
    let limit = subscribed.subscription.attempt_timeout();
    let info = AttemptInfo {
        subscription: subscribed.name_for(worker.number),
        attempt: given.attempt,
        may_be_repeat: given.may_be_repeat,
        is_replay: given.is_replay,
        deadline: began.into_std().checked_add(limit),
    };
    let publisher = Arc::clone(&worker.publisher);
    HandlerContext::new(
        Arc::clone(given.envelope),
        info,
        cancellation.clone(),
        publisher,
    )
}

/// Notes an attempt that has ended: counts it, keeps it, and says what went wrong.
pub(crate) fn note(
    engine: &Engine,
    worker: &Worker,
    subscribed: &Subscribed,
    given: Given<'_>,
    ended: &Ended,
    took: Duration,
) {
    let Given {
        envelope, attempt, ..
    } = given;
    let meters = subscribed.meters.of(worker.number);
    meters.handling.record(took);
    if attempt > 1 {
        meters.retries.up();
    }
    match ended {
        Ended::Failed(_, error) | Ended::Unreadable(error) => {
            meters.failed_attempts.up();
            say!(debug, "attempt failed", "subscription" = subscribed.name(),
                "event.id" = envelope.id(), "attempt" = attempt; error);
        }
        Ended::Skipped(reason) => {
            say!(debug, "delivery skipped", "subscription" = subscribed.name(),
                "event.id" = envelope.id(); reason);
        }
        Ended::Handled | Ended::Unwanted | Ended::Newer(_) | Ended::Crashed(_) => {}
    }
    engine
        .processing
        .keep(ended.is_success(), || ProcessingOutcome {
            subscription: Arc::clone(subscribed.name()),
            event_id: envelope.id(),
            position: envelope.position(),
            attempt,
            result: ended.result(),
            ended_at: Timestamp::now(),
            took,
        });
}

async fn run(
    engine: &Arc<Engine>,
    subscribed: &Arc<Subscribed>,
    envelope: &Arc<EventEnvelope>,
    cx: HandlerContext,
    cancellation: &Cancellation,
    before_waiting: impl FnOnce(),
) -> (Ended, Option<Turn>) {
    let (bus, subscription) = (engine.id, &subscribed.subscription);
    let limit = subscription.attempt_timeout();
    let begin = || {
        if !subscription.wants(envelope)? {
            return Ok(None);
        }
        subscription.call(Arc::clone(envelope), cx).map(Some)
    };
    let ended = match guarded::call(bus, begin) {
        Err(text) => Err(Fault::Panicked(text)),
        Ok(Err(error)) => Ok(Ended::unreadable(&error)),
        Ok(Ok(None)) => Ok(Ended::Unwanted),
        Ok(Ok(Some(Work::Async(future)))) => {
            let handling = Guarded::new(bus, future, Ended::from);
            handling.within(limit, before_waiting).await
        }
        Ok(Ok(Some(Work::Blocking(work)))) => {
            before_waiting();
            Ok(off_worker::run(bus, subscribed, work, cancellation).await)
        }
        Ok(Ok(Some(Work::Transactional(work)))) => {
            before_waiting();
            let runs = vec![vec![(Arc::clone(envelope), work)]];
            let (mut ends, turn) = transactional::make(engine, subscribed, runs).await;
            let ended = ends.pop().flatten();
            return (
                ended.unwrap_or_else(|| Ended::failed(NOT_MADE.to_owned())),
                Some(turn),
            );
        }
    };
    let ended = ended.unwrap_or_else(|fault| {
        if fault == Fault::OverTime {
            cancellation.cancel();
        }
        Ended::failed(fault.text(limit))
    });
    (ended, None)
}

/// The error of a delivery of which the store has said nothing.
const NOT_MADE: &str = "the transaction ended without the delivery";

impl Ended {
    pub(crate) fn unreadable(error: &DecodeError) -> Self {
        let text = cut(error.to_string());
        match error {
            DecodeError::Newer { .. } => Self::Newer(text),
            _ => Self::Unreadable(text),
        }
    }

    /// A handler that has no result has failed: it may have one the next time.
    pub(crate) fn failed(error: String) -> Self {
        Self::Failed(Verdict::Transient, error)
    }

    pub(crate) fn is_success(&self) -> bool {
        matches!(self, Self::Handled | Self::Unwanted | Self::Skipped(_))
    }

    fn result(&self) -> AttemptResult {
        match self {
            Self::Handled => AttemptResult::Handled,
            Self::Unwanted => AttemptResult::Skipped(None),
            Self::Skipped(reason) => AttemptResult::Skipped(Some(reason.clone())),
            Self::Failed(_, error) => AttemptResult::Failed(error.clone()),
            Self::Unreadable(error) | Self::Newer(error) => {
                AttemptResult::Unreadable(error.clone())
            }
            Self::Crashed(ends) => AttemptResult::Failed(crashed(*ends)),
        }
    }
}

fn crashed(unclean_ends: u32) -> String {
    format!("it was running at {unclean_ends} unclean ends in a row")
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
