//! Handlers that block: run off the workers, on threads that may block (F1).

use domain_events::{Cancellation, HandlerError};
use tokio::{sync::oneshot, task::JoinError};

use crate::{
    attempt::Ended,
    engine::discard,
    guarded::{self, Fault},
    inside::BusId,
    say::say,
    subscribed::Subscribed,
};

type Blocking = Box<dyn FnOnce() -> Result<(), HandlerError> + Send>;

/// Calls a blocking handler and waits until it returns, be it past its time-out: it has failed then,
/// but keeps its place, as nobody can take it from its thread. Its time runs once it has a thread.
pub(crate) async fn run(
    bus: BusId,
    subscribed: &Subscribed,
    work: Blocking,
    cancellation: &Cancellation,
) -> Ended {
    let (begin, begun) = oneshot::channel();
    let call = move || {
        // Nobody waits for it any more where the bus has stopped before it had a thread.
        match begin.send(()) {
            Ok(()) => guarded::call(bus, || Ended::from(work())),
            Err(()) => {
                discard(work);
                Ok(Ended::failed("it was never called".to_owned()))
            }
        }
    };
    let mut running = tokio::task::spawn_blocking(call);
    let limit = subscribed.subscription.attempt_timeout();
    let _ = begun.await;
    if let Ok(returned) = tokio::time::timeout(limit, &mut running).await {
        return ended(returned).await;
    }
    cancellation.cancel();
    let stuck = subscribed.stuck();
    say!(
        warn,
        "blocking handler runs past its time-out",
        "subscription" = subscribed.name(),
        "timeout.ms" = limit.as_millis()
    );
    ended(running.await).await;
    drop(stuck);
    Ended::failed(Fault::OverTime.text(limit))
}

async fn ended(returned: Result<Result<Ended, String>, JoinError>) -> Ended {
    match returned {
        Ok(Ok(ended)) => ended,
        Ok(Err(text)) => Ended::failed(text),
        // The runtime is shutting down, and everything in it.
        Err(_) => std::future::pending().await,
    }
}
