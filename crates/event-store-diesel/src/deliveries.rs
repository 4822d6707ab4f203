//! Changes of the delivery state, on their way into the store.

use diesel::{QueryResult, result::Error};
use domain_events::{
    AggregateRef, BlockedAggregate, ChangesDone, DeadLetter, DeliveryChange, DeliveryChanges,
    PauseReason, Position, ProcessingOutcome, Progress, StoreError, StoreErrorKind, SubscriptionId,
    Timestamp, WaitingDelivery,
};

use crate::{
    positions,
    queries::{self, BlockedRow, NewDeadLetter, ProcessingRow, Settlement, WaitingRow},
    rows::signed,
    transaction::Transaction,
    writer::{Fault, Request},
};

/// Changes that are committed together.
pub(crate) struct ChangesRequest {
    changes: DeliveryChanges,
    refusal: Option<StoreError>,
    done: ChangesDone,
}

impl ChangesRequest {
    pub(crate) fn new(changes: DeliveryChanges, done: ChangesDone) -> Self {
        Self {
            changes,
            refusal: None,
            done,
        }
    }
}

impl Request for ChangesRequest {
    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        self.refusal = None;
        let planned: Result<Vec<Step<'_>>, Stop> =
            self.changes.iter().map(|change| plan(tx, change)).collect();
        // Nothing is written before all can be.
        match planned {
            Ok(steps) => steps.into_iter().try_for_each(|step| step.take(tx)),
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Refused(refusal)) => {
                self.refusal = Some(refusal);
                Ok(())
            }
        }
    }

    fn answer(self: Box<Self>, end: Result<(), Fault>) {
        let Self { refusal, done, .. } = *self;
        let end = end.map_err(Fault::into_error);
        done(end.and_then(|()| refusal.map_or(Ok(()), Err)));
    }
}

/// Why changes are not made: they are at fault, or the database is.
enum Stop {
    Refused(StoreError),
    Failed(Error),
}

impl Stop {
    fn refused(what: &'static str) -> Self {
        Self::Refused(StoreError::new(StoreErrorKind::Other, what))
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A change that can be written.
enum Step<'a> {
    SaveProgress(i64, Position, Vec<u8>),
    PutWaiting(WaitingRow),
    DeleteWaiting(i64, Position),
    PutDeadLetter(NewDeadLetter<'a>),
    PutBlocked(BlockedRow),
    DeleteBlocked(i64, i64),
    SetPaused(i64, Option<PauseReason>),
    PutStarted(i64, Position),
    DeleteStarted(i64, Position),
    Replay(WaitingRow),
    Discard(&'a str, Position, &'a str),
    Reset(&'a str, Position),
    Forget(&'a str),
    Log(Vec<ProcessingRow>, usize),
    EndRun,
    Nothing,
}

fn plan<'a>(tx: &mut Transaction<'_>, change: &'a DeliveryChange) -> Result<Step<'a>, Stop> {
    Ok(match change {
        DeliveryChange::Progressed(id, progress) => progressed(known(tx, *id)?, progress)?,
        DeliveryChange::Waiting(id, delivery) => {
            let aggregate = aggregate_key(tx, &delivery.aggregate)?;
            Step::PutWaiting(waiting(known(tx, *id)?, aggregate, delivery))
        }
        DeliveryChange::Finished(id, position) => Step::DeleteWaiting(known(tx, *id)?, *position),
        DeliveryChange::Dead(id, letter) => Step::PutDeadLetter(dead(tx, *id, letter)?),
        DeliveryChange::Blocked(id, blocked) => {
            let aggregate = aggregate_key(tx, &blocked.aggregate)?;
            Step::PutBlocked(blocked_row(known(tx, *id)?, aggregate, blocked))
        }
        DeliveryChange::Unblocked(id, aggregate) => match tx.aggregate_key(aggregate)? {
            Some(aggregate) => Step::DeleteBlocked(known(tx, *id)?, aggregate),
            None => Step::Nothing,
        },
        DeliveryChange::Paused(id, why) => Step::SetPaused(known(tx, *id)?, *why),
        DeliveryChange::Started(id, position) => Step::PutStarted(known(tx, *id)?, *position),
        DeliveryChange::Ended(id, position) => Step::DeleteStarted(known(tx, *id)?, *position),
        DeliveryChange::Replayed(id, delivery) => {
            let aggregate = aggregate_key(tx, &delivery.aggregate)?;
            Step::Replay(waiting(known(tx, *id)?, aggregate, delivery))
        }
        DeliveryChange::Discarded {
            subscription,
            position,
            reason,
        } => Step::Discard(subscription, *position, reason),
        DeliveryChange::Reset(name, start) => {
            Step::Reset(name, tx.place(name, *start)?.map_err(Stop::Refused)?)
        }
        DeliveryChange::Forgotten(name) => Step::Forget(name),
        DeliveryChange::Processed { attempts, keep } => {
            Step::Log(attempts.iter().map(processing_row).collect(), *keep)
        }
        DeliveryChange::RunEnded => Step::EndRun,
        _ => return Err(Stop::refused("a change that this store does not know")),
    })
}

fn known(tx: &mut Transaction<'_>, id: SubscriptionId) -> Result<i64, Stop> {
    match tx.has_subscription(id)? {
        true => Ok(id.get()),
        false => Err(Stop::refused(
            "the change of an unknown subscription was not saved",
        )),
    }
}

fn aggregate_key(tx: &mut Transaction<'_>, aggregate: &AggregateRef) -> Result<i64, Stop> {
    let key = tx.aggregate_key(aggregate)?;
    key.ok_or_else(|| Stop::refused("the change for an unknown aggregate was not saved"))
}

fn progressed(id: i64, progress: &Progress) -> Result<Step<'static>, Stop> {
    let unfinished = positions::encode(&progress.unfinished);
    let unfinished = unfinished.filter(|_| progress.unfinished.last() <= Some(&progress.through));
    let refused = Stop::refused("progress whose positions do not ascend to its end was not saved");
    Ok(Step::SaveProgress(
        id,
        progress.through,
        unfinished.ok_or(refused)?,
    ))
}

fn waiting(id: i64, aggregate: i64, delivery: &WaitingDelivery) -> WaitingRow {
    WaitingRow {
        subscription_id: id,
        position: signed(delivery.position.get()),
        aggregate_key: aggregate,
        attempts: i64::from(delivery.attempts),
        first_attempt_at: delivery.first_attempt_at.as_micros(),
        due_at: delivery.due_at.as_micros(),
        last_error: delivery.last_error.clone(),
        is_replay: delivery.is_replay,
    }
}

fn blocked_row(id: i64, aggregate: i64, blocked: &BlockedAggregate) -> BlockedRow {
    BlockedRow {
        subscription_id: id,
        aggregate_key: aggregate,
        from_position: signed(blocked.from.get()),
        from_version: signed(blocked.version.get()),
        parked_behind: blocked.parked_behind.map(|event| event.as_bytes().to_vec()),
    }
}

fn dead<'a>(
    tx: &mut Transaction<'_>,
    id: SubscriptionId,
    letter: &'a DeadLetter,
) -> Result<NewDeadLetter<'a>, Stop> {
    let subscription_id = known(tx, id)?;
    let position = letter.position().map(|position| signed(position.get()));
    let refused = || Stop::refused("a dead letter whose event is not in the log was not saved");
    let position = position.ok_or_else(refused)?;
    tx.write_rows()?;
    if queries::event_at(tx.conn, position)?.is_empty() {
        return Err(refused());
    }
    Ok(NewDeadLetter {
        subscription_id,
        position,
        reason: letter.reason.as_str(),
        attempts: i64::from(letter.attempts),
        error: &letter.error,
        first_attempt_at: letter.first_attempt_at.as_micros(),
        dead_at: letter.dead_at.as_micros(),
    })
}

impl Step<'_> {
    fn take(self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        let conn = &mut *tx.conn;
        match self {
            Self::SaveProgress(id, through, unfinished) => {
                queries::update_progress(conn, id, through, &unfinished)?
            }
            Self::PutWaiting(row) => queries::put_waiting(conn, &row)?,
            Self::DeleteWaiting(id, at) => queries::delete_waiting(conn, id, signed(at.get()))?,
            Self::PutDeadLetter(letter) => {
                queries::delete_waiting(conn, letter.subscription_id, letter.position)?;
                queries::put_dead_letter(conn, &letter)?
            }
            Self::PutBlocked(row) => queries::put_blocked(conn, &row)?,
            Self::SetPaused(id, why) => {
                queries::update_paused(conn, id, why.map(PauseReason::as_str))?
            }
            Self::PutStarted(id, at) => queries::put_started(conn, id, signed(at.get()))?,
            Self::DeleteStarted(id, at) => queries::delete_started(conn, id, signed(at.get()))?,
            Self::Replay(row) => {
                let (id, at) = (row.subscription_id, row.position);
                match queries::settle_dead_letter(conn, id, at, &settled("replayed", None))? {
                    0 => 0,
                    _ => queries::put_waiting(conn, &row)?,
                }
            }
            Self::Discard(name, at, reason) => match queries::subscription(conn, name)? {
                Some(row) => {
                    let (id, at) = (row.subscription_id, signed(at.get()));
                    let discarded = settled("discarded", Some(reason));
                    match queries::settle_dead_letter(conn, id, at, &discarded)? {
                        0 => 0,
                        // Whoever is subscribed says so itself; nobody may be.
                        _ => queries::unpark(conn, id, at)?,
                    }
                }
                None => 0,
            },
            Self::DeleteBlocked(id, aggregate) => queries::delete_blocked(conn, id, aggregate)?,
            Self::Reset(name, through) => match queries::subscription(conn, name)? {
                Some(row) => {
                    let id = row.subscription_id;
                    if row.version.is_some() {
                        queries::update_version(conn, id, Some(0))?;
                    }
                    queries::reset_subscription(conn, id, through)?;
                    1
                }
                None => 0,
            },
            Self::Forget(name) => match queries::subscription(conn, name)? {
                Some(row) => {
                    let id = row.subscription_id;
                    queries::delete_exceptions(conn, id)?;
                    queries::delete_dead_letters(conn, id, i64::MIN)?;
                    queries::delete_subscription(conn, id)?;
                    tx.forget_subscription(SubscriptionId::new(id));
                    1
                }
                None => 0,
            },
            Self::Log(rows, keep) => {
                for row in &rows {
                    queries::insert_processing(conn, row)?;
                }
                queries::keep_processing(conn, i64::try_from(keep).unwrap_or(i64::MAX))?
            }
            Self::EndRun => match queries::last_run(conn)? {
                Some((run, None, _)) => queries::end_run(conn, run, Timestamp::now().as_micros())?,
                _ => 0,
            },
            Self::Nothing => 0,
        };
        Ok(())
    }
}

fn processing_row(attempt: &ProcessingOutcome) -> ProcessingRow {
    let (result, note) = attempt.result.to_stored();
    ProcessingRow {
        subscription: attempt.subscription.to_string(),
        event_id: attempt.event_id.as_bytes().to_vec(),
        position: signed(attempt.position.unwrap_or_default().get()),
        attempt: i64::from(attempt.attempt),
        result: result.to_owned(),
        note: note.map(str::to_owned),
        ended_at: attempt.ended_at.as_micros(),
        took: i64::try_from(attempt.took.as_micros()).unwrap_or(i64::MAX),
    }
}

fn settled<'a>(settled_as: &'a str, note: Option<&'a str>) -> Settlement<'a> {
    Settlement {
        settled_at: Timestamp::now().as_micros(),
        settled_as,
        note,
    }
}
