//! The portfolio: keeps positions and profit in tables of its own.

use std::sync::Arc;

use domain_events::{Event, EventHandler, HandlerContext, HandlerError};

use crate::{
    desk::{Desk, Outcome},
    events::OrderExecuted,
    watch::Watch,
};

/// Books executions: a buy opens a position where there is none, a sale closes it.
#[derive(Debug)]
pub(crate) struct Portfolio {
    pub(crate) desk: Arc<Desk>,
    pub(crate) watch: Arc<Watch>,
}

impl EventHandler<OrderExecuted> for Portfolio {
    async fn handle(
        &self,
        executed: Event<OrderExecuted>,
        cx: HandlerContext,
    ) -> Result<(), HandlerError> {
        let attempt = self.watch.begin(&cx)?;
        let Some(position) = executed.position() else {
            return Err(HandlerError::permanent("the portfolio needs a log"));
        };
        // The tables commit first. Killed in between, the repeat finds its outcome there and
        // publishes the same event.
        match self.desk.book(position, &executed)? {
            Outcome::Opened(opened) => drop(cx.publish(opened).await?),
            Outcome::Closed(closed) => drop(cx.publish(closed).await?),
            Outcome::Nothing => {
                attempt.end();
                return Err(HandlerError::skip("nothing to open or to close"));
            }
        }
        attempt.end();
        Ok(())
    }
}
