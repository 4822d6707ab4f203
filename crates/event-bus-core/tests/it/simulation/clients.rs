//! Clients: each makes its steps one after the other.

use std::sync::Arc;

use domain_events::{DeadLetterQuery, EventBus, NewEvent, Retention};
use event_bus_core::InMemoryEventBus;
use tokio::time::sleep;

use super::{
    events::Raised,
    handlers::subscription,
    program::Step,
    stage::{Scene, name},
};

/// Makes the steps of one client.
pub(super) async fn play(scene: Arc<Scene>, bus: Arc<InMemoryEventBus>, steps: Vec<Step>) {
    for step in steps {
        scene.stage.note(|| format!("  client: {step:?}"));
        make(&scene, &bus, &step).await;
        scene.stage.note(|| format!("  client: {step:?} is done"));
    }
}

async fn make(scene: &Arc<Scene>, bus: &InMemoryEventBus, step: &Step) {
    // Who has a subscription come, go or begin anew does one after the other.
    let _alone = match step {
        Step::Reset(one, _) | Step::Leave(one) | Step::Join(one) => {
            Some(scene.places[*one].lock().await)
        }
        _ => None,
    };
    match step {
        Step::Publish(raised) => publish(scene, bus, raised).await,
        Step::Pass(time) => sleep(*time).await,
        Step::Pause(one) => drop(bus.pause(&name(*one)).await),
        Step::Resume(one) => resume(scene, bus, *one).await,
        Step::Replay(one) => {
            if let Some(event) = oldest_letter(bus, *one).await {
                // It may have gone meanwhile, or nobody is subscribed.
                let _ = bus.replay(&name(*one), event).await;
            }
        }
        Step::Discard(one) => {
            if let Some(event) = oldest_letter(bus, *one).await {
                let _ = bus.discard(&name(*one), event, "as the program says").await;
            }
        }
        Step::Reset(one, start) => {
            come(scene, *one);
            let _ = bus.reset(&name(*one), *start).await;
        }
        Step::Leave(one) => leave(scene, bus, *one).await,
        Step::Join(one) => {
            come(scene, *one);
            let _ = bus.subscribe(subscription(scene, *one)).await;
        }
        Step::Prune(latest) => {
            let pruned = bus.prune(Retention::Latest(*latest)).await;
            pruned.expect("a store that works");
        }
        Step::Idle => bus.wait_idle().await.expect("outside a handler"),
    }
}

/// Publishes; what was acknowledged is in the log.
pub(super) async fn publish(scene: &Scene, bus: &InMemoryEventBus, raised: &[Raised]) {
    let events: Vec<NewEvent> = raised.iter().map(|raised| raised.event()).collect();
    match bus.publish_all(events).await {
        Ok(receipts) => {
            let known = &mut *scene.stage.known();
            for (receipt, raised) in receipts.iter().zip(raised) {
                let position = receipt.recorded().map(|recorded| recorded.position);
                let logged = position.and_then(|at| known.log.get(&at));
                let same =
                    |it: &super::known::Logged| it.raised == *raised && it.id == receipt.event_id();
                if !logged.is_some_and(same) {
                    known.fault(format!(
                        "P1: {raised:?} is acknowledged, and not in the log"
                    ));
                }
            }
        }
        Err(error) => scene.stage.fault(format!("{raised:?}: {error}")),
    }
}

pub(super) async fn resume(scene: &Scene, bus: &InMemoryEventBus, one: usize) {
    scene.stage.known().subscriptions[one].resuming += 1;
    bus.resume(&name(one)).await;
    scene.stage.known().subscriptions[one].resuming -= 1;
}

/// Notes that a subscription is to come, or to come back.
fn come(scene: &Scene, one: usize) {
    scene.stage.known().subscriptions[one].is_away = false;
}

async fn leave(scene: &Scene, bus: &InMemoryEventBus, one: usize) {
    bus.unsubscribe(&name(one)).await;
    scene.stage.known().subscriptions[one].is_away = true;
}

async fn oldest_letter(bus: &InMemoryEventBus, one: usize) -> Option<domain_events::EventId> {
    let query = DeadLetterQuery::of(name(one));
    let letters = bus.dead_letters(&query, 1).await.ok()?;
    letters.first().map(|letter| letter.event_id())
}
