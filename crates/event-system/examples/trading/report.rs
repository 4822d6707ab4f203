//! A run as tables, for a person.

use comfy_table::{CellAlignment, Table, presets};
use domain_events::SubscriptionStatistics;

use crate::{
    console::examples,
    decimal::Decimal,
    inspection::{Book, Findings},
    run::Traded,
};

impl Traded {
    /// Events with which everyone was done in this run, by the second.
    pub(crate) fn events_per_second(&self) -> f64 {
        self.statistics.finished as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Prints everything, the verdicts last.
pub(crate) fn print(traded: &Traded, findings: &Findings) {
    println!("\n{}\n", events(findings));
    println!("{}\n", deliveries(traded, findings));
    println!("{}\n", books(findings));
    println!("{}\n", speed(traded));
    for verdict in &findings.verdicts {
        match verdict.against.is_empty() {
            true => println!("✓ {}", verdict.what),
            false => println!("✗ {}: {}", verdict.what, examples(&verdict.against)),
        }
    }
    println!("\nportfolio {}", findings.portfolio_checksum());
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn events(findings: &Findings) -> Table {
    let mut table = table(["event", "in the log"]);
    for (name, count) in &findings.events {
        table.add_row([name.clone(), count.to_string()]);
    }
    let sum: u64 = findings.events.iter().map(|(_, count)| count).sum();
    table.add_row(["all".to_owned(), sum.to_string()]);
    table
}

/// Handled to retries are of this run, dead letters and repeats of all runs.
fn deliveries(traded: &Traded, findings: &Findings) -> Table {
    let mut table = table([
        "subscription",
        "handled",
        "skipped",
        "retries",
        "dead letters",
        "repeats",
        "p50",
        "p99",
    ]);
    for counted in &traded.statistics.subscriptions {
        let kept = findings.deliveries.iter();
        let kept = kept.clone().find(|it| *it.subscription == *counted.name);
        let (dead_letters, repeats) = kept.map_or((0, 0), |it| (it.dead_letters, it.repeats));
        table.add_row(row(counted, dead_letters, repeats));
    }
    table
}

fn row(counted: &SubscriptionStatistics, dead_letters: i64, repeats: i64) -> [String; 8] {
    let latency = counted.publish_to_handled;
    [
        counted.name.to_string(),
        counted.handled.to_string(),
        counted.skipped.to_string(),
        counted.retries.to_string(),
        dead_letters.to_string(),
        repeats.to_string(),
        format!("{:.1?}", latency.p50),
        format!("{:.1?}", latency.p99),
    ]
}

fn books(findings: &Findings) -> Table {
    let mut table = table(["market", "closed", "profit", "holds", "paid"]);
    for book in &findings.books {
        let Book {
            market,
            quantity,
            cost,
            profit,
            closed,
        } = book;
        // A market is named after what its prices are in: KRW-BTC, BTC-ADA.
        let currency = market.split('-').next().unwrap_or_default();
        let decimal = |units: i64| Decimal::from_units(units).to_string();
        table.add_row([
            market.clone(),
            closed.to_string(),
            format!("{} {currency}", decimal(*profit)),
            decimal(*quantity),
            format!("{} {currency}", decimal(*cost)),
        ]);
    }
    table
}

fn speed(traded: &Traded) -> String {
    let statistics = &traded.statistics;
    let latency = statistics.publish_to_handled;
    format!(
        "{} events in {:.2?}, {:.0} a second; from publish to handled p50 {:.1?}, p99 {:.1?}; \
         {} recovered, {} left in the log",
        statistics.finished,
        traded.took,
        traded.events_per_second(),
        latency.p50,
        latency.p99,
        statistics.recovered,
        traded.stop.left_in_log,
    )
}
