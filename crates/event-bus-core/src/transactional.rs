//! Deliveries in the transactions of a store: what their handlers write there is committed together
//! with their progress, and so is there exactly once (R7).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use domain_events::{
    Cancellation, ConfigError, EventEnvelope, HandlerContext, HandlerError, InTransaction, Kept,
    Progress, SubscribeError, Subscription, TransactionError, TransactionalDeliveries,
    TransactionalDelivery, TransactionalEnd, TransactionalEnds, TransactionalWork, Work,
};
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::{sleep, timeout},
};

use crate::{
    attempt::Ended,
    engine::{Engine, Stores},
    guarded::{self, Fault},
    inside::BusId,
    progress,
    say::say,
    subscribed::Subscribed,
};

/// How long after a fault of the store its next use is tried.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// The error of a handler that ended the transaction, or that met a fault which did.
const ENDED: &str = "the transaction that it was in was ended, and all that it had written undone";

/// Nobody else saves, from the look at what is to be saved until what came of it was acted on.
pub(crate) struct Turn {
    _saving: OwnedMutexGuard<()>,
    subscribed: Arc<Subscribed>,
    /// Whether the store has the deliveries, and has not said what came of them.
    is_open: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // A stop has cut it off.
        if self.is_open {
            self.subscribed.put_in_doubt();
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
    cancellation: &Cancellation,
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
    let (ends, turn) = make(engine, subscribed, runs, cancellation).await;
    (ends, Some(turn))
}

fn fails(text: String) -> TransactionalWork {
    Box::new(move |_| Err(HandlerError::transient(text.clone())))
}

/// Has deliveries made in one transaction, each run in its order, and waits until that is committed.
/// Returns an end for each, `None` for those that were not made as one before has failed; and the turn,
/// to be held until the ends were acted on.
pub(crate) async fn make(
    engine: &Arc<Engine>,
    subscribed: &Arc<Subscribed>,
    runs: Vec<Vec<(Arc<EventEnvelope>, TransactionalWork)>>,
    cancellation: &Cancellation,
) -> (Vec<Option<Ended>>, Turn) {
    let (Some(stores), Some(_)) = (&engine.stores, subscribed.id) else {
        // Not taken aboard without a store.
        return std::future::pending().await;
    };
    let limit = subscribed.subscription.attempt_timeout();
    let calls = Calls::new(engine.id, limit, runs);
    let mut turn = take_turn(engine, subscribed).await;
    loop {
        let made = submit(engine, stores, &mut turn, &calls, cancellation).await;
        let error = match made {
            Ok(ends) => {
                engine.store_works();
                turn.0.is_open = false;
                return (calls.ends(&ends), turn.0);
            }
            Err(error) => error,
        };
        let fault = error.store_error();
        engine.store_fails(fault.kind(), &fault.to_string());
        say!(error, "deliveries not made", "subscription" = subscribed.name(),
            "again.in.ms" = AFTER_FAULT.as_millis(); fault);
        if matches!(error, TransactionError::NotCommitted(_)) {
            turn.0.is_open = false;
            drop(turn);
            sleep(AFTER_FAULT).await;
            turn = take_turn(engine, subscribed).await;
        } else {
            // Until it is known, nobody may save what was seen before.
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
            after.saver |= progress.is_err();
            progress
        });
        match looked {
            Ok(progress) => {
                let turn = Turn {
                    _saving: saving,
                    subscribed: Arc::clone(subscribed),
                    is_open: false,
                };
                return (turn, progress);
            }
            Err(save) => {
                drop(saving);
                if !progress::committed(engine, save).await {
                    // The bus has stopped, and this task ends with it.
                    std::future::pending().await
                }
            }
        }
    }
}

/// Hands the deliveries to the store. Says meanwhile where a handler runs past its time-out.
async fn submit(
    engine: &Arc<Engine>,
    stores: &Stores,
    (turn, progress): &mut (Turn, Progress),
    calls: &Calls,
    cancellation: &Cancellation,
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
    turn.is_open = true;
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
            Err(_) if stuck.is_none() && calls.is_over_time() => {
                cancellation.cancel();
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

/// The calls of a transaction's handlers, which may be made in several transactions.
struct Calls {
    limit: Duration,
    clock: Arc<Mutex<Option<Instant>>>,
    runs: Vec<Vec<Call>>,
}

/// One delivery, with the last end of its handler.
struct Call {
    envelope: Arc<EventEnvelope>,
    work: Arc<Mutex<TransactionalWork>>,
    end: Arc<Mutex<Option<Ended>>>,
    bus: BusId,
}

impl Calls {
    fn new(
        bus: BusId,
        limit: Duration,
        runs: Vec<Vec<(Arc<EventEnvelope>, TransactionalWork)>>,
    ) -> Self {
        let call = |(envelope, work)| Call {
            envelope,
            work: Arc::new(Mutex::new(work)),
            end: Arc::default(),
            bus,
        };
        let runs = runs.into_iter();
        Self {
            limit,
            clock: Arc::default(),
            runs: runs
                .map(|run| run.into_iter().map(call).collect())
                .collect(),
        }
    }

    fn deliveries(&self) -> Vec<Vec<TransactionalDelivery>> {
        let delivery = |call: &Call| {
            let recorded = call.envelope.recorded()?;
            Some(TransactionalDelivery {
                position: recorded.position,
                aggregate: call.envelope.aggregate().clone(),
                version: recorded.version,
                work: call.work(self.limit, &self.clock),
            })
        };
        let runs = self.runs.iter();
        runs.map(|run| run.iter().filter_map(delivery).collect())
            .collect()
    }

    /// Whether a handler runs past its time-out at this moment.
    fn is_over_time(&self) -> bool {
        lock(&self.clock).is_some_and(|began| began.elapsed() > self.limit)
    }

    fn ends(&self, ends: &TransactionalEnds) -> Vec<Option<Ended>> {
        let both = self.runs.iter().flatten().zip(ends.runs.iter().flatten());
        both.map(|(call, end)| call.ended(*end)).collect()
    }
}

impl Call {
    /// What the store is to call, each time that it makes the delivery.
    fn work(&self, limit: Duration, clock: &Arc<Mutex<Option<Instant>>>) -> InTransaction {
        let (bus, clock) = (self.bus, Arc::clone(clock));
        let (work, end) = (Arc::clone(&self.work), Arc::clone(&self.end));
        Box::new(move |conn| {
            let began = Instant::now();
            *lock(&clock) = Some(began);
            let ended = guarded::call(bus, || Ended::from(lock(&work)(conn)));
            *lock(&clock) = None;
            let ended = match ended {
                _ if began.elapsed() > limit => Ended::failed(Fault::OverTime.text(limit)),
                Ok(ended) => ended,
                Err(text) => Ended::failed(text),
            };
            let kept = match &ended {
                Ended::Handled => Kept::All,
                Ended::Skipped(_) => Kept::Nothing,
                _ => Kept::Failed,
            };
            *lock(&end) = Some(ended);
            kept
        })
    }

    fn ended(&self, end: TransactionalEnd) -> Option<Ended> {
        let said = lock(&self.end).take();
        match end {
            TransactionalEnd::Over => said,
            // The handler may have said something else where it was called once more in vain.
            TransactionalEnd::OverBefore => {
                Some(said.filter(Ended::is_success).unwrap_or(Ended::Handled))
            }
            TransactionalEnd::Failed => {
                Some(said.unwrap_or_else(|| Ended::failed(ENDED.to_owned())))
            }
            TransactionalEnd::EndedTransaction => Some(Ended::failed(ENDED.to_owned())),
            TransactionalEnd::NotMade => None,
        }
    }
}

/// As the lock of the bus; a handler may have panicked under it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
