//! The recording bus as the port of buses, and as the way in from handlers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use domain_events::{
    BoxFuture, BusStatistics, DeadLetter, DeadLetterGroup, DeadLetterQuery, DomainEventPublisher,
    EventBus, EventId, HandlerPublisher, LetterError, NewEvent, PlaceError, ProcessingOutcome,
    Pruned, PublishError, Receipt, Retention, StartError, StartFrom, StopError, StopReport,
    StoreError, StoredSubscription, SubscribeError, Subscription, SubscriptionGuard, WaitError,
};

use super::{RecordingBus, lock};

#[async_trait]
impl EventBus for RecordingBus {
    async fn start(&self) -> Result<(), StartError> {
        let mut state = self.lock();
        if state.started_at.is_some() || state.is_stopped {
            return Err(StartError::AlreadyStarted);
        }
        state.started_at = Some(Instant::now());
        Ok(())
    }

    async fn stop(&self, _: Duration) -> Result<StopReport, StopError> {
        self.lock().is_stopped = true;
        Ok(StopReport::default())
    }

    async fn publish(&self, event: NewEvent) -> Result<Receipt, PublishError> {
        let mut receipts = self.accept(vec![event])?;
        Ok(receipts.swap_remove(0))
    }

    async fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        self.accept(events)
    }

    async fn try_publish(&self, event: NewEvent) -> Result<Receipt, PublishError> {
        self.publish(event).await
    }

    async fn publish_timeout(&self, event: NewEvent, _: Duration) -> Result<Receipt, PublishError> {
        self.publish(event).await
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<(), SubscribeError> {
        let mut state = self.lock();
        if state.is_stopped {
            return Err(SubscribeError::Stopped);
        }
        state.names.add(&subscription)
    }

    async fn subscribe_guarded(
        &self,
        subscription: Subscription,
    ) -> Result<SubscriptionGuard, SubscribeError> {
        let (same, shared) = (subscription.clone(), Arc::downgrade(&self.shared));
        self.subscribe(subscription).await?;
        Ok(SubscriptionGuard::new(move || {
            if let Some(shared) = shared.upgrade() {
                let taken = lock(&shared).names.take(|it| it.is_same(&same));
                drop(taken);
            }
        }))
    }

    async fn unsubscribe(&self, name: &str) -> bool {
        let taken = self.lock().names.take(|it| **it.name() == *name);
        taken.is_some()
    }

    async fn pause(&self, name: &str) -> bool {
        self.lock().names.set_paused(name, true)
    }

    async fn resume(&self, name: &str) -> bool {
        self.lock().names.set_paused(name, false)
    }

    async fn reset(&self, _: &str, _: StartFrom) -> Result<(), PlaceError> {
        Err(PlaceError::WithoutStore)
    }

    async fn forget(&self, _: &str) -> Result<(), PlaceError> {
        Err(PlaceError::WithoutStore)
    }

    async fn stored_subscriptions(&self) -> Result<Vec<StoredSubscription>, StoreError> {
        Ok(Vec::new())
    }

    async fn prune(&self, _: Retention) -> Result<Pruned, StoreError> {
        Ok(Pruned::default())
    }

    async fn dead_letters(
        &self,
        _: &DeadLetterQuery,
        _: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(Vec::new())
    }

    async fn dead_letter_groups(
        &self,
        _: &DeadLetterQuery,
    ) -> Result<Vec<DeadLetterGroup>, StoreError> {
        Ok(Vec::new())
    }

    async fn replay(&self, subscription: &str, event: EventId) -> Result<(), LetterError> {
        Err(LetterError::NoSuchLetter {
            subscription: subscription.to_owned(),
            event,
        })
    }

    async fn replay_all(&self, _: &DeadLetterQuery) -> Result<usize, LetterError> {
        Ok(0)
    }

    async fn discard(
        &self,
        subscription: &str,
        event: EventId,
        _: &str,
    ) -> Result<(), LetterError> {
        self.replay(subscription, event).await
    }

    async fn discard_all(&self, _: &DeadLetterQuery, _: &str) -> Result<usize, LetterError> {
        Ok(0)
    }

    async fn processing_log(
        &self,
        _: Option<&str>,
        _: usize,
    ) -> Result<Vec<ProcessingOutcome>, StoreError> {
        Ok(Vec::new())
    }

    async fn wait_idle(&self) -> Result<(), WaitError> {
        Ok(())
    }

    fn statistics(&self) -> BusStatistics {
        let state = self.lock();
        BusStatistics {
            running: state.started_at.is_some() && !state.is_stopped,
            accepted: state.accepted,
            finished: state.accepted,
            uptime: state.started_at.map_or(Duration::ZERO, |at| at.elapsed()),
            subscriptions: state.names.statistics(),
            ..BusStatistics::default()
        }
    }
}

/// A recording bus behind the port of domain services.
struct Publisher(RecordingBus);

impl DomainEventPublisher for Publisher {
    fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        self.0.accept(events)
    }
}

impl RecordingBus {
    /// The bus as the port of domain services that are not async: what they publish is recorded.
    pub fn publisher(&self) -> impl DomainEventPublisher + use<> {
        Publisher(self.clone())
    }
}

impl HandlerPublisher for RecordingBus {
    fn publish_from_handler(
        &self,
        events: Vec<NewEvent>,
    ) -> BoxFuture<'static, Result<Vec<Receipt>, PublishError>> {
        let bus = self.clone();
        Box::pin(async move { bus.accept(events) })
    }
}
