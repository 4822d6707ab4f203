//! Several events handled in one go, with a verdict for each (D9).

use std::{fmt, time::Duration, vec};

use crate::{Cancellation, DomainEvent, Event, HandlerContext, HandlerError};

/// Reacts to several events of type `E` at a time (D9).
///
/// A batch holds what is waiting, in the order in which it waits: of each aggregate the events come
/// in their order, without gaps. An event that fails fails those behind it of its aggregate; they are
/// delivered again after it. A failed event is tried again in a batch of its own.
///
/// ```
/// use domain_events::{Batch, BatchHandler, BatchVerdicts, DomainEvent, HandlerError};
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
/// # struct OrderPlaced { order_id: String, total: u64 }
/// struct Ledger;
///
/// impl BatchHandler<OrderPlaced> for Ledger {
///     async fn handle(&self, batch: Batch<OrderPlaced>) -> Result<BatchVerdicts, HandlerError> {
///         let mut verdicts = BatchVerdicts::all_handled();
///         for (place, (order, _cx)) in batch.iter().enumerate() {
///             if order.total == 0 {
///                 verdicts.fail(place, HandlerError::permanent("an order of nothing"));
///             }
///         }
///         // One statement for all the others; where it fails, `?` fails the whole batch.
///         Ok(verdicts)
///     }
/// }
/// ```
pub trait BatchHandler<E: DomainEvent>: Send + Sync + 'static {
    /// Handles the events of a batch. An error is the verdict on each of them.
    ///
    /// The future is dropped where it runs past the time-out of its subscription, which the whole
    /// batch shares.
    fn handle(
        &self,
        batch: Batch<E>,
    ) -> impl Future<Output = Result<BatchVerdicts, HandlerError>> + Send;
}

/// Events to be handled in one go, each with the context of its attempt; at least one.
pub struct Batch<E> {
    items: Vec<(Event<E>, HandlerContext)>,
}

impl<E> Batch<E> {
    pub(crate) fn new(items: Vec<(Event<E>, HandlerContext)>) -> Self {
        Self { items }
    }

    /// How many events there are.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The events with their contexts, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, (Event<E>, HandlerContext)> {
        self.items.iter()
    }

    /// Whether the attempt is given up; the same for all events.
    pub fn cancellation(&self) -> Cancellation {
        let first = self.items.first();
        first.map_or_else(Cancellation::default, |(_, cx)| cx.cancellation().clone())
    }
}

impl<'a, E> IntoIterator for &'a Batch<E> {
    type Item = &'a (Event<E>, HandlerContext);
    type IntoIter = std::slice::Iter<'a, (Event<E>, HandlerContext)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<E> IntoIterator for Batch<E> {
    type Item = (Event<E>, HandlerContext);
    type IntoIter = vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<E> fmt::Debug for Batch<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.items.iter().map(|(event, _)| event);
        f.debug_list().entries(events).finish()
    }
}

/// What became of each event of a batch: handled, unless said otherwise.
#[derive(Debug, Default)]
pub struct BatchVerdicts {
    failed: Vec<(usize, HandlerError)>,
}

impl BatchVerdicts {
    /// All events are handled.
    pub fn all_handled() -> Self {
        Self::default()
    }

    /// The event at `place`, counted from 0, is not handled, for this reason (F2); the last one
    /// given counts. A place beyond the end of the batch fails the whole batch, as nobody knows
    /// which event was meant.
    pub fn fail(&mut self, place: usize, error: HandlerError) {
        self.failed.retain(|(other, _)| *other != place);
        self.failed.push((place, error));
    }

    /// One result for each of `count` events.
    pub(crate) fn into_results(self, count: usize) -> Vec<Result<(), HandlerError>> {
        let beyond = self.failed.iter().map(|(place, _)| *place);
        if let Some(place) = beyond.max().filter(|place| *place >= count) {
            let error = || {
                let text = format!("a verdict on event {place} of a batch of {count}, from 0");
                Err(HandlerError::transient(text))
            };
            return (0..count).map(|_| error()).collect();
        }
        let mut results: Vec<_> = (0..count).map(|_| Ok(())).collect();
        for (place, error) in self.failed {
            results[place] = Err(error);
        }
        results
    }
}

/// How a subscription makes up its batches (D9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// How many events a batch holds at the most.
    pub size: usize,
    /// How long the first event of a batch waits for others; zero for not at all.
    pub linger: Duration,
}

impl BatchPolicy {
    /// The largest size of a batch.
    pub const MAX_SIZE: usize = 100_000;

    /// The longest time that an event waits for others.
    pub const MAX_LINGER: Duration = Duration::from_secs(60);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn d9_an_event_is_handled_unless_said_otherwise() {
        let mut verdicts = BatchVerdicts::all_handled();
        verdicts.fail(1, HandlerError::transient("no"));
        verdicts.fail(1, HandlerError::permanent("never"));
        let results = verdicts.into_results(3);
        let verdict = |place: usize| results[place].as_ref().map_err(HandlerError::verdict);
        assert_eq!(
            [verdict(0), verdict(1), verdict(2)],
            [Ok(&()), Err(Verdict::Permanent), Ok(&())]
        );
    }

    #[test]
    fn d9_a_verdict_on_no_event_fails_all() {
        let mut verdicts = BatchVerdicts::all_handled();
        verdicts.fail(3, HandlerError::skip("which?"));
        let results = verdicts.into_results(3);
        assert_eq!(results.len(), 3);
        for result in results {
            assert_eq!(result.unwrap_err().verdict(), Verdict::Transient);
        }
    }
}
