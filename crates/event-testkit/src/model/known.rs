//! What the model knows at one step.

use std::time::Duration;

use domain_events::{EventId, FailurePolicy, Ordering};

use super::{
    delivery::{Delivery, State},
    letters::LetterCall,
    order::Order,
    play::Pace,
    program::{AGGREGATES, How, Program, Raised},
    resting::Rest,
    trace::{Answer, Told},
};

/// A call to publish.
pub(super) struct Call {
    pub(super) how: How,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) is_inside: bool,
    pub(super) after_stopping: bool,
    pub(super) began: Duration,
    pub(super) began_step: usize,
    pub(super) answer: Option<Answer>,
    /// Whether one of its events was seen by a handler.
    pub(super) is_proved: bool,
}

/// An event, whether accepted or not.
pub(super) struct Event {
    pub(super) call: usize,
    pub(super) raised: Raised,
    /// The subscription and event whose attempt published it, and its number in that attempt.
    pub(super) cause: Option<(usize, usize, u32)>,
    pub(super) id: Option<EventId>,
    pub(super) told: Option<Told>,
}

/// What is known of a subscription.
#[derive(Clone, Default)]
pub(super) struct Subscribed {
    pub(super) subscribing: Option<usize>,
    pub(super) subscribed: Option<usize>,
    pub(super) unsubscribing: bool,
    pub(super) is_gone: bool,
    pub(super) rest: Rest,
    /// The last step at which it may have been behind on each aggregate.
    pub(super) behind: [Option<usize>; AGGREGATES],
    /// Whether a worker may still have to see that a discarded letter parks an aggregate no more.
    pub(super) lingers: [bool; AGGREGATES],
    pub(super) failed_attempts: u64,
    pub(super) retries: u64,
}

pub(super) struct Model<'a> {
    pub(super) program: &'a Program,
    pub(super) pace: Pace,
    pub(super) now: Duration,
    pub(super) step: usize,
    pub(super) subscriptions: Vec<Subscribed>,
    pub(super) calls: Vec<Call>,
    pub(super) events: Vec<Event>,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) order: Order,
    pub(super) letter_calls: Vec<LetterCall>,
    /// Waits for the bus to be idle, and whether it was since they began.
    pub(super) waits: Vec<(usize, bool)>,
    /// Receipts asked: call, event, step.
    pub(super) asked: Vec<(usize, usize, usize)>,
    /// When each pipeline had no worker free the last time; the default one first.
    pub(super) busy_until: Vec<Duration>,
    /// Deliveries that have ended, each time counted.
    pub(super) ends: u64,
    /// How many had when the bus was called to stop, and when that was.
    pub(super) stopping: Option<(u64, Duration)>,
    /// How many had when it surely was stopping.
    pub(super) ends_at_stop: Option<u64>,
    pub(super) is_stopped: bool,
    /// Attempts that the stop cut off, surely and perhaps.
    pub(super) cut_off: (u64, u64),
}

impl<'a> Model<'a> {
    pub(super) fn new(program: &'a Program, pace: Pace) -> Self {
        let subscribers = program.subscribers.len();
        Self {
            program,
            pace,
            now: Duration::ZERO,
            step: 0,
            subscriptions: vec![Subscribed::default(); subscribers],
            calls: Vec::new(),
            events: Vec::new(),
            deliveries: Vec::new(),
            order: Order::default(),
            letter_calls: Vec::new(),
            waits: Vec::new(),
            asked: Vec::new(),
            busy_until: vec![Duration::ZERO; subscribers + 1],
            ends: 0,
            stopping: None,
            ends_at_stop: None,
            is_stopped: false,
            cut_off: (0, 0),
        }
    }

    /// Whether every step is exact: nothing happens between an end and what follows from it.
    pub(super) fn is_exact(&self) -> bool {
        self.pace == Pace::Paused
    }

    pub(super) fn units(&self, units: u32) -> Duration {
        self.pace.units(units)
    }

    pub(super) fn name(&self, delivery: &Delivery) -> String {
        let Delivery {
            subscription,
            event,
            aggregate,
            ..
        } = delivery;
        format!("s{subscription} of event {event} (aggregate {aggregate})")
    }

    pub(super) fn find(&self, subscription: usize, event: usize) -> Option<usize> {
        self.deliveries
            .iter()
            .position(|delivery| (delivery.subscription, delivery.event) == (subscription, event))
    }

    /// Whether the events of a call were accepted, whatever becomes known later.
    pub(super) fn surely_accepted(&self, call: usize) -> bool {
        let call = &self.calls[call];
        call.is_proved || matches!(call.answer, Some(Answer::Accepted(_)))
    }

    /// Whether one event is known to come before another.
    pub(super) fn is_before(&self, first: usize, second: usize) -> bool {
        let (one, other) = (self.events[first].call, self.events[second].call);
        (one == other && first < second) || self.order.knows(one, other)
    }

    /// Whether two deliveries of a subscription are to come one after the other.
    pub(super) fn same_lane(&self, one: &Delivery, other: &Delivery) -> bool {
        let subscriber = &self.program.subscribers[one.subscription];
        one.subscription == other.subscription
            && match subscriber.ordering {
                Ordering::PerAggregate => one.aggregate == other.aggregate,
                Ordering::Total => true,
                Ordering::None => one.event == other.event,
            }
    }

    pub(super) fn policy(&self, delivery: &Delivery) -> FailurePolicy {
        self.program.subscribers[delivery.subscription].policy
    }

    pub(super) fn pipeline(&self, delivery: &Delivery) -> Option<usize> {
        self.program.pipeline(delivery.subscription)
    }

    /// Whether the filter of the subscription passes the event over.
    pub(super) fn is_filtered(&self, delivery: &Delivery) -> bool {
        let subscriber = &self.program.subscribers[delivery.subscription];
        subscriber.passes_over == Some(delivery.aggregate)
    }

    /// Whether a delivery waits behind a dead letter (F5).
    pub(super) fn is_parked(&self, delivery: &Delivery) -> bool {
        self.policy(delivery) == FailurePolicy::ParkAggregate
            && self.deliveries.iter().any(|other| {
                other.state == State::Dead
                    && other.event != delivery.event
                    && self.same_lane(delivery, other)
            })
    }

    /// Whether the bus still has this to do, and nobody need act for it.
    pub(super) fn is_pending(&self, delivery: &Delivery) -> bool {
        let subscription = &self.subscriptions[delivery.subscription];
        delivery.is_open()
            && delivery.is_sure
            && self.surely_accepted(delivery.call)
            && !subscription.unsubscribing
            && !subscription.rest.may_be_paused()
            && !self.is_parked(delivery)
    }

    pub(super) fn first_pending(&self) -> Option<&Delivery> {
        self.deliveries
            .iter()
            .find(|delivery| self.is_pending(delivery))
    }
}
