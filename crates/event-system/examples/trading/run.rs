//! One run of the desk, from its input to the verdict.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use domain_events::{BusStatistics, Priority, RetryPolicy, StartFrom, StopReport, Subscription};
use event_store_diesel::{SqliteEventStore, SqliteOptions};
use event_system::EventSystem;

use crate::{
    agreement, audit,
    broker::Broker,
    console::Console,
    desk::Desk,
    events::CandleClosed,
    exchange, feed,
    files::Files,
    input,
    inspection::{Counted, Evidence, Findings},
    options::Options,
    portfolio::Portfolio,
    report,
    risk::Risk,
    simulation,
    strategy::Strategy,
    summary::Summary,
    trace::Trace,
    watch::Watch,
};

/// How long the stop may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// A run that came to no verdict.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What it was given cannot be used; nothing was changed.
    Refused(anyhow::Error),
    /// Something else went wrong on the way.
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// What a run leaves to be reported.
#[derive(Debug)]
pub(crate) struct Traded {
    pub(crate) statistics: BusStatistics,
    pub(crate) took: Duration,
    pub(crate) stop: StopReport,
}

/// Runs the desk, and tells whether every check holds.
pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let console = Console::new(options.json);
    let source = Source::of(options);
    let candles = source.candles().map_err(Failure::Refused)?;
    let files = Files::beside(&options.db);
    if options.fresh {
        files.remove().map_err(Failure::Refused)?;
    }
    console.say(&format!("{}: {} candles", source.name(), candles.len()));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()?;
    let traded = runtime.block_on(trade(options, &files, &candles, &console))?;

    let counted = counted(&traded.statistics);
    let evidence = Evidence::gather(&files, &candles, &counted)
        .context("the files of the run were not inspected")?;
    let findings = Findings::of(evidence).context("the files of the run were not inspected")?;
    if options.json {
        let summary = Summary::of(source.name(), candles.len(), &traded, &findings);
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        report::print(&traded, &findings);
    }
    console.faults(&findings);
    Ok(findings.is_clean())
}

/// Where the candles come from.
enum Source<'a> {
    File(&'a std::path::Path),
    Simulation { seed: u64, candles: u32 },
}

impl<'a> Source<'a> {
    fn of(options: &'a Options) -> Self {
        let (seed, candles) = (options.seed, options.candles);
        match &options.input {
            Some(path) => Self::File(path),
            None => Self::Simulation { seed, candles },
        }
    }

    fn candles(&self) -> anyhow::Result<Vec<CandleClosed>> {
        match *self {
            Self::File(path) => Ok(input::read(path)?),
            Self::Simulation { seed, candles } => Ok(simulation::candles(seed, candles)),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Simulation { seed, .. } => {
                format!("simulated exchange with invented prices, seed {seed}")
            }
        }
    }
}

async fn trade(
    options: &Options,
    files: &Files,
    candles: &[CandleClosed],
    console: &Console,
) -> Result<Traded, Failure> {
    files.check().map_err(Failure::Refused)?;
    let store = SqliteEventStore::open(files.log(), SqliteOptions::default())
        .map_err(|error| Failure::Refused(error.into()))?;
    let store = Arc::new(store);
    // From here on the lock is ours, and so are the files beside the log.
    agreement::check(&*store, candles)
        .await
        .map_err(Failure::Refused)?;
    let system = started(options, files, &store).await?;
    let begin = Instant::now();
    feed::feed(&system, candles, console).await?;
    system.wait_idle().await?;
    let took = begin.elapsed();
    let statistics = system.statistics();
    let stop = system.shutdown(DEADLINE).await?;
    if let Some(unsaved) = &stop.unsaved {
        return Err(anyhow!("the last progress was not saved: {unsaved}").into());
    }
    Ok(Traded {
        statistics,
        took,
        stop,
    })
}

async fn started(
    options: &Options,
    files: &Files,
    store: &Arc<SqliteEventStore>,
) -> Result<EventSystem, Failure> {
    let path = files.desk().display();
    let desk = Desk::open(files.desk())
        .with_context(|| format!("{path} was not opened"))
        .map_err(Failure::Refused)?;
    let path = files.trace().display();
    let trace = Trace::begin_run(files.trace())
        .with_context(|| format!("{path} was not opened"))
        .map_err(Failure::Refused)?;
    let watch = Arc::new(Watch::new(trace, options.crash_after));
    let mut builder = EventSystem::builder()
        .store(Arc::clone(store))
        .workers(options.workers as usize);
    for subscription in subscriptions(store, desk, &watch) {
        builder = builder.subscribe(subscription);
    }
    Ok(builder.start().await.context("the desk was not started")?)
}

/// Everyone on the desk. All begin with the first event of the log, so that the first run may be
/// killed before it has said who is there.
fn subscriptions(
    store: &Arc<SqliteEventStore>,
    desk: Desk,
    watch: &Arc<Watch>,
) -> Vec<Subscription> {
    let watch = || Arc::clone(watch);
    let strategy = Strategy {
        store: Arc::clone(store),
        watch: watch(),
    };
    let risk = Risk { watch: watch() };
    let broker = Broker { watch: watch() };
    let portfolio = Portfolio {
        desk: Arc::new(desk),
        watch: watch(),
    };
    let calls = RetryPolicy::exponential()
        .base(Duration::from_millis(5))
        .max_attempts(exchange::CALLS);
    [
        Subscription::new("strategy", strategy),
        Subscription::new("risk", risk).priority(Priority::HIGH),
        Subscription::new("broker", broker).retry(calls),
        Subscription::new("portfolio", portfolio).priority(Priority::HIGH),
        audit::subscription(watch()).priority(Priority::LOW),
    ]
    .map(|subscription| subscription.start_from(StartFrom::Beginning))
    .into()
}

fn counted(statistics: &BusStatistics) -> Vec<Counted> {
    let subscriptions = statistics.subscriptions.iter();
    let counted = subscriptions.map(|it| Counted {
        subscription: it.name.to_string(),
        done: it.handled + it.skipped + it.dead + it.discarded,
        retries: it.retries,
        waiting: it.waiting,
    });
    counted.collect()
}
