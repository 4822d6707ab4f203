//! Handlers that do what the program says, and write it down.

use std::{sync::Arc, time::Duration};

use domain_events::{
    EventEnvelope, HandlerContext, HandlerError, Priority, RetryPolicy, Subscription,
};
use tokio::{task::yield_now, time::sleep};

use super::{
    client::Call,
    events::{Closed, Moved, Opened, content},
    play::Stage,
    program::{BASE, Behaviour, CAP, Finish, How, JITTER, Kind, Raised, TIMEOUT},
    trace::{Ended, Observed, Told},
};

/// The subscription of the program with this number.
pub(super) fn subscription(stage: &Arc<Stage>, number: usize) -> Subscription {
    let subscriber = &stage.program.subscribers[number];
    let name = name(number);
    let stage_of = || Arc::clone(stage);
    macro_rules! typed {
        ($event:ty) => {{
            let stage = stage_of();
            Subscription::from_fn(name, move |event: domain_events::Event<$event>, cx| {
                handle(Arc::clone(&stage), number, Arc::clone(event.envelope()), cx)
            })
        }};
    }
    let made = match subscriber.wants {
        Some(Kind::Opened) => typed!(Opened),
        Some(Kind::Moved) => typed!(Moved),
        Some(Kind::Closed) => typed!(Closed),
        None => {
            let stage = stage_of();
            Subscription::to_all(name, move |envelope, cx| {
                handle(Arc::clone(&stage), number, envelope, cx)
            })
        }
    };
    let mut made = made
        .priority(Priority(subscriber.priority))
        .retry(retry_policy(stage, subscriber.attempts))
        .failure_policy(subscriber.policy)
        .ordering(subscriber.ordering)
        .timeout(stage.pace.units(TIMEOUT));
    if let Some(own) = subscriber.isolation {
        made = own.workers.into_iter().fold(made, Subscription::isolated);
        made = own.capacity.into_iter().fold(made, Subscription::capacity);
    }
    if let Some(aggregate) = subscriber.passes_over {
        let aggregate = aggregate.to_string();
        made = made.filter_envelope(move |envelope| envelope.aggregate().id() != aggregate);
    }
    made
}

/// The name of the subscription with this number.
pub(super) fn name(number: usize) -> String {
    format!("s{number}")
}

fn retry_policy(stage: &Stage, attempts: u32) -> RetryPolicy {
    RetryPolicy::exponential()
        .max_attempts(attempts)
        .base(stage.pace.units(BASE))
        .cap(stage.pace.units(CAP))
        .jitter(JITTER)
}

async fn handle(
    stage: Arc<Stage>,
    subscription: usize,
    envelope: Arc<EventEnvelope>,
    cx: HandlerContext,
) -> Result<(), HandlerError> {
    let content =
        content(&envelope).ok_or_else(|| HandlerError::permanent("not of the program"))?;
    let event = content.number;
    stage.met(envelope.id(), event);
    stage.note(Observed::AttemptBegan {
        subscription,
        event,
        attempt: cx.attempt(),
        is_replay: cx.info().is_replay,
        told: Told {
            id: envelope.id(),
            causation: envelope.metadata().causation_id,
            correlation: envelope.metadata().correlation_id,
        },
    });
    let running = Running {
        stage: &stage,
        place: (subscription, event),
        has_ended: false,
    };
    let behaviour = stage.program.subscribers[subscription].behaviour(event, cx.attempt());
    // A repeated attempt would publish under the same ids again, and they would tell nothing apart.
    if cx.attempt() == 1 && !cx.info().is_replay && !content.follows {
        publish(&stage, (subscription, event), &envelope, &behaviour, &cx).await;
    }
    for _ in 0..behaviour.yields {
        yield_now().await;
    }
    if behaviour.rests > 0 {
        sleep(stage.pace.units(behaviour.rests)).await;
    }
    finish(running, behaviour.end).await
}

async fn publish(
    stage: &Arc<Stage>,
    inside: (usize, usize),
    envelope: &EventEnvelope,
    behaviour: &Behaviour,
    cx: &HandlerContext,
) {
    let raised = Raised {
        kind: Kind::Moved,
        aggregate: envelope.aggregate().id().parse().unwrap_or_default(),
        urgency: envelope.urgency(),
    };
    let events = vec![raised; behaviour.publishes.into()];
    let size = if behaviour.as_batch { events.len() } else { 1 };
    for batch in events.chunks(size.max(1)) {
        let Some((call, events)) = Call::begin(stage, How::Wait, batch, Some(inside)) else {
            return;
        };
        call.answered(cx.publish_all(events).await);
    }
}

async fn finish(running: Running<'_>, end: Finish) -> Result<(), HandlerError> {
    let units = |units| running.stage.pace.units(units);
    let (ended, result) = match end {
        Finish::Handle => (Ended::Handled, Ok(())),
        Finish::Skip => (Ended::Skipped, Err(HandlerError::skip("not needed"))),
        Finish::Fail => (Ended::Failed, Err(HandlerError::transient("failed"))),
        Finish::FailForGood => (
            Ended::FailedForGood,
            Err(HandlerError::permanent("failed for good")),
        ),
        Finish::RetryAfter(delay) => {
            let delay_of: Duration = units(delay);
            let error = HandlerError::retry_after(delay_of, "later");
            (Ended::RetryAfter(delay), Err(error))
        }
        Finish::Panic => {
            running.ended(Ended::Failed);
            // Not `panic!`, whose message would be printed.
            std::panic::resume_unwind(Box::new("panicked"));
        }
        Finish::Hang => std::future::pending().await,
    };
    running.ended(ended);
    result
}

/// An attempt until it is written down how it ended.
struct Running<'a> {
    stage: &'a Stage,
    place: (usize, usize),
    has_ended: bool,
}

impl Running<'_> {
    fn ended(mut self, how: Ended) {
        self.has_ended = true;
        let (subscription, event) = self.place;
        self.stage
            .note(Observed::AttemptEnded(subscription, event, how));
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let (subscription, event) = self.place;
            let dropped = Observed::AttemptEnded(subscription, event, Ended::Dropped);
            self.stage.note(dropped);
        }
    }
}
