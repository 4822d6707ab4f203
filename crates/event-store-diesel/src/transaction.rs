//! An open transaction of the writer, and what requests do in it.

use diesel::{
    QueryResult, SqliteConnection,
    connection::{Connection, TransactionManager},
};
use domain_events::{
    AggregateRef, EventEnvelope, EventId, Position, Recorded, StartFrom, StoreError,
    SubscriptionId, Timestamp, Version,
};

use crate::{
    known::Known,
    names::Names,
    pending::Pending,
    queries,
    rows::{EventRow, Keys, unsigned},
};

pub(crate) type Manager = <SqliteConnection as Connection>::TransactionManager;

/// An open transaction of the writer.
pub(crate) struct Transaction<'a> {
    pub(crate) conn: &'a mut SqliteConnection,
    pub(crate) names: &'a mut Names,
    known: &'a mut Known,
    pending: Pending,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(
        conn: &'a mut SqliteConnection,
        names: &'a mut Names,
        known: &'a mut Option<Known>,
    ) -> QueryResult<Self> {
        let known = Known::refresh(known, conn, names)?;
        Ok(Self::knowing(conn, names, known))
    }

    /// With what is known inside the transaction that is open.
    pub(crate) fn knowing(
        conn: &'a mut SqliteConnection,
        names: &'a mut Names,
        known: &'a mut Known,
    ) -> Self {
        let pending = Pending::default();
        Self {
            conn,
            names,
            known,
            pending,
        }
    }

    /// The last position of the log, with what this transaction has appended.
    pub(crate) fn head(&self) -> Position {
        self.known.head
    }

    /// The last position of the log, with what the application's code has appended in this transaction.
    pub(crate) fn head_now(&mut self) -> QueryResult<Position> {
        queries::head(self.conn).map(|head| Position::new(unsigned(head)))
    }

    /// Reads again what is known, where the application's code has appended in this transaction.
    pub(crate) fn look_again(&mut self) -> QueryResult<()> {
        if self.head_now()? != self.known.head {
            self.known.read_again(self.conn, self.names)?;
        }
        Ok(())
    }

    /// The last position that a subscription which starts there is not to have; refused where the log
    /// was pruned there.
    pub(crate) fn place(
        &mut self,
        subscription: &str,
        start: StartFrom,
    ) -> QueryResult<Result<Position, StoreError>> {
        let pruned = queries::pruned_through(self.conn)?;
        let pruned = Position::new(unsigned(pruned));
        Ok(start.place(subscription, self.head(), pruned))
    }

    /// Does what may be refused while it is done; it leaves no trace then.
    pub(crate) fn unless_refused<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> QueryResult<Result<T, StoreError>>,
    ) -> QueryResult<Result<T, StoreError>> {
        self.write_rows()?;
        Manager::begin_transaction(self.conn)?;
        let done = act(self)?;
        match done {
            Ok(_) => Manager::commit_transaction(self.conn)?,
            Err(_) => {
                Manager::rollback_transaction(self.conn)?;
                // What was read in it may be undone.
                *self.names = Names::default();
                self.known.read_again(self.conn, self.names)?;
            }
        }
        Ok(done)
    }

    /// The time to record for what is appended now.
    pub(crate) fn time(&mut self) -> Timestamp {
        self.known.time(Timestamp::now())
    }

    /// The event with this id, if it is in the log.
    pub(crate) fn event(&mut self, id: EventId) -> QueryResult<Option<EventEnvelope>> {
        if self.known.is_new(id) {
            return Ok(None);
        }
        self.write_rows()?;
        self.names.event(self.conn, id)
    }

    pub(crate) fn version(&mut self, aggregate: &AggregateRef) -> QueryResult<Version> {
        self.known.version(self.conn, aggregate)
    }

    pub(crate) fn aggregate_key(&mut self, aggregate: &AggregateRef) -> QueryResult<Option<i64>> {
        self.known.aggregate_key(self.conn, aggregate)
    }

    pub(crate) fn has_subscription(&mut self, id: SubscriptionId) -> QueryResult<bool> {
        if self.known.subscriptions.contains(&id) {
            return Ok(true);
        }
        let found = queries::has_subscription(self.conn, id.get())?;
        if found {
            self.known.subscriptions.insert(id);
        }
        Ok(found)
    }

    pub(crate) fn forget_subscription(&mut self, id: SubscriptionId) {
        self.known.subscriptions.remove(&id);
    }

    /// Appends an event at the next position, and as the next of its aggregate.
    pub(crate) fn append(
        &mut self,
        event: &EventEnvelope,
        payload: &[u8],
        metadata: Option<&str>,
        at: Timestamp,
    ) -> QueryResult<Recorded> {
        let conn = &mut *self.conn;
        let (aggregate, version) = self.known.next_version(conn, event.aggregate())?;
        let keys = Keys {
            event_type: self.known.event_type_key(conn, event.event_type())?,
            aggregate,
        };
        let position = self.known.head.next();
        let recorded = Recorded {
            position,
            version,
            at,
        };
        let id = event.id();
        let row = EventRow::new(event, id.as_bytes(), payload, metadata, keys, recorded);
        self.pending.push(conn, &row)?;
        self.known.note_event(id, position);
        Ok(recorded)
    }

    /// Writes the rows of what was appended, and of the aggregates that have changed by it, so that
    /// they can be read.
    pub(crate) fn write_rows(&mut self) -> QueryResult<()> {
        self.pending.write(self.conn)?;
        self.known.write_heads(self.conn)
    }
}
