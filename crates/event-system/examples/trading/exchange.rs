//! A simulated exchange that answers every order the same way in every run.

use crate::{decimal::Decimal, events::OrderApproved, random};

/// How often the broker calls before it gives up.
pub(crate) const CALLS: u32 = 5;
/// The part of an order's amount that the exchange keeps, in parts of 100,000 (0.05 %).
const FEE: i64 = 50;

/// An execution: what was paid or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    pub(crate) price: Decimal,
    pub(crate) amount: Decimal,
    pub(crate) fee: Decimal,
}

/// What the exchange says to an order it has understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Executed(Fill),
    Refused,
}

/// A call that the exchange did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Worth another call.
    Transient,
    /// Never to be answered.
    Permanent,
}

/// The exchange's answer to call number `attempt` for `order`: a function of order and attempt, so
/// that killed and repeated runs fail alike.
///
/// Of all calls 2 % fail transiently and 0.1 % permanently; 1 % of all orders are refused.
pub(crate) fn call(order: &OrderApproved, attempt: u32) -> Result<Answer, Failure> {
    let order_hash = random::hashed(&order.order_id);
    match random::mixed(order_hash ^ u64::from(attempt)) % 1_000 {
        0 => return Err(Failure::Permanent),
        1..=20 => return Err(Failure::Transient),
        _ => {}
    }
    let fill = (!order_hash.is_multiple_of(100)).then(|| filled(order, order_hash));
    // An amount beyond all range is an order no exchange takes.
    Ok(fill.flatten().map_or(Answer::Refused, Answer::Executed))
}

/// What becomes of `order` in the end: the answer, or `None` where the broker gives up.
pub(crate) fn fate(order: &OrderApproved) -> Option<Answer> {
    for attempt in 1..=CALLS {
        match call(order, attempt) {
            Ok(answer) => return Some(answer),
            Err(Failure::Permanent) => return None,
            Err(Failure::Transient) => {}
        }
    }
    None
}

/// An execution up to 0.05 % off the price of the order.
fn filled(order: &OrderApproved, order_hash: u64) -> Option<Fill> {
    let slip = i64::try_from(random::mixed(order_hash) % 11).ok()? - 5;
    let price = order.price.scaled(10_000 + slip, 10_000)?;
    let amount = price.times(order.quantity)?;
    let fee = amount.scaled(FEE, 100_000)?;
    Some(Fill { price, amount, fee })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Side;

    fn order(number: u32) -> OrderApproved {
        OrderApproved {
            market: "KRW-BTC".to_owned(),
            order_id: format!("KRW-BTC/{number}"),
            side: Side::Buy,
            price: "11509000".parse().unwrap(),
            quantity: "0.1".parse().unwrap(),
        }
    }

    #[test]
    fn calls_fail_as_often_as_promised() {
        let calls = (0..100_000).map(|number| call(&order(number), 1));
        let (mut transient, mut permanent, mut refused) = (0, 0, 0);
        for answer in calls {
            match answer {
                Err(Failure::Transient) => transient += 1,
                Err(Failure::Permanent) => permanent += 1,
                Ok(Answer::Refused) => refused += 1,
                Ok(Answer::Executed(_)) => {}
            }
        }
        assert!((1_800..2_200).contains(&transient), "{transient}");
        assert!((60..140).contains(&permanent), "{permanent}");
        assert!((850..1_150).contains(&refused), "{refused}");
    }

    #[test]
    fn another_attempt_may_fare_otherwise_and_the_same_one_never() {
        let failing = (0..)
            .map(order)
            .find(|order| call(order, 1) == Err(Failure::Transient));
        let failing = failing.unwrap();
        assert_eq!(call(&failing, 1), call(&failing, 1));
        assert!((2..=CALLS).any(|attempt| call(&failing, attempt).is_ok()));
        assert!(fate(&failing).is_some());
    }

    #[test]
    fn a_fill_is_near_its_order() {
        let fills = (0..1_000).filter_map(|number| match call(&order(number), 1) {
            Ok(Answer::Executed(fill)) => Some(fill),
            _ => None,
        });
        for fill in fills {
            let off = fill.price.units() - order(0).price.units();
            assert!(off.abs() * 2_000 <= order(0).price.units());
            assert_eq!(fill.price.times("0.1".parse().unwrap()), Some(fill.amount));
            assert!(fill.fee > Decimal::ZERO && fill.fee < fill.amount);
        }
    }
}
