//! The subscriptions of a bus, by what they want and in the order in which they get it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use domain_events::{
    EventRegistry, NewEvent, Position, Progress, SubscribeError, Subscription, WaitingDelivery,
};
use hashbrown::HashMap;

use crate::{pipeline::PipelineId, subscribed::Subscribed};

/// How far a subscription was when it joined: up to here it wants only what it had not finished.
#[derive(Default)]
pub(crate) struct Joined {
    pub(crate) through: Position,
    pub(crate) unfinished: BTreeSet<Position>,
    /// Deliveries that wait for their next attempt, to be given anew with the attempts that were made.
    pub(crate) waiting: BTreeMap<Position, WaitingDelivery>,
    /// Those of them that are counted already: replays of this run.
    pub(crate) counted: BTreeSet<Position>,
}

impl Joined {
    /// How far who joined here has come with the log: it was given everything up to `given`, and
    /// these of that are not finished.
    pub(crate) fn progress(
        &self,
        given: Position,
        unfinished: impl IntoIterator<Item = Position>,
    ) -> Progress {
        let mut unfinished: Vec<_> = unfinished.into_iter().collect();
        unfinished.extend(self.unfinished.range(given.next()..));
        unfinished.sort_unstable();
        unfinished.dedup();
        Progress {
            through: given.max(self.through),
            unfinished,
        }
    }

    fn wants(&self, position: Position) -> bool {
        position > self.through
            || self.unfinished.contains(&position)
            || self.waiting.contains_key(&position)
    }
}

impl From<Progress> for Joined {
    fn from(progress: Progress) -> Self {
        Self {
            through: progress.through,
            unfinished: progress.unfinished.into_iter().collect(),
            waiting: BTreeMap::new(),
            counted: BTreeSet::new(),
        }
    }
}

/// A subscription and where it joined the log.
pub(crate) struct Member {
    pub(crate) subscribed: Arc<Subscribed>,
    pub(crate) joined: Joined,
}

pub(crate) type Targets = Arc<[Arc<Subscribed>]>;

/// Who wants an event, by pipeline: highest priority first, equal ones in order of registration.
pub(crate) type Route = Box<[(PipelineId, Lent)]>;

/// How many events hold one list of targets.
const MOST_LENT: usize = 64;

/// Targets to be held by events: a list of its own for every few of them, as the count of those who
/// hold one would be passed to and fro between the processors of publishers and workers.
#[derive(Clone)]
pub(crate) struct Lent {
    targets: Targets,
    times: usize,
}

impl Lent {
    pub(crate) fn lend(&mut self) -> Targets {
        if self.times == MOST_LENT {
            *self = self.targets.iter().cloned().collect();
        }
        self.times += 1;
        Arc::clone(&self.targets)
    }
}

impl FromIterator<Arc<Subscribed>> for Lent {
    fn from_iter<I: IntoIterator<Item = Arc<Subscribed>>>(targets: I) -> Self {
        Self {
            targets: targets.into_iter().collect(),
            times: 0,
        }
    }
}

/// All subscriptions of a bus, highest priority first, equal ones in order of registration.
#[derive(Default)]
pub(crate) struct Subscriptions {
    registry: EventRegistry,
    members: Vec<Member>,
    by_type: HashMap<&'static str, Route>,
    to_all: Route,
    /// Positions after this are wanted by every member that matches.
    joined_through: Position,
}

impl Subscriptions {
    /// Checks that `subscription` can work and that its name is free, as those that it had formerly.
    pub(crate) fn check(&mut self, subscription: &Subscription) -> Result<(), SubscribeError> {
        let name = subscription.name();
        let mut names = [name].into_iter().chain(subscription.former_names());
        if let Some(taken) = names.find(|name| self.named(name).is_some()) {
            return Err(SubscribeError::DuplicateName(Arc::clone(taken)));
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

    /// Makes the members of a pipeline pass over what they have been given, up to `given`.
    pub(crate) fn pass_over_through(&mut self, pipeline: PipelineId, given: Position) {
        for Member { subscribed, joined } in &mut self.members {
            if subscribed.pipeline == pipeline {
                joined.through = joined.through.max(given);
                joined.unfinished = joined.unfinished.split_off(&given.next());
                joined.waiting = joined.waiting.split_off(&given.next());
                joined.counted = joined.counted.split_off(&given.next());
            }
        }
        self.joined_through = self.joined_through.max(given);
    }

    /// Takes out a delivery that was left waiting, with the one subscription of the pipeline, and whether it
    /// is counted already.
    pub(crate) fn take_waiting(
        &mut self,
        pipeline: PipelineId,
        position: Position,
    ) -> Option<(Arc<Subscribed>, WaitingDelivery, bool)> {
        let of = |member: &&mut Member| member.subscribed.pipeline == pipeline;
        let member = self.members.iter_mut().find(of)?;
        let waiting = member.joined.waiting.remove(&position)?;
        let is_counted = member.joined.counted.remove(&position);
        Some((Arc::clone(&member.subscribed), waiting, is_counted))
    }

    /// Leaves a delivery, which is counted, waiting for the one subscription of the pipeline to read its
    /// event from the log.
    pub(crate) fn leave_waiting(&mut self, pipeline: PipelineId, waiting: WaitingDelivery) {
        let of = |member: &&mut Member| member.subscribed.pipeline == pipeline;
        if let Some(member) = self.members.iter_mut().find(of) {
            member.joined.counted.insert(waiting.position);
            member.joined.waiting.insert(waiting.position, waiting);
        }
    }

    /// The first delivery of a pipeline, behind a position and up to another one, that an earlier run has
    /// left waiting.
    pub(crate) fn first_waiting(
        &self,
        pipeline: PipelineId,
        (after, last): (Position, Position),
    ) -> Option<Position> {
        let waiting = self
            .of(pipeline)
            .flat_map(|member| member.joined.waiting.keys());
        let within = waiting.filter(|position| (after.next()..=last).contains(position));
        within.min().copied()
    }

    /// Notes that what a member had not finished when it joined is done, or is covered by a row.
    pub(crate) fn covered(&mut self, subscribed: &Arc<Subscribed>, position: Position) {
        let same = |member: &&mut Member| Arc::ptr_eq(&member.subscribed, subscribed);
        if let Some(member) = self.members.iter_mut().find(same) {
            member.joined.unfinished.remove(&position);
        }
    }

    /// Up to where a member wants only what it had not finished when it joined.
    pub(crate) fn joined_through(&self, subscribed: &Arc<Subscribed>) -> Option<Position> {
        let same = |member: &&Member| Arc::ptr_eq(&member.subscribed, subscribed);
        self.members.iter().find(same).map(|it| it.joined.through)
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn of(&self, pipeline: PipelineId) -> impl Iterator<Item = &Member> {
        let of = move |member: &&Member| member.subscribed.pipeline == pipeline;
        self.members.iter().filter(of)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Subscribed>> {
        let all = self.members.iter().map(|member| &member.subscribed);
        let mut named = all.filter(|subscribed| &**subscribed.name() == name);
        named.next()
    }

    /// Who wants an event of this type.
    pub(crate) fn route(&self, event_type: &str) -> &Route {
        self.by_type.get(event_type).unwrap_or(&self.to_all)
    }

    /// The same, to be lent to an event.
    pub(crate) fn lend_route(&mut self, event_type: &str) -> &mut Route {
        match self.by_type.get_mut(event_type) {
            Some(route) => route,
            None => &mut self.to_all,
        }
    }

    /// How many of the events the default pipeline wants.
    pub(crate) fn count_shared(&self, events: &[NewEvent]) -> usize {
        let shared = |event: &&NewEvent| {
            let mut parts = self.route(event.event_type()).iter();
            parts.any(|(id, _)| *id == PipelineId::SHARED)
        };
        events.iter().filter(shared).count()
    }

    /// Who wants, in one pipeline, an event of this type at this place.
    pub(crate) fn targets(
        &self,
        pipeline: PipelineId,
        event_type: &str,
        position: Position,
    ) -> Targets {
        let mut parts = self.route(event_type).iter();
        let Some((_, Lent { targets, .. })) = parts.find(|(id, _)| *id == pipeline) else {
            return Targets::default();
        };
        if position > self.joined_through {
            return Arc::clone(targets);
        }
        let wants = |wanted: &Arc<Subscribed>| {
            let same = |member: &&Member| Arc::ptr_eq(&member.subscribed, wanted);
            self.members
                .iter()
                .find(same)
                .is_some_and(|member| member.joined.wants(position))
        };
        let wanted = targets.iter().filter(|target| wants(target));
        wanted.cloned().collect()
    }

    fn index(&mut self) {
        let types = self
            .members
            .iter()
            .filter_map(|member| member.subscribed.subscription.event_type());
        self.by_type = types
            .map(|event_type| (event_type, self.wanting(Some(event_type))))
            .collect();
        self.to_all = self.wanting(None);
    }

    fn wanting(&self, event_type: Option<&str>) -> Route {
        let mut parts: BTreeMap<PipelineId, Vec<Arc<Subscribed>>> = BTreeMap::new();
        for Member { subscribed, .. } in &self.members {
            let wanted = subscribed.subscription.event_type();
            if wanted.is_none() || wanted == event_type {
                parts
                    .entry(subscribed.pipeline)
                    .or_default()
                    .push(Arc::clone(subscribed));
            }
        }
        let parts = parts.into_iter();
        parts
            .map(|(pipeline, targets)| (pipeline, targets.into_iter().collect()))
            .collect()
    }
}
