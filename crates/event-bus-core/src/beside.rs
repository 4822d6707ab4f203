//! Two workers at one aggregate, turn by turn: what no timing of a test can bring about at will.

use std::{
    borrow::Cow,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use domain_events::{
    DeliveryOutcome, DomainEvent, Event, FailurePolicy, HandlerContext, HandlerError, NewEvent,
    Receipt, Subscription,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::yield_now};

use crate::{
    BusConfig, aboard, ashore, backlog, engine::Engine, lifecycle::Phase, mailboxes::Start,
    pipeline::PipelineId, publish::publish, run::Run, seat::Worker, settling, waiting::NoRoom,
    worker,
};

macro_rules! event {
    ($name:ident, $event_type:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name;

        impl DomainEvent for $name {
            const EVENT_TYPE: &'static str = $event_type;
            const AGGREGATE_TYPE: &'static str = "desk";

            fn aggregate_id(&self) -> Cow<'_, str> {
                Cow::Borrowed("the only one")
            }
        }
    };
}

event!(Filed, "desk.filed");
event!(Tidied, "desk.tidied");

async fn published(engine: &Arc<Engine>, event: impl DomainEvent) -> Receipt {
    let events = vec![NewEvent::new(event)];
    let mut receipts = publish(engine, events, NoRoom::Wait, false).await.unwrap();
    receipts.remove(0)
}

/// D2: a worker has taken a backlog and not looked into it yet, and another one is in a run of the
/// aggregate, when a dead letter is replayed: the end of that run makes nothing ready twice.
#[tokio::test]
async fn d2_a_replay_is_never_made_by_two_workers() {
    let (at_once, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let files = || {
        let (at_once, calls, gate) = (Arc::clone(&at_once), Arc::clone(&calls), Arc::clone(&gate));
        let handler = move |_: Event<Filed>, cx: HandlerContext| {
            let (at_once, calls, gate) =
                (Arc::clone(&at_once), Arc::clone(&calls), Arc::clone(&gate));
            async move {
                if !cx.info().is_replay {
                    return Err(HandlerError::permanent("never"));
                }
                calls.fetch_add(1, SeqCst);
                assert_eq!(at_once.fetch_add(1, SeqCst), 0, "side by side");
                gate.acquire().await?.forget();
                at_once.fetch_sub(1, SeqCst);
                Ok(())
            }
        };
        let files = Subscription::from_fn("files", handler);
        files.failure_policy(FailurePolicy::ParkAggregate)
    };
    let tidies = Subscription::from_fn("tidies", |_: Event<Tidied>, _| async { Ok(()) });
    let config = BusConfig {
        workers: 2,
        ..BusConfig::default()
    };
    let engine = Engine::new(config, None);
    engine.lifecycle.advance(Phase::New, Phase::Starting);
    aboard::begin(&engine, vec![files(), tidies]).await.unwrap();
    engine.lifecycle.advance(Phase::Starting, Phase::Running);
    let seats = engine.look(|state| {
        let shared = state.pipelines.get(PipelineId::SHARED);
        shared.map(|it| Arc::clone(&it.seats)).unwrap()
    });
    let workers = || Worker::all(&engine, PipelineId::SHARED, &seats);
    let tasks: Vec<_> = workers()
        .map(|worker| tokio::spawn(worker::run(Arc::clone(&engine), worker)))
        .collect();
    // Two letters of one name: the first of one that has gone.
    let older = published(&engine, Filed).await;
    older.handled().await.unwrap();
    let leaving = ashore::leave(&engine, "files").unwrap();
    ashore::left(&engine, leaving).await;
    aboard::join(&engine, files()).await.unwrap();
    let newer = published(&engine, Filed).await;
    newer.handled().await.unwrap();
    for _ in 0..20 {
        yield_now().await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    for task in tasks {
        drop(task.await);
    }

    let mut by_hand = workers();
    let (first, second) = (by_hand.next().unwrap(), by_hand.next().unwrap());
    let (mut idle, mut run) = (Run::default(), Run::default());
    let waker = Waker::noop();
    let discard = settling::discard(&engine, "files", newer.event_id(), "of no use");
    discard.await.unwrap();
    let turn = engine.step(|state, after| state.next(&first, &mut idle, waker, after));
    let Poll::Ready(Some(Start::Backlog(backlog))) = turn else {
        panic!("what was parked goes on");
    };
    published(&engine, Tidied).await;
    let turn = engine.step(|state, after| state.next(&second, &mut run, waker, after));
    assert!(matches!(turn, Poll::Ready(Some(Start::Run))));
    let replay = settling::replay(&engine, "files", older.event_id());
    replay.await.unwrap();
    let mut cx = Context::from_waker(waker);
    let mut working = pin!(backlog::work_off(&engine, &first, &backlog));
    assert!(working.as_mut().poll(&mut cx).is_pending());
    run.records[0].resolve(0, DeliveryOutcome::Handled);
    run.finished.push(true);
    let turn = engine.step(|state, after| state.next(&second, &mut run, waker, after));
    assert!(turn.is_pending(), "the first worker is at it");
    gate.add_permits(1);
    assert!(working.as_mut().poll(&mut cx).is_ready());
    assert_eq!(calls.load(SeqCst), 1);
}
