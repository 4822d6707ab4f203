//! Rows of events on their way into the table, several in one statement: it opens the table and its
//! indexes once for all of them, which a statement for each spends a third of its time on.

use std::ops::Range;

use diesel::{QueryResult, SqliteConnection};

use crate::{queries, rows::EventRow};

/// How many rows share a statement: there is one for each of these numbers, prepared once.
const MANY: usize = 16;
const FEW: usize = 4;

/// How many bytes of payloads wait at most before they are written.
const BYTES: usize = 64 * 1024;

/// Rows that are to be inserted before the transaction ends, or anything looks for them.
#[derive(Default)]
pub(crate) struct Pending {
    rows: Vec<PendingRow>,
    payloads: Vec<u8>,
}

/// The row of an event, with where its payload is.
pub(crate) struct PendingRow {
    pub(crate) numbers: [i64; 9],
    pub(crate) event_id: [u8; 16],
    pub(crate) correlation_id: [u8; 16],
    pub(crate) causation_id: Option<[u8; 16]>,
    pub(crate) metadata: Option<Box<str>>,
    pub(crate) payload: Range<usize>,
}

impl Pending {
    /// Adds a row; now and then that writes all of them.
    pub(crate) fn push(
        &mut self,
        conn: &mut SqliteConnection,
        row: &EventRow<'_>,
    ) -> QueryResult<()> {
        let start = self.payloads.len();
        self.payloads.extend_from_slice(row.payload);
        self.rows.push(PendingRow {
            numbers: [
                row.position,
                row.type_key,
                row.aggregate_key,
                row.version,
                row.schema_version,
                row.urgency,
                row.occurred_at,
                row.recorded_at,
                row.checksum,
            ],
            event_id: *row.event_id,
            correlation_id: *row.correlation_id,
            causation_id: row.causation_id.copied(),
            metadata: row.metadata.map(Box::from),
            payload: start..self.payloads.len(),
        });
        match self.rows.len() < MANY && self.payloads.len() < BYTES {
            true => Ok(()),
            false => self.write(conn),
        }
    }

    /// Writes all rows.
    pub(crate) fn write(&mut self, conn: &mut SqliteConnection) -> QueryResult<()> {
        let (mut rows, payloads) = (&self.rows[..], &self.payloads[..]);
        while !rows.is_empty() {
            let now = match rows.len() {
                MANY.. => queries::insert_events::<MANY>(conn, rows, payloads)?,
                FEW.. => queries::insert_events::<FEW>(conn, rows, payloads)?,
                _ => queries::insert_events::<1>(conn, rows, payloads)?,
            };
            rows = &rows[now..];
        }
        self.rows.clear();
        self.payloads.clear();
        Ok(())
    }
}
