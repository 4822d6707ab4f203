//! Deliveries that are made in the writer's transaction: what a handler writes, and that it has, are
//! committed together (R7).

use diesel::{QueryResult, result::Error};
use domain_events::{
    Kept, Position, Progress, StoreError, StoreErrorKind, SubscriptionId, TransactionDone,
    TransactionError, TransactionalDeliveries, TransactionalDelivery, TransactionalEnd,
    TransactionalEnds,
};

use crate::{
    failure,
    handlers::{self, Savepoint},
    positions, queries,
    rows::{signed, unsigned},
    session::broken,
    transaction::Transaction,
    writer::{Fault, Request},
};

/// Deliveries that are made in one transaction.
pub(crate) struct TransactionRequest {
    deliveries: TransactionalDeliveries,
    /// Those whose handlers have ended a transaction: they are not called again.
    enders: Vec<Position>,
    is_to_be_made_again: bool,
    ends: Option<Result<TransactionalEnds, StoreError>>,
    done: TransactionDone,
}

impl TransactionRequest {
    pub(crate) fn new(deliveries: TransactionalDeliveries, done: TransactionDone) -> Self {
        Self {
            deliveries,
            enders: Vec::new(),
            is_to_be_made_again: false,
            ends: None,
            done,
        }
    }
}

impl Request for TransactionRequest {
    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        // The handlers may read what was appended in this transaction.
        tx.write_rows()?;
        self.ends = match self.make(tx) {
            Ok(ends) => Some(Ok(ends)),
            Err(Stop::Refused(what)) => Some(Err(StoreError::new(StoreErrorKind::Other, what))),
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Ended(positions)) => {
                self.enders.extend(positions);
                self.is_to_be_made_again = true;
                return Err(Error::BrokenTransactionManager);
            }
        };
        tx.look_again()
    }

    fn runs_handlers(&self) -> bool {
        true
    }

    fn is_to_be_made_again(&mut self) -> bool {
        std::mem::take(&mut self.is_to_be_made_again)
    }

    fn answer(self: Box<Self>, end: Result<(), Fault>) {
        let Self { ends, done, .. } = *self;
        done(match end {
            Ok(()) => {
                let ends = ends.unwrap_or_else(|| Err(failure::closed()));
                ends.map_err(TransactionError::NotCommitted)
            }
            Err(Fault::NotCommitted(error)) => Err(TransactionError::NotCommitted(error)),
            Err(Fault::Refused(error)) => Err(TransactionError::Refused(error)),
            Err(Fault::Unknown(error)) => Err(TransactionError::OutcomeUnknown(error)),
        });
    }
}

/// Why deliveries are not made.
enum Stop {
    /// They make no sense.
    Refused(&'static str),
    Failed(Error),
    /// The handler of the event at this position, or at one of these, has ended the transaction.
    Ended(Vec<Position>),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl TransactionRequest {
    /// Makes the deliveries, and saves what is over by them.
    fn make(&mut self, tx: &mut Transaction<'_>) -> Result<TransactionalEnds, Stop> {
        const NO_SENSE: Stop =
            Stop::Refused("deliveries with progress that makes no sense were not made");
        let id = self.deliveries.subscription;
        let Progress {
            through,
            unfinished,
        } = &self.deliveries.progress;
        // Before anything is made.
        let open = positions::encode(unfinished).filter(|_| unfinished.last() <= Some(through));
        open.ok_or(NO_SENSE)?;
        let stored = Stored::read(tx, id)?;
        queries::put_guard(tx.conn)?;
        let mut over = Vec::new();
        let mut runs = Vec::with_capacity(self.deliveries.runs.len());
        for run in &mut self.deliveries.runs {
            runs.push(make_run(tx, &stored, run, &self.enders, &mut over)?);
        }
        if !queries::take_guard(tx.conn)? {
            // Another transaction stands in its place. Whoever was called may have put it there.
            return Err(Stop::Ended(called(&self.deliveries.runs, &runs)));
        }
        over.sort_unstable();
        let is_open = |position: &&Position| over.binary_search(position).is_err();
        let open: Vec<Position> = unfinished.iter().filter(is_open).copied().collect();
        let open = positions::encode(&open).ok_or(NO_SENSE)?;
        queries::update_progress(tx.conn, id.get(), *through, &open)?;
        let head = tx.head_now()?;
        Ok(TransactionalEnds { runs, head })
    }
}

/// The positions of the deliveries whose handlers were called.
fn called(runs: &[Vec<TransactionalDelivery>], ends: &[Vec<TransactionalEnd>]) -> Vec<Position> {
    let both = runs.iter().flatten().zip(ends.iter().flatten());
    let called =
        both.filter(|(_, end)| matches!(end, TransactionalEnd::Over | TransactionalEnd::Failed));
    called.map(|(delivery, _)| delivery.position).collect()
}

/// Makes the deliveries of a run, none behind one that failed. Adds the positions of those that are
/// over.
fn make_run(
    tx: &mut Transaction<'_>,
    stored: &Stored,
    run: &mut [TransactionalDelivery],
    enders: &[Position],
    over: &mut Vec<Position>,
) -> Result<Vec<TransactionalEnd>, Stop> {
    use TransactionalEnd::{EndedTransaction, Failed, NotMade};
    let mut ends = Vec::with_capacity(run.len());
    for delivery in run {
        let end = match ends.last() {
            Some(Failed | EndedTransaction | NotMade) => NotMade,
            _ if enders.contains(&delivery.position) => EndedTransaction,
            _ => stored.make(tx, delivery)?,
        };
        if matches!(end, TransactionalEnd::Over | TransactionalEnd::OverBefore) {
            over.push(delivery.position);
        }
        ends.push(end);
    }
    Ok(ends)
}

/// What the store knows of the subscription before its deliveries are made.
struct Stored {
    id: SubscriptionId,
    progress: Progress,
}

impl Stored {
    fn read(tx: &mut Transaction<'_>, id: SubscriptionId) -> Result<Self, Stop> {
        let stored = queries::progress(tx.conn, id.get())?;
        let unknown = Stop::Refused("the deliveries of an unknown subscription were not made");
        let (through, unfinished) = stored.ok_or(unknown)?;
        let unfinished = positions::decode(&unfinished);
        let unfinished = unfinished.ok_or_else(|| broken("progress that cannot be read"))?;
        let progress = Progress {
            through: Position::new(unsigned(through)),
            unfinished,
        };
        Ok(Self { id, progress })
    }

    fn make(
        &self,
        tx: &mut Transaction<'_>,
        delivery: &mut TransactionalDelivery,
    ) -> Result<TransactionalEnd, Stop> {
        let has_passed = self.has_passed(delivery.position);
        if has_passed && !self.is_covered(tx, delivery)? {
            return Ok(TransactionalEnd::OverBefore);
        }
        let kept = match handlers::call(tx.conn, |conn| (delivery.work)(conn))? {
            Savepoint::Kept(kept) => kept,
            Savepoint::Gone => return Err(Stop::Ended(vec![delivery.position])),
        };
        if kept == Kept::Failed {
            return Ok(TransactionalEnd::Failed);
        }
        if has_passed {
            self.uncover(tx, delivery)?;
        }
        Ok(TransactionalEnd::Over)
    }

    /// Whether progress says nothing of the delivery: it is over then, or a row stands for it (R1).
    fn has_passed(&self, position: Position) -> bool {
        let Progress {
            through,
            unfinished,
        } = &self.progress;
        position <= *through && unfinished.binary_search(&position).is_err()
    }

    fn is_covered(
        &self,
        tx: &mut Transaction<'_>,
        delivery: &TransactionalDelivery,
    ) -> QueryResult<bool> {
        let position = signed(delivery.position.get());
        let waits = queries::waits(tx.conn, self.id.get(), position)?.is_some();
        Ok(waits || self.blocked_key(tx, delivery)?.is_some())
    }

    /// Takes the delivery out of the rows that stand for it.
    fn uncover(
        &self,
        tx: &mut Transaction<'_>,
        delivery: &TransactionalDelivery,
    ) -> QueryResult<()> {
        let id = self.id.get();
        queries::delete_waiting(tx.conn, id, signed(delivery.position.get()))?;
        if let Some(aggregate) = self.blocked_key(tx, delivery)? {
            let from = (delivery.position.next(), delivery.version.next());
            queries::move_blocked(tx.conn, id, aggregate, from)?;
        }
        Ok(())
    }

    /// The key of the delivery's aggregate, where that is blocked from there on or from before.
    fn blocked_key(
        &self,
        tx: &mut Transaction<'_>,
        delivery: &TransactionalDelivery,
    ) -> QueryResult<Option<i64>> {
        let Some(aggregate) = tx.aggregate_key(&delivery.aggregate)? else {
            return Ok(None);
        };
        let from = queries::blocked_from(tx.conn, self.id.get(), aggregate)?;
        let is_within = from.is_some_and(|from| from <= signed(delivery.position.get()));
        Ok(is_within.then_some(aggregate))
    }
}
