//! Risk: answers every signal, with an approval or a cancellation.

use std::sync::Arc;

use domain_events::{Event, EventHandler, HandlerContext, HandlerError, NewEvent};

use crate::{
    events::{OrderApproved, OrderCancelled, TradingSignalGenerated},
    watch::Watch,
};

/// The largest part of a candle's volume that an order may take, in percent: more would move the
/// market.
const SHARE: i64 = 2;

/// Lets pass what the market can take.
#[derive(Debug)]
pub(crate) struct Risk {
    pub(crate) watch: Arc<Watch>,
}

impl EventHandler<TradingSignalGenerated> for Risk {
    async fn handle(
        &self,
        signal: Event<TradingSignalGenerated>,
        cx: HandlerContext,
    ) -> Result<(), HandlerError> {
        let attempt = self.watch.begin(&cx)?;
        cx.publish(answer(&signal)).await?;
        attempt.end();
        Ok(())
    }
}

fn answer(signal: &TradingSignalGenerated) -> NewEvent {
    // Market and candle name the order, so that it has the same name in every run.
    let order_id = format!("{}/{}", signal.market, signal.time);
    let market = signal.market.clone();
    let limit = signal.volume.scaled(SHARE, 100);
    if limit.is_some_and(|limit| signal.quantity <= limit) {
        let (side, price, quantity) = (signal.side, signal.price, signal.quantity);
        return NewEvent::new(OrderApproved {
            market,
            order_id,
            side,
            price,
            quantity,
        });
    }
    let reason = format!("more than {SHARE} % of the candle's volume");
    NewEvent::new(OrderCancelled {
        market,
        order_id,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use domain_events::{DomainEvent, Timestamp};

    use super::*;
    use crate::events::Side;

    fn answered(volume: &str) -> String {
        let signal = TradingSignalGenerated {
            market: "KRW-BTC".to_owned(),
            time: Timestamp::from_micros(0),
            side: Side::Buy,
            price: "11509000".parse().unwrap(),
            quantity: "0.1".parse().unwrap(),
            volume: volume.parse().unwrap(),
        };
        answer(&signal).event_type().to_owned()
    }

    #[test]
    fn an_order_may_take_its_share_of_the_volume_and_no_more() {
        assert_eq!(answered("5"), OrderApproved::EVENT_TYPE);
        assert_eq!(answered("4.99999999"), OrderCancelled::EVENT_TYPE);
        assert_eq!(answered("0"), OrderCancelled::EVENT_TYPE);
    }
}
