//! Handlers that block: run off the workers, on threads that may block (F1).

use domain_events::{Cancellation, HandlerError};
use tokio::task::JoinError;

use crate::{
    attempt::Ended,
    guarded::{self, Fault},
    inside::BusId,
    say::say,
    subscribed::Subscribed,
};

type Blocking = Box<dyn FnOnce() -> Result<(), HandlerError> + Send>;

/// Calls a blocking handler and waits until it returns, be it past its time-out: it has failed then,
/// but keeps its place, as nobody can take it from its thread.
pub(crate) async fn run(
    bus: BusId,
    subscribed: &Subscribed,
    work: Blocking,
    cancellation: &Cancellation,
) -> Ended {
    let call = move || guarded::call(bus, || Ended::from(work()));
    let mut running = tokio::task::spawn_blocking(call);
    let limit = subscribed.subscription.attempt_timeout();
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
