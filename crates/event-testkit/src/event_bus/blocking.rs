//! Handlers that are plain closures: quick ones on a worker, and ones that block off the workers (F1).

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use domain_events::{
    Event, Handled, HandlerContext, HandlerError, Health, HealthReason, Subscription,
};
use tokio::runtime::Handle;

use super::{
    BusHarness, Followed, Journal, Noted, hears, journal_of, noted, others_run, quick_retries,
    soon, started,
};

/// A gate for handlers that block: each takes a permit.
#[derive(Clone)]
struct Gate(Arc<Mutex<mpsc::Receiver<()>>>);

impl Gate {
    fn new() -> (mpsc::Sender<()>, Self) {
        let (open, gate) = mpsc::channel();
        (open, Self(Arc::new(Mutex::new(gate))))
    }

    fn pass(&self) {
        // A gate whose opener is gone is open.
        let _ = self.0.lock().unwrap().recv();
    }
}

/// A handler that writes down "began", blocks at the gate, and writes down "returned".
fn blocks_at(gate: Gate, journal: &Journal) -> Subscription {
    let log = journal.clone();
    Subscription::from_blocking_fn("blocks", move |event: Event<Noted>, _| {
        log.write("began", event.number);
        gate.pass();
        log.write("returned", event.number);
        Ok(())
    })
}

/// F1: handlers that block their threads leave those of the runtime to others.
pub async fn f1_blocking_handlers_run_off_the_workers(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 8);
    let journal = Journal::default();
    let (open, gate) = Gate::new();
    let blocks = blocks_at(gate, &journal);
    let quick = journal_of("quick", &journal).isolated(1);
    started(&bus, [blocks, quick]).await;
    for number in 0..6 {
        let event = noted(format!("a{number}"), number);
        soon(bus.publish(event)).await.unwrap();
    }
    // More of them block than the runtime has threads.
    journal.has(6, "began").await;
    journal.has(6, "quick").await;
    drop(open);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("returned").len(), 6);
}

/// F1: past its time-out a blocking handler has failed and is stuck; but it keeps its aggregate and its
/// worker until it returns, and only then may the next attempt come.
pub async fn f1_a_blocking_handler_past_its_time_out_keeps_its_place(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let (open, gate) = Gate::new();
    let log = journal.clone();
    let blocks = move |event: Event<Noted>, cx: HandlerContext| {
        log.write("began", event.number);
        if event.number == 0 && cx.attempt() == 1 {
            Handle::current().block_on(cx.cancellation().cancelled());
            log.write("given up", event.number);
            gate.pass();
        }
        log.write("returned", event.number);
        Ok(())
    };
    let blocks = Subscription::from_blocking_fn("blocks", blocks)
        .timeout(Duration::from_millis(50))
        // Those that return at once may be late as well, on a machine that is busy.
        .retry(quick_retries(1_000));
    started(&bus, [blocks]).await;
    for (aggregate, number) in [("a", 0), ("a", 1), ("b", 2)] {
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    journal.has(1, "given up").await;
    // The bus says so before it tells the handler.
    others_run().await;
    let figures = bus.statistics().of("blocks").unwrap().clone();
    assert_eq!((figures.stuck, figures.running), (1, 1), "{figures:?}");
    let Health::Degraded(reasons) = bus.health() else {
        panic!("{}", bus.health())
    };
    assert!(
        reasons.iter().any(
            |reason| matches!(reason, HealthReason::Stuck { subscription, handlers: 1 }
            if &**subscription == "blocks")
        ),
        "{reasons:?}"
    );
    assert_eq!(
        journal.of("began"),
        [0],
        "it holds its aggregate and the worker"
    );
    open.send(()).unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let mut of_a = journal.of("began");
    of_a.retain(|number| *number < 2);
    assert_eq!(of_a[..2], [0, 0], "what it returned late counts as failed");
    assert!(of_a.is_sorted() && of_a.contains(&1), "{of_a:?}");
    let figures = bus.statistics().of("blocks").unwrap().clone();
    assert_eq!((figures.stuck, figures.handled), (0, 3), "{figures:?}");
    let began = journal.of("began").len() as u64;
    assert_eq!(journal.of("returned").len() as u64, began);
    let failed = began - 3;
    assert_eq!((figures.failed_attempts, figures.retries), (failed, failed));
}

/// F1: a panic of a plain closure, blocking or not, is a failed attempt.
pub async fn f1_a_panic_of_a_plain_closure_is_a_failed_attempt(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let handler = |who: &'static str| {
        let log = journal.clone();
        move |event: Event<Noted>, cx: HandlerContext| {
            log.write(who, event.number);
            assert!(cx.attempt() > 1, "the first attempt of {who}");
            Ok(())
        }
    };
    let quick = Subscription::from_sync_fn("quick", handler("quick"));
    let blocks = Subscription::from_blocking_fn("blocks", handler("blocks"));
    let all = [quick, blocks].map(|one| one.retry(quick_retries(2)));
    started(&bus, all).await;
    for number in 0..2 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    for who in ["quick", "blocks"] {
        assert_eq!(journal.of(who), [0, 0, 1, 1], "{who}");
        let log = bus.processing_log(Some(who), 10).await.unwrap();
        let attempts: Vec<_> = log.iter().map(|it| (it.attempt, &it.result)).collect();
        assert_eq!(log.len(), 2, "failures alone are kept: {attempts:?}");
        let told = format!("{:?}", log[0].result);
        assert!(
            told.contains(&format!("the first attempt of {who}")),
            "{told}"
        );
    }
}

/// F2: each verdict of a plain closure has its consequence.
pub async fn f2_each_verdict_of_a_plain_closure_counts(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let answer = |event: Event<Noted>, cx: HandlerContext| match (event.number, cx.attempt()) {
        (0, _) => Err(HandlerError::skip("not needed")),
        (1, _) => Err(HandlerError::permanent("never")),
        (2, 1) => Err(HandlerError::transient("not yet")),
        _ => Ok(()),
    };
    let quick = Subscription::from_sync_fn("quick", answer);
    let blocks = Subscription::from_blocking_fn("blocks", answer);
    started(&bus, [quick, blocks].map(|one| one.retry(quick_retries(2)))).await;
    for number in 0..4 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    for figures in &bus.statistics().subscriptions {
        let counts = (figures.handled, figures.skipped, figures.dead);
        assert_eq!(counts, (2, 1, 1), "{figures:?}");
        assert_eq!((figures.failed_attempts, figures.retries), (2, 1));
    }
}

/// P9: a blocking handler publishes through its context, and what it publishes names its cause.
pub async fn p9_a_blocking_handler_publishes(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let (log, tell) = (journal.clone(), Arc::new(Mutex::new(None)));
    let told = Arc::clone(&tell);
    let blocks = move |event: Event<Noted>, cx: HandlerContext| {
        let follows = Followed {
            aggregate: event.aggregate.clone(),
            number: event.number + 100,
        };
        let receipt = cx.publish_blocking(follows)?;
        let inside = Handle::current().block_on(receipt.handled());
        assert!(inside.is_err(), "it would wait for itself");
        *told.lock().unwrap() = Some(receipt);
        log.write("blocks", event.number);
        Ok(())
    };
    let blocks = Subscription::from_blocking_fn("blocks", blocks);
    started(&bus, [blocks, hears("hears", &journal)]).await;
    bus.publish(noted("a", 1)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("hears"), [101]);
    let receipt = tell.lock().unwrap().take().unwrap();
    let Handled { outcomes } = soon(receipt.handled()).await.unwrap();
    assert_eq!(outcomes.len(), 1);
}

/// P9: so does a quick one, however often it publishes at a time.
pub async fn p9_a_plain_closure_publishes_on_its_worker(harness: &dyn BusHarness) {
    let bus = harness.bus(1_000, 1);
    let journal = Journal::default();
    let log = journal.clone();
    let publishes = move |event: Event<Noted>, cx: HandlerContext| {
        for number in 0..300 {
            let aggregate = event.aggregate.clone();
            cx.publish_blocking(Followed { aggregate, number })?;
        }
        log.write("published", event.number);
        Ok(())
    };
    let publishes = Subscription::from_sync_fn("publishes", publishes);
    started(&bus, [publishes, hears("hears", &journal)]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("published"), [0]);
    assert_eq!(journal.of("hears"), (0..300).collect::<Vec<_>>());
}

/// L2: a stop cuts a blocking handler off at its deadline; what it does later nobody waits for.
pub async fn l2_a_stop_leaves_a_blocking_handler_to_its_thread(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let (open, gate) = Gate::new();
    started(&bus, [blocks_at(gate, &journal)]).await;
    for number in 0..2 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    journal.has(1, "began").await;
    let report = soon(bus.stop(Duration::ZERO)).await.unwrap();
    assert_eq!((report.cut_off, report.drained), (1, 0), "{report:?}");
    assert_eq!(report.abandoned + report.left_in_log, 2);
    super::figures::assert_adds_up(&bus.statistics());
    assert_eq!(journal.of("returned"), [0; 0]);
    drop(open);
    journal.has(1, "returned").await;
    assert_eq!(journal.of("began"), [0], "nothing follows it");
}

/// L4: unsubscribing returns after the last blocking handler has returned.
pub async fn l4_unsubscribing_waits_for_a_blocking_handler(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let (open, gate) = Gate::new();
    let blocks = blocks_at(gate, &journal);
    started(&bus, [blocks]).await;
    bus.publish(noted("a", 0)).await.unwrap();
    journal.has(1, "began").await;
    let mut leaves = bus.unsubscribe("blocks");
    assert!(super::is_pending(&mut leaves).await);
    open.send(()).unwrap();
    assert!(soon(leaves).await);
    assert_eq!(journal.of("returned"), [0]);
}
