//! The subscriptions that a recording bus keeps, and never calls.

use std::sync::Arc;

use domain_events::{
    EventRegistry, PauseReason, SubscribeError, Subscription, SubscriptionStatistics,
};

/// Subscriptions, highest priority first, equal ones in order of registration.
#[derive(Default)]
pub(super) struct Names {
    registry: EventRegistry,
    members: Vec<Member>,
}

struct Member {
    subscription: Subscription,
    is_paused: bool,
}

impl Names {
    pub(super) fn add(&mut self, subscription: &Subscription) -> Result<(), SubscribeError> {
        let name = Arc::clone(subscription.name());
        if self.members.iter().any(|it| *it.name() == *name) {
            return Err(SubscribeError::DuplicateName(name));
        }
        if let Err(source) = subscription.check(&mut self.registry) {
            return Err(SubscribeError::Invalid { name, source });
        }
        let (rank, is_paused) = (subscription.rank(), false);
        let before = |it: &Member| it.subscription.rank() >= rank;
        let place = self.members.partition_point(before);
        let subscription = subscription.clone();
        let member = Member {
            subscription,
            is_paused,
        };
        self.members.insert(place, member);
        Ok(())
    }

    /// Takes one out, for the caller to drop without the lock: handlers are the user's.
    pub(super) fn take(&mut self, which: impl Fn(&Subscription) -> bool) -> Option<Subscription> {
        let place = self.members.iter().position(|it| which(&it.subscription))?;
        Some(self.members.remove(place).subscription)
    }

    /// Whether there is one of the name.
    pub(super) fn set_paused(&mut self, name: &str, is_paused: bool) -> bool {
        let mut named = self.members.iter_mut().filter(|it| it.name() == name);
        named.next().map(|it| it.is_paused = is_paused).is_some()
    }

    pub(super) fn statistics(&self) -> Vec<SubscriptionStatistics> {
        let figures = self.members.iter().map(|it| SubscriptionStatistics {
            name: Arc::clone(it.subscription.name()),
            paused: it.is_paused.then_some(PauseReason::Asked),
            ..SubscriptionStatistics::default()
        });
        figures.collect()
    }
}

impl Member {
    fn name(&self) -> &str {
        self.subscription.name()
    }
}
