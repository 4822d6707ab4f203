//! The beginning of a run, and names that become known during one.

use diesel::{QueryResult, result::Error};
use domain_events::{
    AggregateRef, BlockedAggregate, EventId, Kept, Position, Progress, ProjectionStart, Promise,
    Registration, RegistrationDone, RunState, StartedDelivery, StoreError, StoreErrorKind,
    SubscriptionId, SubscriptionState, Timestamp, Version, WaitingDelivery,
};

use crate::{
    failure,
    handlers::{self, Savepoint},
    positions,
    queries::{self, BlockedRow, SubscriptionRow, WaitingRow},
    rows::{signed, unsigned},
    session::{broken, count, pause_reason},
    transaction::Transaction,
    writer::{Fault, Request},
};

/// The beginning of a run.
pub(crate) struct RunRequest {
    registrations: Vec<Registration>,
    state: Option<Result<RunState, StoreError>>,
    promise: Promise<Result<RunState, StoreError>>,
}

impl RunRequest {
    pub(crate) fn new(
        registrations: Vec<Registration>,
        promise: Promise<Result<RunState, StoreError>>,
    ) -> Self {
        Self {
            registrations,
            state: None,
            promise,
        }
    }
}

impl Request for RunRequest {
    fn runs_handlers(&self) -> bool {
        self.registrations.iter().any(|it| it.projection.is_some())
    }

    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        self.state = Some(tx.unless_refused(|tx| self.begin(tx))?);
        Ok(())
    }

    fn answer(self: Box<Self>, end: Result<(), Fault>) {
        // A promise that is dropped unkept says that the store is closed.
        match (end, self.state) {
            (Ok(()), Some(state)) => self.promise.keep(state),
            (Ok(()), None) => {}
            (Err(fault), _) => self.promise.keep(Err(fault.into_error())),
        }
    }
}

impl RunRequest {
    fn begin(&self, tx: &mut Transaction<'_>) -> QueryResult<Result<RunState, StoreError>> {
        let last = queries::last_run(tx.conn)?;
        let after_clean_end = last.is_none_or(|(_, ended_at, _)| ended_at.is_some());
        let repeats_through = match after_clean_end {
            true => last.map_or(0, |(.., through)| through),
            false => signed(tx.head().get()),
        };
        match after_clean_end {
            true => queries::delete_all_started(tx.conn)?,
            false => queries::count_unclean_end(tx.conn)?,
        };
        let now = Timestamp::now().as_micros();
        queries::insert_run(tx.conn, now, repeats_through)?;
        let mut subscriptions = Vec::with_capacity(self.registrations.len());
        for registration in &self.registrations {
            match register(tx, registration)? {
                Ok(known) => subscriptions.push(known),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        Ok(Ok(RunState {
            after_clean_end,
            repeats_through: place(repeats_through),
            head: tx.head(),
            subscriptions,
        }))
    }
}

/// A name that becomes known during a run.
pub(crate) struct RegistrationRequest {
    registration: Registration,
    state: Option<Result<SubscriptionState, StoreError>>,
    done: RegistrationDone,
}

impl RegistrationRequest {
    pub(crate) fn new(registration: Registration, done: RegistrationDone) -> Self {
        Self {
            registration,
            state: None,
            done,
        }
    }
}

impl Request for RegistrationRequest {
    fn runs_handlers(&self) -> bool {
        self.registration.projection.is_some()
    }

    fn apply(&mut self, tx: &mut Transaction<'_>) -> QueryResult<()> {
        self.state = Some(tx.unless_refused(|tx| register(tx, &self.registration))?);
        Ok(())
    }

    fn answer(self: Box<Self>, end: Result<(), Fault>) {
        let begins = self.runs_handlers();
        let Self { state, done, .. } = *self;
        let end = end.map_err(|fault| match fault {
            Fault::Refused(error) if begins => not_begun(Some(error.to_string())),
            // It has ended the transaction itself.
            Fault::NotCommitted(error) if begins && error.kind() == StoreErrorKind::Other => {
                not_begun(Some(error.to_string()))
            }
            fault => fault.into_error(),
        });
        done(end.and_then(|()| state.unwrap_or_else(|| Err(failure::closed()))));
    }
}

/// What is known of a subscription, which is made known where it is new; refused where it was to
/// start with what is pruned.
fn register(
    tx: &mut Transaction<'_>,
    registration: &Registration,
) -> QueryResult<Result<SubscriptionState, StoreError>> {
    let known = known(tx, registration)?;
    let stored = known.as_ref().and_then(|row| row.version);
    let projection = registration.projection.as_ref();
    let begins = projection.filter(|it| stored != Some(i64::from(it.version())));
    let row = match (known, begins) {
        (Some(row), None) => {
            // What it is given now, its tables are not.
            if projection.is_none() && row.version.is_some() {
                queries::update_version(tx.conn, row.subscription_id, None)?;
            }
            row
        }
        // It was reset, to where it is.
        (Some(row), Some(_)) if stored == Some(0) => row,
        (known, _) => match start(tx, registration, known)? {
            Ok(row) => row,
            Err(refusal) => return Ok(Err(refusal)),
        },
    };
    if let Some(projection) = begins {
        if let Err(refusal) = begin(tx, projection)? {
            return Ok(Err(refusal));
        }
        queries::update_version(tx.conn, row.subscription_id, Some(projection.version()))?;
    }
    state(tx, &row).map(Ok)
}

/// The row of a subscription that is known, be it by a former name.
fn known(
    tx: &mut Transaction<'_>,
    registration: &Registration,
) -> QueryResult<Option<SubscriptionRow>> {
    let name = &registration.name;
    if let Some(row) = queries::subscription(tx.conn, name)? {
        return Ok(Some(row));
    }
    for former in &registration.former_names {
        if let Some(row) = queries::subscription(tx.conn, former)? {
            queries::rename_subscription(tx.conn, row.subscription_id, name)?;
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// Places a subscription where it starts: one that is new, or a projection that is built again.
fn start(
    tx: &mut Transaction<'_>,
    registration: &Registration,
    known: Option<SubscriptionRow>,
) -> QueryResult<Result<SubscriptionRow, StoreError>> {
    let name = &registration.name;
    let through = match tx.place(name, registration.start_from)? {
        Ok(through) => through,
        Err(refusal) => return Ok(Err(refusal)),
    };
    match known {
        None => drop(queries::insert_subscription(tx.conn, name, through)?),
        Some(row) => queries::reset_subscription(tx.conn, row.subscription_id, through)?,
    }
    let row = queries::subscription(tx.conn, name)?;
    Ok(Ok(
        row.ok_or_else(|| broken("a subscription without its row"))?
    ))
}

/// Has a projection make its tables.
fn begin(
    tx: &mut Transaction<'_>,
    projection: &ProjectionStart,
) -> QueryResult<Result<(), StoreError>> {
    // It may read the log, and even append to it.
    tx.write_rows()?;
    let mut text = None;
    queries::put_guard(tx.conn)?;
    let made = handlers::call(tx.conn, |conn| match projection.begin(conn) {
        Ok(()) => Kept::All,
        Err(error) => {
            text = Some(error.to_string());
            Kept::Failed
        }
    })?;
    let is_same = queries::take_guard(tx.conn)?;
    tx.look_again()?;
    match made {
        _ if !is_same => Err(Error::BrokenTransactionManager),
        Savepoint::Kept(Kept::All) => Ok(Ok(())),
        Savepoint::Kept(_) => Ok(Err(not_begun(text))),
        Savepoint::Gone => Err(Error::BrokenTransactionManager),
    }
}

fn not_begun(text: Option<String>) -> StoreError {
    let text = text.unwrap_or_else(|| "it has panicked".to_owned());
    let what = "the projection has not made its tables";
    StoreError::new(StoreErrorKind::Application, what).caused_by(NotBegun(text))
}

/// Why a projection could not begin.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotBegun(String);

fn state(tx: &mut Transaction<'_>, row: &SubscriptionRow) -> QueryResult<SubscriptionState> {
    let id = row.subscription_id;
    // An aggregate may have got its row in this very transaction.
    tx.write_rows()?;
    let unfinished = positions::decode(&row.unfinished);
    let unfinished = unfinished.ok_or_else(|| broken("progress that cannot be read"))?;
    let waiting = queries::waiting(tx.conn, id)?;
    let blocked = queries::blocked(tx.conn, id)?;
    let started = queries::started(tx.conn, id)?;
    Ok(SubscriptionState {
        id: SubscriptionId::new(id),
        progress: Progress {
            through: place(row.through),
            unfinished,
        },
        waiting: waiting
            .into_iter()
            .map(|row| waiting_delivery(tx, row))
            .collect::<QueryResult<_>>()?,
        blocked: blocked
            .into_iter()
            .map(|row| blocked_aggregate(tx, row))
            .collect::<QueryResult<_>>()?,
        started: started.into_iter().map(started_delivery).collect(),
        paused: row.paused.as_deref().map(pause_reason).transpose()?,
    })
}

fn waiting_delivery(tx: &mut Transaction<'_>, row: WaitingRow) -> QueryResult<WaitingDelivery> {
    Ok(WaitingDelivery {
        position: place(row.position),
        aggregate: aggregate(tx, row.aggregate_key)?,
        attempts: count(row.attempts),
        first_attempt_at: Timestamp::from_micros(row.first_attempt_at),
        due_at: Timestamp::from_micros(row.due_at),
        last_error: row.last_error,
        is_replay: row.is_replay,
    })
}

fn blocked_aggregate(tx: &mut Transaction<'_>, row: BlockedRow) -> QueryResult<BlockedAggregate> {
    let parked_behind = row.parked_behind.map(|id| {
        let id = <[u8; 16]>::try_from(id);
        id.map(EventId::from_bytes)
            .map_err(|_| broken("an aggregate parked behind no event"))
    });
    Ok(BlockedAggregate {
        aggregate: aggregate(tx, row.aggregate_key)?,
        from: place(row.from_position),
        version: Version::new(unsigned(row.from_version)),
        parked_behind: parked_behind.transpose()?,
    })
}

fn started_delivery((position, unclean_ends): (i64, i64)) -> StartedDelivery {
    StartedDelivery {
        position: place(position),
        unclean_ends: count(unclean_ends),
    }
}

fn aggregate(tx: &mut Transaction<'_>, key: i64) -> QueryResult<AggregateRef> {
    let found = tx.names.aggregate(tx.conn, key)?;
    found.ok_or_else(|| broken("a delivery without its aggregate"))
}

fn place(number: i64) -> Position {
    Position::new(unsigned(number))
}
