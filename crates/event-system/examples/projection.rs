//! A read model in the store's own database: a table that holds what the log makes of it, every event
//! exactly once, and is built again when the program has another version of it.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use diesel::{
    Connection, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    dsl::sql,
    sql_query,
    sql_types::{BigInt, Text},
};
use domain_events::EventEnvelope;
use event_system::{
    DomainEvent, EventSystem, HandlerContext, HandlerError, Projection, StartFrom, Subscription,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "bank.deposited", aggregate = "account", id = account)]
struct Deposited {
    account: String,
    amount: i64,
}

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "bank.withdrawn", aggregate = "account", id = account)]
struct Withdrawn {
    account: String,
    amount: i64,
}

/// What is on each account.
struct Balances;

impl Projection<SqliteConnection> for Balances {
    const VERSION: u32 = 1;

    fn begin(&self, conn: &mut SqliteConnection) -> Result<(), HandlerError> {
        conn.batch_execute(
            "DROP TABLE IF EXISTS balances; \
             CREATE TABLE balances (account TEXT PRIMARY KEY, balance BIGINT NOT NULL)",
        )?;
        Ok(())
    }

    fn apply(
        &self,
        event: &Arc<EventEnvelope>,
        conn: &mut SqliteConnection,
        _: &HandlerContext,
    ) -> Result<(), HandlerError> {
        let amount = match event.event_type() {
            Deposited::EVENT_TYPE => event.typed::<Deposited>()?.amount,
            Withdrawn::EVENT_TYPE => -event.typed::<Withdrawn>()?.amount,
            _ => return Ok(()),
        };
        sql_query(
            "INSERT INTO balances VALUES (?, ?) \
             ON CONFLICT (account) DO UPDATE SET balance = balance + excluded.balance",
        )
        .bind::<Text, _>(event.aggregate().id())
        .bind::<BigInt, _>(amount)
        .execute(conn)?;
        Ok(())
    }
}

fn balance(file: &Path, account: &str) -> Result<i64> {
    let mut conn = SqliteConnection::establish(&file.display().to_string())?;
    let balance = format!("(SELECT balance FROM balances WHERE account = '{account}')");
    Ok(sql::<BigInt>(&format!("SELECT {balance}")).get_result(&mut conn)?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("bank.db");
    let system = EventSystem::builder()
        .sqlite(&file)
        .subscribe(Subscription::projection("balances", Balances))
        .start()
        .await?;
    for amount in 1..=100 {
        let account = String::from("a-1");
        system.publish(Deposited { account, amount }).await?;
    }
    let account = String::from("a-1");
    system
        .publish(Withdrawn {
            account,
            amount: 50,
        })
        .await?;
    system.wait_idle().await?;
    println!("a-1 has {}", balance(&file, "a-1")?);
    ensure!(balance(&file, "a-1")? == 5_000, "not the fold of the log");

    // Empties the table and reads the log from the beginning, as another version would.
    system.reset("balances", StartFrom::Beginning).await?;
    system.wait_idle().await?;
    println!("{}", system.status().await);
    println!("built again, a-1 has {}", balance(&file, "a-1")?);
    ensure!(balance(&file, "a-1")? == 5_000, "not the fold of the log");
    system.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}
