//! Subscriptions whose handlers do what the program says, and have it taken down.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use domain_events::{
    Event, EventEnvelope, HandlerContext, HandlerError, Priority, RetryPolicy, Subscription,
};
use std::time::Duration;
use tokio::{task::yield_now, time::sleep};

use super::{
    events::{Kind, Moved, Opened, Raised},
    known::Begun,
    program::{Behaviour, Finish, MOST_EVENTS},
    stage::{Running, Scene, name},
};

/// The subscription of the program with this number.
pub(super) fn subscription(scene: &Arc<Scene>, number: usize) -> Subscription {
    let program = &scene.stage.program;
    let subscriber = &program.subscribers[number];
    let (playing, name) = (Arc::clone(scene), name(number));
    let handles = move |envelope, cx| handle(Arc::clone(&playing), number, envelope, cx);
    let mut made = match subscriber.wants {
        Some(Kind::Opened) => Subscription::from_fn(name, move |event: Event<Opened>, cx| {
            handles(Arc::clone(event.envelope()), cx)
        }),
        Some(Kind::Moved) => Subscription::from_fn(name, move |event: Event<Moved>, cx| {
            handles(Arc::clone(event.envelope()), cx)
        }),
        None => Subscription::to_all(name, handles),
    };
    let base = Duration::from_millis(if program.is_hasty { 0 } else { 100 });
    let retry = RetryPolicy::exponential()
        .max_attempts(subscriber.attempts)
        .base(base)
        .jitter(0.5);
    made = made
        .priority(Priority(subscriber.priority))
        .retry(retry)
        .failure_policy(subscriber.policy)
        .ordering(subscriber.ordering)
        .start_from(scene.stage.known().start(subscriber.start));
    if let Some((workers, capacity)) = subscriber.isolated {
        made = made.isolated(workers).capacity(capacity);
    }
    if let Some(aggregate) = subscriber.passes_over {
        let aggregate = aggregate.to_string();
        made = made.filter_envelope(move |envelope| envelope.aggregate().id() != aggregate);
    }
    made
}

async fn handle(
    scene: Arc<Scene>,
    number: usize,
    envelope: Arc<EventEnvelope>,
    cx: HandlerContext,
) -> Result<(), HandlerError> {
    let raised = Raised::of(&envelope).expect("an event of the program");
    let begun = Begun {
        position: envelope.position().unwrap_or_default(),
        raised,
        attempt: cx.attempt(),
        is_replay: cx.info().is_replay,
    };
    let Some(running) = scene.begin(number, begun) else {
        return std::future::pending().await;
    };
    let program = &scene.stage.program;
    let behaviour = program.behaviour(number, raised.number, begun.attempt, begun.is_replay);
    if behaviour.publishes > 0 {
        let events = (0..behaviour.publishes).map(|place| follows(number, raised, place).event());
        if let Err(error) = cx.publish_all(events.collect()).await {
            return end(&scene, running, Finish::Fail, Some(error.to_string()));
        }
    }
    for _ in 0..behaviour.yields {
        yield_now().await;
    }
    if !behaviour.rests.is_zero() {
        sleep(behaviour.rests).await;
    }
    let Behaviour { end: finish, .. } = behaviour;
    end(&scene, running, finish, None)
}

/// An event that follows from another one, in the same aggregate.
fn follows(number: usize, from: Raised, place: u64) -> Raised {
    Raised {
        number: (number as u64 + 1) * 10 * MOST_EVENTS + 2 * from.number + place,
        ..from
    }
}

fn end(
    scene: &Scene,
    running: Running,
    finish: Finish,
    error: Option<String>,
) -> Result<(), HandlerError> {
    let is_well = scene.stage.is_well.load(SeqCst) && error.is_none();
    let finish = if is_well { Finish::Handle } else { finish };
    let error = error.unwrap_or_else(|| "failed".to_owned());
    running.ends(finish);
    match finish {
        Finish::Handle => Ok(()),
        Finish::Skip => Err(HandlerError::skip("not needed")),
        Finish::Fail => Err(HandlerError::transient(error)),
        Finish::RetryAfter(delay) => Err(HandlerError::retry_after(delay, "later")),
        Finish::FailForGood => Err(HandlerError::permanent("failed for good")),
        // Not `panic!`, whose message would be printed.
        Finish::Panic => std::panic::resume_unwind(Box::new("panicked")),
    }
}
