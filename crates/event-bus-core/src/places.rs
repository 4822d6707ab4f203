//! Where subscriptions are in the log, changed by whoever operates them: begun anew, forgotten (D8).

use std::sync::Arc;

use domain_events::{
    DeliveryChange, PlaceError, Pruned, Retention, StartFrom, StoreError, StoreErrorKind,
    SubscribeError, Subscription,
};
use tokio::time::timeout;

use crate::{
    aboard, ashore,
    claims::Claim,
    engine::{AFTER_FAULT, Engine, Stores},
    inside,
    lifecycle::Phase,
    progress,
    say::say,
    state::State,
};

/// Has a subscription begin anew at another place.
pub(crate) async fn reset(
    engine: &Arc<Engine>,
    name: Arc<str>,
    start: StartFrom,
) -> Result<(), PlaceError> {
    let (stores, claim) = claim(engine, &name).await?;
    let subscription = engine.look(|state| {
        let subscribed = state.subscriptions.named(&name)?;
        Some(subscribed.subscription.clone())
    });
    // Away for the moment, so that no progress of now is saved after the reset.
    if let Some(leaving) = ashore::leave(engine, &name) {
        ashore::left(engine, leaving).await;
    }
    let change = DeliveryChange::Reset(Arc::clone(&name), start);
    let reset = progress::save(stores, vec![change]).await;
    let back = match subscription {
        Some(subscription) => come_back(engine, stores, subscription).await,
        None => Ok(()),
    };
    drop(claim);
    reset?;
    say!(info, "subscription reset", "subscription" = name; format_args!("{start:?}"));
    back.map_err(PlaceError::Subscribe)
}

/// Takes a subscription aboard again whose name is claimed; a fault of the store is waited out, for else
/// nobody was subscribed any more.
async fn come_back(
    engine: &Arc<Engine>,
    stores: &Stores,
    subscription: Subscription,
) -> Result<(), SubscribeError> {
    loop {
        match aboard::register(engine, stores, subscription.clone(), None).await {
            Err(SubscribeError::Store(error))
                if engine.lifecycle.phase() == Phase::Running
                    && error.kind() != StoreErrorKind::Application =>
            {
                engine.store_fails(error.kind(), &error.to_string());
                let name = subscription.name();
                say!(error, "subscription not taken aboard again", "subscription" = name; error);
                let _ = timeout(AFTER_FAULT, engine.lifecycle.closing()).await;
            }
            ended => {
                engine.store_works();
                return ended;
            }
        }
    }
}

/// Removes what the store keeps of a subscription.
pub(crate) async fn forget(engine: &Arc<Engine>, name: Arc<str>) -> Result<(), PlaceError> {
    let (stores, _claim) = claim(engine, &name).await?;
    if engine.look(|state| state.subscriptions.named(&name).is_some()) {
        return Err(PlaceError::Subscribed(name));
    }
    let change = DeliveryChange::Forgotten(Arc::clone(&name));
    progress::save(stores, vec![change]).await?;
    say!(info, "subscription forgotten", "subscription" = name);
    Ok(())
}

/// Prunes the log.
pub(crate) async fn prune(engine: &Engine, keep: Retention) -> Result<Pruned, StoreError> {
    let Some(stores) = &engine.stores else {
        return Ok(Pruned::default());
    };
    if engine.lifecycle.phase() == Phase::Running {
        // What was passed over has no progress of its own, and may be pruned.
        let save = engine.step(|state, after| {
            after.saver |= state.unsaved.progress();
            state.unsaved.next_save()
        });
        let _hurry = engine.hurry();
        // Where the store is at fault, less can be pruned, and the store says why nothing is.
        let is_over = |state: &State| {
            let is_saved = state.unsaved.saves() >= save;
            is_saved || state.is_closed || engine.store_trouble().is_some()
        };
        engine.until_quiet(is_over).await;
    }
    stores.deliveries.prune(keep).await
}

/// Claims a name that the store knows, where what it knows can be changed now.
async fn claim<'a>(
    engine: &'a Arc<Engine>,
    name: &Arc<str>,
) -> Result<(&'a Stores, Claim), PlaceError> {
    let stores = engine.stores.as_ref().ok_or(PlaceError::WithoutStore)?;
    if inside::is_inside(engine.id) {
        return Err(PlaceError::InsideHandler);
    }
    if engine.lifecycle.phase() != Phase::Running {
        return Err(PlaceError::NotRunning);
    }
    let claim = Claim::of(engine, vec![Arc::clone(name)]).await;
    let claim = claim.ok_or(PlaceError::InsideHandler)?;
    let stored = stores.deliveries.subscriptions().await?;
    match stored.iter().any(|it| it.name == *name) {
        true => Ok((stores, claim)),
        false => Err(PlaceError::NoSuchSubscription(Arc::clone(name))),
    }
}
