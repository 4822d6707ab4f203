//! A shop that writes its orders with Diesel: what it changes and the event of that are committed
//! together, or not at all, and the bus delivers what was committed.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use diesel::{
    Connection, RunQueryDsl, SqliteConnection, connection::SimpleConnection, dsl::sql, sql_query,
    sql_types::BigInt,
};
use event_system::{
    DomainEvent, Event, EventSystem, Priority, SqliteOptions, append_in, prepare_connection,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "shop.order-placed", aggregate = "order", id = order)]
struct OrderPlaced {
    order: String,
    pieces: i64,
}

/// Places an order: a row of the shop's own table, and its event.
fn place(conn: &mut SqliteConnection, order: &str, pieces: i64) -> Result<()> {
    conn.immediate_transaction(|conn| {
        let order = order.to_owned();
        append_in(conn, [OrderPlaced { order, pieces }])?;
        sql_query("UPDATE stock SET pieces = pieces - ?")
            .bind::<BigInt, _>(pieces)
            .execute(conn)?;
        let left: i64 = sql::<BigInt>("SELECT pieces FROM stock").get_result(conn)?;
        if left < 0 {
            // Rolls back, and with it the event.
            bail!("{pieces} pieces are not there");
        }
        Ok(())
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shop.db");
    let mut conn = SqliteConnection::establish(file.to_str().context("a path of UTF-8")?)?;
    conn.batch_execute(
        "CREATE TABLE stock (pieces BIGINT NOT NULL); INSERT INTO stock VALUES (10)",
    )?;

    // The log lives in the shop's own database.
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let deliver = move |placed: Event<OrderPlaced>, _| {
        println!("{} is on its way: {} pieces", placed.order, placed.pieces);
        let sent = tell.send(placed.order.clone());
        async move { Ok(sent?) }
    };
    let system = EventSystem::builder()
        .sqlite_shared(&file)
        .on("deliver", Priority::NORMAL, deliver)
        .start()
        .await?;
    prepare_connection(&mut conn, &SqliteOptions::default())?;

    place(&mut conn, "o-1", 7)?;
    let refused = place(&mut conn, "o-2", 7);
    println!("o-2 was not placed: {}", refused.expect_err("too many"));
    place(&mut conn, "o-3", 3)?;
    // It may be forgotten: then they come before the next event that is published, or at the next start.
    system.wake();

    system.wait_idle().await?;
    ensure!(
        told.recv().await.as_deref() == Some("o-1"),
        "o-1 was not delivered"
    );
    ensure!(
        told.recv().await.as_deref() == Some("o-3"),
        "o-3 was not delivered"
    );
    ensure!(told.is_empty(), "more was delivered than was committed");
    system.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}
