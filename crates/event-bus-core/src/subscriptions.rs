//! The subscriptions of a bus, by what they want and in the order in which they get it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use domain_events::{
    EventRegistry, Position, Progress, SubscribeError, Subscription, SubscriptionId,
};
use hashbrown::HashMap;
use tokio::sync::Notify;

use crate::meters::SubscriptionMeters;

/// A subscription of a bus, with its figures.
pub(crate) struct Subscribed {
    pub(crate) subscription: Subscription,
    /// Its number in the store; `None` on a volatile bus.
    pub(crate) id: Option<SubscriptionId>,
    pub(crate) meters: SubscriptionMeters,
    removed: AtomicBool,
    running: AtomicUsize,
    at_rest: Notify,
}

impl Subscribed {
    pub(crate) fn new(subscription: Subscription, id: Option<SubscriptionId>) -> Arc<Self> {
        Arc::new(Self {
            subscription,
            id,
            meters: SubscriptionMeters::default(),
            removed: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            at_rest: Notify::new(),
        })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        self.subscription.name()
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    /// Notes that an attempt runs, for as long as the guard lives; `None` once removed.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Running> {
        // Count before looking, so that whoever removes and then looks sees the attempt.
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(self));
        (!self.is_removed()).then_some(running)
    }

    /// Waits until no attempt runs.
    pub(crate) async fn at_rest(&self) {
        loop {
            let mut rest = std::pin::pin!(self.at_rest.notified());
            // Register before looking, so that a rest in between is not missed.
            rest.as_mut().enable();
            if self.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            rest.await;
        }
    }
}

/// A running attempt of a subscription.
pub(crate) struct Running(Arc<Subscribed>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.at_rest.notify_waiters();
        }
    }
}

/// How far a subscription was when it joined: up to here it wants only what it had not finished.
#[derive(Default)]
pub(crate) struct Joined {
    pub(crate) through: Position,
    pub(crate) unfinished: BTreeSet<Position>,
}

impl Joined {
    fn wants(&self, position: Position) -> bool {
        position > self.through || self.unfinished.contains(&position)
    }
}

impl From<Progress> for Joined {
    fn from(progress: Progress) -> Self {
        Self {
            through: progress.through,
            unfinished: progress.unfinished.into_iter().collect(),
        }
    }
}

/// A subscription and where it joined the log.
pub(crate) struct Member {
    pub(crate) subscribed: Arc<Subscribed>,
    pub(crate) joined: Joined,
}

pub(crate) type Targets = Arc<[Arc<Subscribed>]>;

/// All subscriptions of a bus, highest priority first, equal ones in order of registration.
#[derive(Default)]
pub(crate) struct Subscriptions {
    registry: EventRegistry,
    members: Vec<Member>,
    by_type: HashMap<&'static str, Targets>,
    to_all: Targets,
    /// Positions after this are wanted by every member that matches.
    joined_through: Position,
}

impl Subscriptions {
    /// Checks that `subscription` can work and that its name is free.
    pub(crate) fn check(&mut self, subscription: &Subscription) -> Result<(), SubscribeError> {
        let name = subscription.name();
        if self
            .members
            .iter()
            .any(|member| member.subscribed.name() == name)
        {
            return Err(SubscribeError::DuplicateName(Arc::clone(name)));
        }
        subscription
            .check(&mut self.registry)
            .map_err(|source| SubscribeError::Invalid {
                name: Arc::clone(name),
                source,
            })
    }

    pub(crate) fn add(&mut self, subscribed: Arc<Subscribed>, joined: Joined) {
        let rank = subscribed.subscription.rank();
        let place = self
            .members
            .partition_point(|member| member.subscribed.subscription.rank() >= rank);
        self.joined_through = self.joined_through.max(joined.through);
        self.members.insert(place, Member { subscribed, joined });
        self.index();
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Member> {
        let place = self
            .members
            .iter()
            .position(|member| &**member.subscribed.name() == name)?;
        let member = self.members.remove(place);
        self.index();
        Some(member)
    }

    /// Makes the members pass over what they have been given, up to `given`.
    pub(crate) fn pass_over_through(&mut self, given: Position) {
        for Member { joined, .. } in &mut self.members {
            joined.through = joined.through.max(given);
            joined.unfinished = joined.unfinished.split_off(&given.next());
        }
        self.joined_through = self.joined_through.max(given);
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Who wants an event of this type at this place.
    pub(crate) fn targets(&self, event_type: &str, position: Option<Position>) -> Targets {
        let matching = self.by_type.get(event_type).unwrap_or(&self.to_all);
        let Some(position) = position.filter(|&position| position <= self.joined_through) else {
            return Arc::clone(matching);
        };
        let wants = |wanted: &Arc<Subscribed>| {
            let same = |member: &&Member| Arc::ptr_eq(&member.subscribed, wanted);
            self.members
                .iter()
                .find(same)
                .is_some_and(|member| member.joined.wants(position))
        };
        matching
            .iter()
            .filter(|wanted| wants(wanted))
            .cloned()
            .collect()
    }

    fn index(&mut self) {
        let wanting = |event_type: Option<&str>| -> Targets {
            let wants = |subscribed: &&Arc<Subscribed>| {
                let wanted = subscribed.subscription.event_type();
                wanted.is_none() || wanted == event_type
            };
            self.members
                .iter()
                .map(|member| &member.subscribed)
                .filter(wants)
                .cloned()
                .collect()
        };
        let types = self
            .members
            .iter()
            .filter_map(|member| member.subscribed.subscription.event_type());
        self.by_type = types
            .map(|event_type| (event_type, wanting(Some(event_type))))
            .collect();
        self.to_all = wanting(None);
    }
}
