//! The audit: sees every event, after everyone else.

use std::sync::Arc;

use domain_events::{EventEnvelope, HandlerContext, HandlerError, Subscription};

use crate::watch::Watch;

/// A subscription that leaves its sighting of every event, and does nothing else.
pub(crate) fn subscription(watch: Arc<Watch>) -> Subscription {
    let audit = move |_: Arc<EventEnvelope>, cx: HandlerContext| {
        let watch = Arc::clone(&watch);
        async move {
            watch.begin(&cx)?.end();
            Ok::<(), HandlerError>(())
        }
    };
    Subscription::to_all("audit", audit)
}
