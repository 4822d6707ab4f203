//! Deliveries in the transactions of a store: what their handlers write there is committed together
//! with their progress, and so is there exactly once (R7).

mod calls;

use std::sync::{Arc, atomic::Ordering};

use domain_events::{
    AggregateRef, ConfigError, EventEnvelope, HandlerContext, HandlerError, Position, Progress,
    SubscribeError, Subscription, TransactionError, TransactionalDeliveries, TransactionalEnds,
    TransactionalWork, Work,
};
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::{sleep, timeout},
};

use self::calls::{Calls, Made};
use crate::{
    attempt::Ended,
    engine::{AFTER_FAULT, Engine, Stores},
    guarded, progress,
    say::say,
    subscribed::Subscribed,
};

/// Nobody else saves, from the look at what is to be saved until what came of it was acted on.
pub(crate) struct Turn {
    _saving: OwnedMutexGuard<()>,
    subscribed: Arc<Subscribed>,
    /// The deliveries that the store has, of which it has not said what came of them.
    open: Vec<(AggregateRef, Position)>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // A stop has cut it off.
        if !self.open.is_empty() {
            self.subscribed.put_in_doubt(std::mem::take(&mut self.open));
        }
    }
}

/// Checks that the store has the connections that the subscription's handler wants.
pub(crate) fn check(engine: &Engine, subscription: &Subscription) -> Result<(), SubscribeError> {
    let Some(wanted) = subscription.connection() else {
        return Ok(());
    };
    let stores = engine.stores.as_ref();
    let supplied = stores.and_then(|stores| stores.deliveries.connection_type());
    if supplied == Some(wanted) {
        return Ok(());
    }
    let allowed = match supplied {
        Some(supplied) => format!("{supplied}, as the store has it"),
        None => "none, as the bus has no store with connections for handlers".to_owned(),
    };
    let source = ConfigError::new("subscription.connection", wanted, allowed);
    Err(SubscribeError::Invalid {
        name: Arc::clone(subscription.name()),
        source: source.into(),
    })
}

/// As [`make`], of a batch: `counts` says how many of the items each run has.
pub(crate) async fn call(
    engine: &Arc<Engine>,
    subscribed: &Arc<Subscribed>,
    items: Vec<(Arc<EventEnvelope>, HandlerContext)>,
    counts: &[usize],
) -> (Vec<Option<Ended>>, Option<Turn>) {
    if items.is_empty() {
        return (Vec::new(), None);
    }
    let work = |(envelope, cx): (Arc<EventEnvelope>, _)| {
        let call = || subscribed.subscription.call(Arc::clone(&envelope), cx);
        let work = match guarded::call(engine.id, call) {
            Ok(Ok(Work::Transactional(work))) => work,
            Ok(Ok(_)) => fails("the handler is none for a transaction".to_owned()),
            Ok(Err(error)) => fails(error.to_string()),
            Err(text) => fails(text),
        };
        (envelope, work)
    };
    let mut items = items.into_iter().map(work);
    let of_run = |count: &usize| items.by_ref().take(*count).collect();
    let runs = counts.iter().map(of_run).collect();
    let (ends, turn) = make(engine, subscribed, runs).await;
    (ends, Some(turn))
}

fn fails(text: String) -> TransactionalWork {
    Arc::new(move |_, _| Err(HandlerError::transient(text.clone())))
}

/// Has deliveries made in one transaction, each run in its order, and waits until that is committed.
/// Returns an end for each, `None` for those that were not made as one before has failed; and the turn,
/// to be held until the ends were acted on.
pub(crate) async fn make(
    engine: &Arc<Engine>,
    subscribed: &Arc<Subscribed>,
    runs: Vec<Vec<(Arc<EventEnvelope>, TransactionalWork)>>,
) -> (Vec<Option<Ended>>, Turn) {
    let (Some(stores), Some(_)) = (&engine.stores, subscribed.id) else {
        // Not taken aboard without a store.
        return std::future::pending().await;
    };
    let limit = subscribed.subscription.attempt_timeout();
    let mut calls = Calls::new(engine.id, limit, runs);
    let mut turn = take_turn(engine, subscribed).await;
    // Whether one of the tries may have been committed: until it is known, nobody else may save what was
    // seen before.
    let mut is_in_doubt = false;
    loop {
        let made = submit(engine, stores, &mut turn, &calls).await;
        let error = match made {
            Ok(ends) => {
                engine.store_works();
                turn.0.open.clear();
                return (calls.ends(&ends), turn.0);
            }
            Err(error) => error,
        };
        if let TransactionError::Refused(fault) = &error {
            turn.0.open.clear();
            if calls.is_alone() {
                return (calls.refused(fault), turn.0);
            }
            calls.made = match is_in_doubt {
                // Whose writing it was shows once each is made alone.
                false => Made::First,
                // What an earlier try may have made comes first.
                true => Made::Nothing,
            };
            continue;
        }
        let fault = error.store_error();
        engine.store_fails(fault.kind(), &fault.to_string());
        say!(error, "deliveries not made", "subscription" = subscribed.name(),
            "again.in.ms" = AFTER_FAULT.as_millis(); fault);
        is_in_doubt |= matches!(error, TransactionError::OutcomeUnknown(_));
        if !is_in_doubt {
            turn.0.open.clear();
            drop(turn);
            sleep(AFTER_FAULT).await;
            turn = take_turn(engine, subscribed).await;
        } else {
            sleep(AFTER_FAULT).await;
        }
    }
}

/// Waits until nobody else saves, and everything that is known of the subscription is saved but for its
/// progress, which is returned.
async fn take_turn(engine: &Engine, subscribed: &Arc<Subscribed>) -> (Turn, Progress) {
    loop {
        let saving = Arc::clone(&engine.saving).lock_owned().await;
        let looked = engine.step(|state, after| {
            let progress = state.progress_in_transaction(subscribed);
            after.saver |= matches!(progress, Some(Err(_)));
            progress
        });
        match looked {
            Some(Ok(progress)) => {
                let turn = Turn {
                    _saving: saving,
                    subscribed: Arc::clone(subscribed),
                    open: Vec::new(),
                };
                return (turn, progress);
            }
            Some(Err(save)) => {
                drop(saving);
                if !progress::committed(engine, save).await {
                    // The bus has stopped, and this task ends with it.
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// Hands the deliveries to the store. Says meanwhile where a handler runs past its time-out.
async fn submit(
    engine: &Arc<Engine>,
    stores: &Stores,
    (turn, progress): &mut (Turn, Progress),
    calls: &Calls,
) -> Result<TransactionalEnds, TransactionError> {
    let subscribed = Arc::clone(&turn.subscribed);
    let Some(subscription) = subscribed.id else {
        return std::future::pending().await;
    };
    let (tell, mut told) = oneshot::channel();
    let announced = Arc::clone(engine);
    let done = move |ends: Result<TransactionalEnds, TransactionError>| {
        if let Ok(ends) = &ends {
            // In the order of the log, with what the handlers have appended.
            announced.step(|state, after| {
                let live = state.reaches(ends.head, after);
                announced.live.store(live, Ordering::Release);
            });
        }
        drop(tell.send(ends));
    };
    turn.open = calls.places();
    let deliveries = TransactionalDeliveries {
        subscription,
        progress: progress.clone(),
        runs: calls.deliveries(),
    };
    stores
        .deliveries
        .submit_transaction(deliveries, Box::new(done));
    let mut stuck = None;
    loop {
        match timeout(calls.limit, &mut told).await {
            Ok(Ok(ends)) => return ends,
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) if calls.cancel_over_time() && stuck.is_none() => {
                stuck = Some(subscribed.stuck());
                say!(
                    warn,
                    "transactional handler runs past its time-out",
                    "subscription" = subscribed.name(),
                    "timeout.ms" = calls.limit.as_millis()
                );
            }
            Err(_) => {}
        }
    }
}
