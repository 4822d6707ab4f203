//! How subscriptions come aboard, at the start with what an earlier run has left, or later; and how
//! they leave.

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
    engine::{Engine, discard},
    mailboxes::{Behind, Blocked},
    pipeline::{Pipeline, Wake},
    record::Record,
    subscriptions::{Joined, Member, Subscribed},
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
    engine
        .until_quiet(|pipeline| !pipeline.is_leaving(subscription.name()))
        .await;
    let Some(stores) = &engine.stores else {
        let mut pipeline = engine.lock();
        pipeline.subscriptions.check(&subscription)?;
        pipeline
            .subscriptions
            .add(Subscribed::new(subscription, None), Joined::default());
        return Ok(());
    };
    engine.lock().subscriptions.check(&subscription)?;
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

/// A subscription on its way off: its progress is still to be committed.
pub(crate) struct Leaving {
    member: Member,
    /// The last position of which it was given what it wants.
    given: Position,
}

/// Takes a subscription out: it is given nothing more, and its waiting retries end at once.
pub(crate) fn leave(engine: &Engine, name: &str) -> Option<Leaving> {
    let mut pipeline = engine.lock();
    let member = pipeline.subscriptions.remove(name)?;
    member.subscribed.remove();
    pipeline.leaving.push(Arc::clone(member.subscribed.name()));
    let given = pipeline
        .cursor
        .as_ref()
        .map_or(Position::ZERO, |cursor| cursor.through);
    let workers = pipeline.mailboxes.all_due(&member.subscribed);
    drop(pipeline);
    engine.wake(Wake {
        workers,
        ..Wake::default()
    });
    Some(Leaving { member, given })
}

/// Waits for a leaving subscription's running attempts, and then until its progress is committed:
/// only then does its name begin where it has ended.
pub(crate) async fn left(engine: &Engine, leaving: Leaving) {
    let Leaving { member, given } = leaving;
    let subscribed = Arc::clone(&member.subscribed);
    subscribed.at_rest().await;
    let (records, save) = last_progress(engine, member, given);
    for record in records {
        record.tell();
        discard(record);
    }
    engine.unsaved.notify_one();
    engine
        .until_quiet(|pipeline| {
            pipeline.is_closed
                || pipeline
                    .cursor
                    .as_ref()
                    .is_none_or(|cursor| cursor.saves() >= save)
        })
        .await;
    engine
        .lock()
        .leaving
        .retain(|name| name != subscribed.name());
    engine.quiet.notify_waiters();
}

/// Has a leaving subscription's last progress committed. Returns records to be told and dropped,
/// and the number of the save.
fn last_progress(engine: &Engine, member: Member, given: Position) -> (Vec<Arc<Record>>, u64) {
    let mut pipeline = engine.lock();
    let Pipeline {
        cursor: Some(cursor),
        mailboxes,
        ..
    } = &mut *pipeline
    else {
        return (Vec::new(), 0);
    };
    let subscribed = Arc::clone(&member.subscribed);
    let rows = mailboxes.rows(&subscribed);
    let progress = cursor.progress_through(given, &[member], mailboxes);
    cursor.change(rows.into_iter().chain(progress), None);
    (cursor.stop_left(&subscribed), cursor.next_save())
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
            through,
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
