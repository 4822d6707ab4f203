//! The audit: sees every event, after everyone else.

use std::sync::Arc;

use domain_events::{
    EventEnvelope, HandlerContext, HandlerError, Priority, StartFrom, Subscription,
};

use crate::watch::Watch;

/// A subscription that leaves its sighting of every event, and nothing else.
pub(crate) fn subscription(watch: Arc<Watch>) -> Subscription {
    let audit = move |_: Arc<EventEnvelope>, cx: HandlerContext| {
        let watch = Arc::clone(&watch);
        async move {
            watch.begin(&cx)?.end();
            Ok::<(), HandlerError>(())
        }
    };
    Subscription::to_all("audit", audit)
        .priority(Priority::LOW)
        .start_from(StartFrom::Beginning)
}
