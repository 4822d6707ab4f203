//! The closed files and what the program knows, gathered for questions in SQL.

use std::path::Path;

use diesel::{
    Connection, SqliteConnection, connection::SimpleConnection, prelude::*, sql_query, sql_types,
};
use serde::Serialize;

use crate::{
    events::{CandleClosed, OrderApproved},
    exchange::{self, Answer},
    files::Files,
    trace,
};

/// What the system counted for one subscription in this run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Counted {
    pub(crate) subscription: String,
    /// Deliveries handled, skipped or given up.
    pub(crate) done: u64,
    pub(crate) retries: u64,
    pub(crate) waiting: u64,
}

/// A connection that has everything to be asked.
pub(crate) struct Evidence(SqliteConnection);

/// A line of text that a question is answered with.
#[derive(QueryableByName)]
pub(super) struct Text {
    #[diesel(sql_type = sql_types::Text)]
    pub(super) text: String,
}

#[derive(QueryableByName)]
struct Approval {
    #[diesel(sql_type = sql_types::BigInt)]
    position: i64,
    #[diesel(sql_type = sql_types::Text)]
    payload: String,
}

impl Evidence {
    /// Reads the closed files of a run, and adds what the program was given and counted.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn gather(
        files: &Files,
        input: &[CandleClosed],
        counted: &[Counted],
    ) -> anyhow::Result<Self> {
        let mut evidence = Self(SqliteConnection::establish(":memory:")?);
        evidence.attach("log", files.log())?;
        evidence.attach("desk", files.desk())?;
        evidence.0.batch_execute(include_str!("evidence.sql"))?;
        evidence.add_input(input)?;
        evidence.add_sightings(&std::fs::read_to_string(files.trace())?)?;
        evidence.add_fates()?;
        evidence.add_counted(counted)?;
        Ok(evidence)
    }

    pub(super) fn into_connection(self) -> SqliteConnection {
        self.0
    }

    fn attach(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        sql_query(format!("ATTACH ? AS {name}"))
            .bind::<sql_types::Text, _>(path.to_string_lossy())
            .execute(&mut self.0)?;
        Ok(())
    }

    fn add_input(&mut self, input: &[CandleClosed]) -> anyhow::Result<()> {
        let rows = input
            .iter()
            .map(|it| (&it.market, it.time, it.close, it.volume));
        self.add("input", 4, rows)
    }

    fn add_sightings(&mut self, text: &str) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for (number, (run, sighting)) in trace::sightings(text).enumerate() {
            let Some(it) = sighting else {
                anyhow::bail!("the trace was not read: sighting {} is broken", number + 1);
            };
            let (kind, market) = (it.aggregate_type, it.aggregate_id);
            rows.push((
                number,
                run,
                it.subscription,
                kind,
                market,
                it.position,
                it.attempt,
            ));
        }
        self.add("this_run", 1, [[trace::runs(text)]])?;
        self.add("sighting", 7, rows)
    }

    /// Asks the exchange, which is a function of the order, what became of each approved one.
    fn add_fates(&mut self) -> anyhow::Result<()> {
        let approvals: Vec<Approval> =
            sql_query("SELECT position, payload FROM event WHERE type = 'trading.order-approved'")
                .load(&mut self.0)?;
        let mut rows = Vec::with_capacity(approvals.len());
        for Approval { position, payload } in approvals {
            let order: OrderApproved = serde_json::from_str(&payload)?;
            let fate = match exchange::fate(&order) {
                Some(Answer::Executed(_)) => "executed",
                Some(Answer::Refused) => "failed",
                None => "dead",
            };
            rows.push((position, fate));
        }
        self.add("fate", 2, rows)
    }

    fn add_counted(&mut self, counted: &[Counted]) -> anyhow::Result<()> {
        let rows = counted
            .iter()
            .map(|it| (&it.subscription, it.done, it.retries, it.waiting));
        self.add("counted", 4, rows)
    }

    /// Adds rows to a table, in one statement a thousand: they travel as one JSON text.
    fn add<T: Serialize>(
        &mut self,
        table: &str,
        columns: usize,
        rows: impl IntoIterator<Item = T>,
    ) -> anyhow::Result<()> {
        let columns: Vec<_> = (0..columns)
            .map(|number| format!("value ->> {number}"))
            .collect();
        let statement = format!(
            "INSERT INTO {table} SELECT {} FROM json_each(?)",
            columns.join(", ")
        );
        let rows: Vec<_> = rows.into_iter().collect();
        for thousand in rows.chunks(1_000) {
            sql_query(&statement)
                .bind::<sql_types::Text, _>(serde_json::to_string(thousand)?)
                .execute(&mut self.0)?;
        }
        Ok(())
    }
}
