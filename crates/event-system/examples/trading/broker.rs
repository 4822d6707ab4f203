//! The broker: places approved orders at the exchange.

use std::sync::Arc;

use domain_events::{Event, EventHandler, HandlerContext, HandlerError, NewEvent};

use crate::{
    events::{OrderApproved, OrderExecuted, OrderFailed, OrderPlaced},
    exchange::{self, Answer, Failure, Fill},
    watch::Watch,
};

/// Places an order, calls the exchange, and says how it went.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) watch: Arc<Watch>,
}

impl EventHandler<OrderApproved> for Broker {
    async fn handle(
        &self,
        order: Event<OrderApproved>,
        cx: HandlerContext,
    ) -> Result<(), HandlerError> {
        let attempt = self.watch.begin(&cx)?;
        let answer = exchange::call(&order, cx.attempt());
        let mut events = vec![NewEvent::new(placed(&order))];
        // Later attempts find the placing there already (P9), and a batch that is partly there is
        // refused (P6): so only the first one may say both at once, for one commit instead of two.
        if cx.attempt() > 1 || answer.is_err() {
            cx.publish_all(std::mem::take(&mut events)).await?;
        }
        events.push(told(&order, answer.map_err(given_back)?));
        cx.publish_all(events).await?;
        attempt.end();
        Ok(())
    }
}

fn given_back(failure: Failure) -> HandlerError {
    match failure {
        Failure::Transient => HandlerError::transient("the exchange did not answer"),
        Failure::Permanent => HandlerError::permanent("the exchange does not know the order"),
    }
}

fn placed(order: &OrderApproved) -> OrderPlaced {
    OrderPlaced {
        market: order.market.clone(),
        order_id: order.order_id.clone(),
        side: order.side,
        price: order.price,
        quantity: order.quantity,
    }
}

fn told(order: &OrderApproved, answer: Answer) -> NewEvent {
    let (market, order_id) = (order.market.clone(), order.order_id.clone());
    let Answer::Executed(Fill { price, amount, fee }) = answer else {
        let reason = "refused by the exchange".to_owned();
        return NewEvent::new(OrderFailed {
            market,
            order_id,
            reason,
        });
    };
    let (side, quantity) = (order.side, order.quantity);
    NewEvent::new(OrderExecuted {
        market,
        order_id,
        side,
        price,
        quantity,
        amount,
        fee,
    })
}
