//! How subscriptions come aboard: at the start, with what an earlier run has left, or later.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use domain_events::{
    Position, Registration, RunState, StoreError, SubscribeError, Subscription, SubscriptionState,
    Timestamp,
};
use tokio::sync::oneshot;

use crate::{
    cursor::Cursor,
    engine::Engine,
    mailboxes::{Behind, Blocked},
    pipeline::Pipeline,
    subscriptions::{Joined, Subscribed},
    timers::Due,
};

/// Takes the subscriptions aboard at the start, with what an earlier run has left of them.
pub(crate) async fn begin(
    engine: &Engine,
    subscriptions: Vec<Subscription>,
) -> Result<(), StoreError> {
    let Some(stores) = &engine.stores else {
        let mut pipeline = engine.lock();
        for subscription in subscriptions {
            pipeline
                .subscriptions
                .add(Subscribed::new(subscription, None), Joined::default());
        }
        return Ok(());
    };
    let registrations = subscriptions.iter().map(registration).collect();
    let run = stores.deliveries.begin_run(registrations).await?;
    recover(engine, subscriptions, run);
    Ok(())
}

/// Takes a subscription aboard while the bus runs (D8, L4).
pub(crate) async fn join(
    engine: &Arc<Engine>,
    subscription: Subscription,
) -> Result<(), SubscribeError> {
    engine.lock().subscriptions.check(&subscription)?;
    let Some(stores) = &engine.stores else {
        let subscribed = Subscribed::new(subscription, None);
        engine
            .lock()
            .subscriptions
            .add(subscribed, Joined::default());
        return Ok(());
    };
    let (tell, told) = oneshot::channel();
    let (joining, wanted) = (Arc::clone(engine), registration(&subscription));
    let done = move |state: Result<SubscriptionState, StoreError>| {
        let joined = state.map_err(SubscribeError::Store).and_then(|state| {
            // The name was free when asked; it may have been taken since.
            joining.lock().subscriptions.check(&subscription)?;
            join_log(&joining, subscription, state);
            Ok(())
        });
        drop(tell.send(joined));
    };
    stores
        .deliveries
        .submit_registration(wanted, Box::new(done));
    told.await.unwrap_or(Err(SubscribeError::Stopped))
}

fn registration(subscription: &Subscription) -> Registration {
    Registration {
        name: Arc::clone(subscription.name()),
        start_from: subscription.start(),
    }
}

/// Sets the bus up as the last run has left it: to be read from the first unfinished event on.
fn recover(engine: &Engine, subscriptions: Vec<Subscription>, run: RunState) {
    let first = run.subscriptions.iter().map(first_unread).min();
    let through = first.unwrap_or(run.head).min(run.head);
    let repeats_through = if run.after_clean_end {
        Position::ZERO
    } else {
        run.head
    };
    let mut pipeline = engine.lock();
    pipeline.cursor = Some(Cursor::new(through, run.head, repeats_through));
    engine.live.store(through == run.head, Ordering::Release);
    let mut waiting = Vec::new();
    for (subscription, state) in subscriptions.into_iter().zip(run.subscriptions) {
        waiting.extend(add(&mut pipeline, subscription, state));
    }
    drop(pipeline);
    waiting.into_iter().for_each(|due| engine.timers.set(due));
}

/// Adds a subscription to a running bus; called in the order of the log.
fn join_log(engine: &Engine, subscription: Subscription, state: SubscriptionState) {
    let mut pipeline = engine.lock();
    let is_behind = pipeline.read_again_after(first_unread(&state));
    let due = add(&mut pipeline, subscription, state);
    engine.live.store(
        pipeline.cursor.as_ref().is_some_and(|cursor| cursor.live),
        Ordering::Release,
    );
    drop(pipeline);
    due.into_iter().for_each(|due| engine.timers.set(due));
    if is_behind {
        engine.fell_behind();
    }
}

/// The position after which a subscription has something to read.
fn first_unread(state: &SubscriptionState) -> Position {
    let unfinished = state
        .progress
        .unfinished
        .first()
        .map(|position| position.previous());
    unfinished
        .unwrap_or(state.progress.through)
        .min(state.progress.through)
}

/// Adds a subscription with what the store knows of it. Returns the retries to be made.
fn add(pipeline: &mut Pipeline, subscription: Subscription, state: SubscriptionState) -> Vec<Due> {
    let subscribed = Subscribed::new(subscription, Some(state.id));
    let through = state.progress.through;
    let waiting: HashMap<_, _> = state
        .waiting
        .into_iter()
        .map(|waiting| (waiting.aggregate.clone(), waiting))
        .collect();
    let retries = state.blocked.into_iter().map(|blocked| {
        let waiting = waiting.get(&blocked.aggregate);
        let mailbox = pipeline.mailboxes.mailbox(&blocked.aggregate);
        let behind = Behind::Log {
            from: blocked.from,
            version: blocked.version,
            through: through.max(blocked.from),
        };
        let now = Timestamp::now();
        let (attempts, first_attempt_at) = waiting.map_or((0, now), |waiting| {
            (waiting.attempts, waiting.first_attempt_at)
        });
        let blocked = Blocked::new(Arc::clone(&subscribed), behind, attempts, first_attempt_at);
        pipeline.mailboxes.block(mailbox, blocked);
        if attempts > 0 {
            subscribed.meters.waiting.up();
        }
        let delay = waiting.map_or(Duration::ZERO, |waiting| waiting.due_at.since(now));
        Due::after(delay, mailbox, &subscribed)
    });
    let retries = retries.collect();
    pipeline
        .subscriptions
        .add(subscribed, Joined::from(state.progress));
    retries
}
