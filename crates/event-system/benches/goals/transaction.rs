//! The goal of the caller's own transaction: an event appended beside a row that is updated.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use diesel::{Connection, SqliteConnection, connection::SimpleConnection, prelude::*};
use domain_events::{EventBus, EventId, Timestamp};
use event_store_diesel::{SqliteOptions, append_in, prepare_connection};
use tokio::task::JoinHandle;

use crate::{
    durable::{Durable, FILE, folder},
    events::{Ledger, Measured, events},
    measure::{Figure, Scale, compare, rate},
    memory::on_runtime,
    reference,
};

/// Rows of the application's, each an aggregate.
const ROWS: usize = 1_000;
const PUBLISHERS: usize = 64;

diesel::table! {
    meters (slot) {
        slot -> BigInt,
        readings -> BigInt,
    }
}

diesel::table! {
    events (position) {
        position -> BigInt,
        event_id -> Binary,
        event_type -> Text,
        aggregate_type -> Text,
        aggregate_id -> Text,
        version -> BigInt,
        payload -> Binary,
        correlation_id -> Binary,
        occurred_at -> BigInt,
        recorded_at -> BigInt,
    }
}

const METERS: &str = "CREATE TABLE meters (slot INTEGER PRIMARY KEY, readings INTEGER NOT NULL)";

/// One event and one row a transaction, alone and beside 64 tasks that publish, against the same two
/// statements by hand.
pub(crate) fn transaction(scale: Scale) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, publishers, count) in [
        ("durable/transaction", 0, scale.of(10_000)),
        ("durable/transaction/64", PUBLISHERS, scale.of(2_000)),
    ] {
        let mut slowest = Vec::new();
        let figure = compare(
            name,
            scale,
            0.85,
            || {
                let (rate, p99) = measure(count, publishers, Way::AppendIn)?;
                slowest.push(p99);
                Ok(rate)
            },
            || Ok(measure(count, publishers, Way::ByHand)?.0),
        )?;
        slowest.sort_by(f64::total_cmp);
        let p99 = slowest[slowest.len() / 2];
        figures.extend([figure, Figure::stated(&format!("{name}/p99"), "ms", p99)]);
    }
    Ok(figures)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    AppendIn,
    ByHand,
}

/// Transactions a second, and how long one in a hundred takes at least, in milliseconds.
fn measure(count: usize, publishers: usize, way: Way) -> Result<(f64, f64)> {
    let folder = folder()?;
    on_runtime(async move {
        let ledger = Ledger::new(ROWS + publishers);
        let durable = Durable::start(folder.path(), 2, [ledger.subscription("meters")]).await?;
        let file = folder.path().join(FILE);
        let path = file.to_str().context("a path of UTF-8")?.to_owned();
        let is_over = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..publishers)
            .map(|number| publish(&durable.bus, ROWS + number, &is_over))
            .collect();
        let bus = Arc::clone(&durable.bus);
        let measured = tokio::task::spawn_blocking(move || transactions(&path, &*bus, count, way));
        let measured = measured.await??;
        is_over.store(true, Relaxed);
        let mut published = match way {
            Way::AppendIn => count,
            Way::ByHand => 0,
        };
        for task in tasks {
            published += task.await??;
        }
        durable.finish(&[ledger], published).await?;
        Ok(measured)
    })
}

/// Publishes events of one aggregate until it is over. Returns how many.
fn publish(
    bus: &Arc<dyn EventBus>,
    slot: usize,
    is_over: &Arc<AtomicBool>,
) -> JoinHandle<Result<usize>> {
    let (bus, is_over) = (Arc::clone(bus), Arc::clone(is_over));
    tokio::spawn(async move {
        let mut number = 0;
        while !is_over.load(Relaxed) {
            number += 1;
            let meter = Arc::from(format!("a meter beside, number {slot:012}"));
            let event = Measured {
                meter,
                slot,
                number,
            };
            bus.publish(event.into()).await?;
        }
        Ok(usize::try_from(number)?)
    })
}

fn transactions(path: &str, bus: &dyn EventBus, count: usize, way: Way) -> Result<(f64, f64)> {
    let mut conn = SqliteConnection::establish(path)?;
    let options = SqliteOptions {
        busy_timeout: Duration::from_secs(60),
        ..SqliteOptions::default()
    };
    prepare_connection(&mut conn, &options)?;
    conn.batch_execute(METERS)?;
    conn.batch_execute(reference::TABLE)?;
    for slot in 0..ROWS {
        let row = (meters::slot.eq(slot as i64), meters::readings.eq(0));
        diesel::insert_into(meters::table)
            .values(row)
            .execute(&mut conn)?;
    }
    let events: Vec<_> = events(count, ROWS).collect();
    let mut times = Vec::with_capacity(count);
    let start = Instant::now();
    for event in events {
        let began = Instant::now();
        conn.immediate_transaction(|conn| -> Result<()> {
            let row = meters::table.find(event.slot as i64);
            diesel::update(row)
                .set(meters::readings.eq(meters::readings + 1))
                .execute(conn)?;
            match way {
                Way::AppendIn => drop(append_in(conn, [event])?),
                Way::ByHand => insert(conn, &event)?,
            }
            Ok(())
        })?;
        times.push(began.elapsed());
        if way == Way::AppendIn {
            bus.wake();
        }
    }
    let rate = rate(count, start);
    let plain = events::table.count().get_result::<i64>(&mut conn)?;
    let updated = diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT sum(readings) FROM meters");
    let updated = updated.get_result::<i64>(&mut conn)?;
    ensure!(
        updated == count as i64,
        "{updated} rows of {count} were updated"
    );
    let by_hand = if way == Way::ByHand { count } else { 0 };
    ensure!(
        plain == by_hand as i64,
        "{plain} events of {by_hand} were inserted"
    );
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    Ok((rate, p99.as_secs_f64() * 1_000.0))
}

fn insert(conn: &mut SqliteConnection, event: &Measured) -> Result<()> {
    let (id, at) = (EventId::new(), Timestamp::now().as_micros());
    diesel::insert_into(events::table)
        .values((
            events::event_id.eq(&id.as_bytes()[..]),
            events::event_type.eq("goals.measured"),
            events::aggregate_type.eq("meter"),
            events::aggregate_id.eq(&*event.meter),
            events::version.eq(i64::try_from(event.number)?),
            events::payload.eq(serde_json::to_vec(event)?),
            events::correlation_id.eq(&id.as_bytes()[..]),
            events::occurred_at.eq(at),
            events::recorded_at.eq(at),
        ))
        .execute(conn)?;
    Ok(())
}
