//! Where subscriptions are in the log, changed by whoever operates them: begun anew, forgotten (D8).

use std::sync::Arc;

use domain_events::{
    DeliveryChange, PlaceError, Position, Pruned, Retention, StartFrom, StoreError,
};

use crate::{aboard, ashore, engine::Engine, inside, lifecycle::Phase, progress, say::say};

/// Has a subscription begin anew at another place.
pub(crate) async fn reset(
    engine: &Arc<Engine>,
    name: Arc<str>,
    start: StartFrom,
) -> Result<(), PlaceError> {
    check(engine, &name).await?;
    let subscription = engine.look(|state| {
        let subscribed = state.subscriptions.named(&name)?;
        Some(subscribed.subscription.clone())
    });
    // Away for the moment, so that no progress of now is saved after the reset.
    if let Some(leaving) = ashore::leave(engine, &name) {
        ashore::left(engine, leaving).await;
    }
    // Or it was about to go.
    engine.until_quiet(|state| !state.is_leaving(&name)).await;
    change(engine, DeliveryChange::Reset(Arc::clone(&name), start)).await?;
    say!(info, "subscription reset", "subscription" = name; format_args!("{start:?}"));
    match subscription {
        Some(subscription) => aboard::join(engine, subscription)
            .await
            .map_err(PlaceError::Subscribe),
        None => Ok(()),
    }
}

/// Removes what the store keeps of a subscription.
pub(crate) async fn forget(engine: &Arc<Engine>, name: Arc<str>) -> Result<(), PlaceError> {
    check(engine, &name).await?;
    if engine.look(|state| state.subscriptions.named(&name).is_some() || state.is_leaving(&name)) {
        return Err(PlaceError::Subscribed(name));
    }
    change(engine, DeliveryChange::Forgotten(Arc::clone(&name))).await?;
    say!(info, "subscription forgotten", "subscription" = name);
    Ok(())
}

/// Prunes the log, as far as it is read.
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
        progress::committed(engine, save).await;
    }
    // A pipeline reads on from where it is, be it that nobody is left who is to have what is there.
    let read = engine.look(|state| {
        let cursors = state.pipelines.iter();
        let cursors = cursors.filter_map(|(_, pipeline)| pipeline.cursor.as_ref());
        cursors.map(|cursor| cursor.through).min()
    });
    let through = read.unwrap_or(Position::new(u64::MAX));
    stores.deliveries.prune(keep, through).await
}

/// Checks that the store knows the name, and that what it knows can be changed now.
async fn check(engine: &Engine, name: &Arc<str>) -> Result<(), PlaceError> {
    let stores = engine.stores.as_ref().ok_or(PlaceError::WithoutStore)?;
    if inside::is_inside(engine.id) {
        return Err(PlaceError::InsideHandler);
    }
    if engine.lifecycle.phase() != Phase::Running {
        return Err(PlaceError::NotRunning);
    }
    let stored = stores.deliveries.subscriptions().await?;
    match stored.iter().any(|it| it.name == *name) {
        true => Ok(()),
        false => Err(PlaceError::NoSuchSubscription(Arc::clone(name))),
    }
}

/// Returns once the change is committed.
async fn change(engine: &Engine, change: DeliveryChange) -> Result<(), PlaceError> {
    let save = engine.step(|state, after| {
        state.unsaved.change([change], None);
        after.saver = true;
        state.unsaved.next_save()
    });
    match progress::committed(engine, save).await {
        true => Ok(()),
        false => Err(PlaceError::NotRunning),
    }
}
