//! What happens on the desk, as domain events.
//!
//! Candles are the history of their market. Everything the desk itself does for a market is the
//! history of one book, so that the order of that history alone decides what follows from it.
//! Payloads depend on their causes only, never on clock, attempt or run: a repeated attempt derives
//! the same id (P9) and must bring the same payload (P6).

use domain_events::{DomainEvent, Timestamp};
use serde::{Deserialize, Serialize};

use crate::decimal::Decimal;

/// One candle of a market is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "market.candle-closed", aggregate = "market", id = market, version = 1)]
pub(crate) struct CandleClosed {
    pub(crate) market: String,
    pub(crate) time: Timestamp,
    pub(crate) open: Decimal,
    pub(crate) high: Decimal,
    pub(crate) low: Decimal,
    pub(crate) close: Decimal,
    pub(crate) volume: Decimal,
}

/// How the fast average passed the slow one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cross {
    Above,
    Below,
}

/// The direction of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    Buy,
    Sell,
}

/// The averages of a market crossed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.trigger-condition-met", aggregate = "book", id = market, version = 1)]
pub(crate) struct TriggerConditionMet {
    pub(crate) market: String,
    pub(crate) time: Timestamp,
    pub(crate) cross: Cross,
    pub(crate) fast: Decimal,
    pub(crate) slow: Decimal,
}

/// The strategy wants to trade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.signal-generated", aggregate = "book", id = market, version = 1)]
pub(crate) struct TradingSignalGenerated {
    pub(crate) market: String,
    pub(crate) time: Timestamp,
    pub(crate) side: Side,
    pub(crate) price: Decimal,
    pub(crate) quantity: Decimal,
    /// What the market traded in the candle.
    pub(crate) volume: Decimal,
}

/// Risk lets an order pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.order-approved", aggregate = "book", id = market, version = 1)]
pub(crate) struct OrderApproved {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) side: Side,
    pub(crate) price: Decimal,
    pub(crate) quantity: Decimal,
}

/// Risk stops an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.order-cancelled", aggregate = "book", id = market, version = 1)]
pub(crate) struct OrderCancelled {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) reason: String,
}

/// The broker has sent an order to the exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.order-placed", aggregate = "book", id = market, version = 1)]
pub(crate) struct OrderPlaced {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) side: Side,
    pub(crate) price: Decimal,
    pub(crate) quantity: Decimal,
}

/// The exchange has executed an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.order-executed", aggregate = "book", id = market, version = 1)]
pub(crate) struct OrderExecuted {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) side: Side,
    pub(crate) price: Decimal,
    pub(crate) quantity: Decimal,
    /// Price times quantity, in the market's quote currency.
    pub(crate) amount: Decimal,
    pub(crate) fee: Decimal,
}

/// The exchange has refused an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.order-failed", aggregate = "book", id = market, version = 1)]
pub(crate) struct OrderFailed {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) reason: String,
}

/// The book has bought, and holds a position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.position-opened", aggregate = "book", id = market, version = 1)]
pub(crate) struct PositionOpened {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) quantity: Decimal,
    /// What was paid, fee included.
    pub(crate) cost: Decimal,
}

/// The book has sold, and holds nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "trading.position-closed", aggregate = "book", id = market, version = 1)]
pub(crate) struct PositionClosed {
    pub(crate) market: String,
    pub(crate) order_id: String,
    pub(crate) quantity: Decimal,
    /// What was received less what was paid, both fees included.
    pub(crate) profit: Decimal,
}
