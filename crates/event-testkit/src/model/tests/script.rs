//! A way to write traces down.

use std::time::Duration;

use domain_events::{
    BusStatistics, DeliveryOutcome, EventId, FailurePolicy, Ordering, StopReport,
    SubscriptionStatistics, Urgency,
};

use crate::model::{
    Answer, Behaviour, Ended, Ending, Entry, How, Kind, Observed, Pace, Program, Raised,
    Subscriber, Told, check,
};

/// A trace being written, of a program with plain subscribers of all events.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) program: Program,
    entries: Vec<Entry>,
    now: Duration,
    ids: Vec<EventId>,
    calls: usize,
}

impl Script {
    /// A bus of 4 places and 2 workers, with so many subscriptions.
    pub(super) fn of(subscribers: usize) -> Self {
        let subscriber = Subscriber {
            wants: None,
            priority: 0,
            attempts: 3,
            policy: FailurePolicy::Skip,
            ordering: Ordering::PerAggregate,
            isolation: None,
            passes_over: None,
            is_late: false,
            script: vec![Behaviour::default()],
        };
        Self {
            program: Program {
                capacity: 4,
                workers: 2,
                subscribers: vec![subscriber; subscribers],
                clients: Vec::new(),
                ending: Ending::Settle,
            },
            entries: Vec::new(),
            now: Duration::ZERO,
            ids: Vec::new(),
            calls: 0,
        }
    }

    /// Changes the subscription with this number.
    pub(super) fn with(mut self, number: usize, change: impl FnOnce(&mut Subscriber)) -> Self {
        change(&mut self.program.subscribers[number]);
        self
    }

    /// Subscribes everybody.
    pub(super) fn subscribed(mut self) -> Self {
        for number in 0..self.program.subscribers.len() {
            self = self.subscribe(number);
        }
        self
    }

    pub(super) fn subscribe(self, number: usize) -> Self {
        self.note(Observed::Subscribing(number))
            .note(Observed::Subscribed(number, true))
    }

    pub(super) fn note(mut self, what: Observed) -> Self {
        let at = self.now;
        self.entries.push(Entry { at, what });
        self
    }

    pub(super) fn pass(mut self, units: u64) -> Self {
        self.now += Duration::from_millis(units);
        self
    }

    /// Begins to publish one event of each of these aggregates.
    pub(super) fn publishing(self, how: How, aggregates: &[u8]) -> Self {
        self.publishing_inside(how, aggregates, None)
    }

    pub(super) fn publishing_inside(
        mut self,
        how: How,
        aggregates: &[u8],
        inside: Option<(usize, usize)>,
    ) -> Self {
        let raised = |&aggregate: &u8| Raised {
            kind: Kind::Opened,
            aggregate,
            urgency: Urgency::Normal,
        };
        let (call, first) = (self.calls, self.ids.len());
        self.calls += 1;
        self.ids.extend(aggregates.iter().map(|_| EventId::new()));
        self.note(Observed::Publishing {
            call,
            how,
            first,
            events: aggregates.iter().map(raised).collect(),
            inside,
        })
    }

    pub(super) fn answered(self, call: usize, answer: Answer) -> Self {
        self.note(Observed::Published(call, answer))
    }

    /// Answers that the last `count` events were accepted, by call `call`.
    pub(super) fn accepted(self, call: usize, count: usize) -> Self {
        let ids = self.ids[self.ids.len() - count..].to_vec();
        self.answered(call, Answer::Accepted(ids))
    }

    /// Publishes one event of each of these aggregates, each by a call of its own.
    pub(super) fn publish(mut self, aggregates: &[u8]) -> Self {
        for &aggregate in aggregates {
            let call = self.calls;
            self = self.publishing(How::Wait, &[aggregate]).accepted(call, 1);
        }
        self
    }

    pub(super) fn told(&self, event: usize) -> Told {
        let id = self.ids[event];
        Told {
            id,
            causation: None,
            correlation: id.into(),
        }
    }

    pub(super) fn began(self, subscription: usize, event: usize, attempt: u32) -> Self {
        self.attempt(subscription, event, attempt, false)
    }

    pub(super) fn attempt(
        self,
        subscription: usize,
        event: usize,
        attempt: u32,
        is_replay: bool,
    ) -> Self {
        let told = self.told(event);
        self.note(Observed::AttemptBegan {
            subscription,
            event,
            attempt,
            is_replay,
            told,
        })
    }

    pub(super) fn ended(self, subscription: usize, event: usize, how: Ended) -> Self {
        self.note(Observed::AttemptEnded(subscription, event, how))
    }

    /// A first attempt that handles the event.
    pub(super) fn handled(self, subscription: usize, event: usize) -> Self {
        self.began(subscription, event, 1)
            .ended(subscription, event, Ended::Handled)
    }

    /// A first attempt that fails for good.
    pub(super) fn dies(self, subscription: usize, event: usize) -> Self {
        self.began(subscription, event, 1)
            .ended(subscription, event, Ended::FailedForGood)
    }

    /// Replays a dead letter, by call 0.
    pub(super) fn replay(self, subscription: usize, event: usize) -> Self {
        self.note(Observed::Replaying(0, subscription, event))
            .note(Observed::Replayed(0, true))
    }

    /// Asks a receipt, by call 0, which tells these outcomes.
    pub(super) fn asked(self, event: usize, outcomes: &[(usize, DeliveryOutcome)]) -> Self {
        self.note(Observed::Asking(0, event))
            .note(Observed::Outcomes(0, outcomes.to_vec()))
    }

    pub(super) fn waited(self) -> Self {
        self.note(Observed::WaitingIdle(0)).note(Observed::Idle(0))
    }

    pub(super) fn stopped(self, report: StopReport) -> Self {
        self.note(Observed::Stopped(report))
    }

    /// Tells figures of a bus with one subscription.
    pub(super) fn quiet(self, accepted: u64, in_flight: u64, handled: u64) -> Self {
        let one = SubscriptionStatistics {
            matching: handled,
            handled,
            ..SubscriptionStatistics::default()
        };
        self.quiet_with(accepted, in_flight, one)
    }

    /// Tells figures of a bus whose one subscription has these.
    pub(super) fn quiet_with(
        self,
        accepted: u64,
        in_flight: u64,
        mut one: SubscriptionStatistics,
    ) -> Self {
        one.name = "s0".into();
        self.note(Observed::Quiet(Box::new(BusStatistics {
            accepted,
            in_flight,
            finished: accepted - in_flight,
            subscriptions: vec![one],
            ..BusStatistics::default()
        })))
    }

    #[track_caller]
    pub(super) fn is_allowed(&self) {
        if let Err(refusal) = check(&self.program, Pace::Paused, &self.entries) {
            panic!("{refusal}");
        }
    }

    /// Checks that the last step is refused, by this promise.
    #[track_caller]
    pub(super) fn is_refused_by(&self, promise: &str) {
        let refusal = check(&self.program, Pace::Paused, &self.entries);
        let refusal = refusal.expect_err("refused");
        assert_eq!(refusal.promise, promise, "{refusal}");
        assert_eq!(refusal.step, self.entries.len() - 1, "{refusal}");
    }
}
