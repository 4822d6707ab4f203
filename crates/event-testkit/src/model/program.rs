//! A program as plain data: the bus, its subscribers, and what clients do.

use std::{fmt, time::Duration};

use domain_events::{FailurePolicy, Isolation, Ordering, Urgency};

/// How many events a program publishes at most, those of handlers counted.
pub(super) const MOST_EVENTS: usize = 128;

/// How many aggregates a program has at most.
pub(super) const AGGREGATES: usize = 4;

/// The longest that anything should wait which does not wait for somebody to act.
pub(super) const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// Units of time after which an attempt is cut off.
pub(super) const TIMEOUT: u32 = 50;

/// Units of time before the second attempt.
pub(super) const BASE: u32 = 10;

/// The most units of time between two attempts.
pub(super) const CAP: u32 = 15;

/// By how much a delay may be stretched.
pub(super) const JITTER: f64 = 0.5;

/// What is done with a bus.
#[derive(Clone)]
pub struct Program {
    /// How many events the bus holds.
    pub capacity: usize,
    /// How many workers its default pipeline has.
    pub workers: usize,
    /// Who is subscribed, from the start or later.
    pub subscribers: Vec<Subscriber>,
    /// What each client does, one step after the other.
    pub clients: Vec<Vec<Step>>,
    /// How the run ends.
    pub ending: Ending,
}

/// A subscription and what its handler does.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// The type of the events wanted; `None` for all.
    pub wants: Option<Kind>,
    /// The rank in the pipeline.
    pub priority: i32,
    /// How many attempts a delivery has.
    pub attempts: u32,
    /// What follows a dead letter.
    pub policy: FailurePolicy,
    /// The order in which events come.
    pub ordering: Ordering,
    /// What is asked of a pipeline of its own.
    pub isolation: Option<Isolation>,
    /// The aggregate of which a filter passes events over.
    pub passes_over: Option<u8>,
    /// Whether it is subscribed by a step, and not before the start.
    pub is_late: bool,
    /// What attempts do, taken by number of event and attempt.
    pub script: Vec<Behaviour>,
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first of three.
    Opened,
    /// The second.
    Moved,
    /// The third.
    Closed,
}

/// What one attempt does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// How many events it publishes; only a first attempt does.
    pub publishes: u8,
    /// Whether it publishes them in one batch.
    pub as_batch: bool,
    /// How often it yields.
    pub yields: u8,
    /// For how many units of time it rests.
    pub rests: u32,
    /// How it ends.
    pub end: Finish,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// Handled.
    #[default]
    Handle,
    /// With an error that may pass.
    Fail,
    /// With an error that stays.
    FailForGood,
    /// With an error that is worth another attempt after so many units of time.
    RetryAfter(u32),
    /// Not needed.
    Skip,
    /// With a panic.
    Panic,
    /// Never.
    Hang,
}

/// An event to be published.
#[derive(Clone, Copy, Debug)]
pub struct Raised {
    /// Its type.
    pub kind: Kind,
    /// Its aggregate, below 4.
    pub aggregate: u8,
    /// Its urgency.
    pub urgency: Urgency,
}

/// The way of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `publish`, or `publish_all` for several events.
    Wait,
    /// `try_publish`.
    Try,
    /// `publish_timeout` with so many units of time.
    Timeout(u32),
    /// As `Wait`, dropped after so many polls.
    DropAfter(u8),
}

/// One step of a client.
#[derive(Clone, Debug)]
pub enum Step {
    /// Publishes events.
    Publish(How, Vec<Raised>),
    /// Lets others run.
    Yield(u8),
    /// Lets units of time pass.
    Pass(u32),
    /// Makes a late subscription.
    Subscribe(usize),
    /// Removes a subscription.
    Unsubscribe(usize),
    /// Pauses a subscription.
    Pause(usize),
    /// Resumes a subscription.
    Resume(usize),
    /// Replays the oldest dead letter of a subscription.
    Replay(usize),
    /// Discards the oldest dead letter of a subscription.
    Discard(usize),
    /// Waits until the bus is idle.
    WaitIdle,
    /// Asks the receipt of the client's last event for its outcomes.
    AskReceipt,
}

/// How a run ends.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// The clients finish, everything is settled and looked at, and the bus is stopped.
    Settle,
    /// The bus is stopped after so many units of time, with so many to drain.
    Stop {
        /// When.
        after: u32,
        /// How long it may drain.
        deadline: u32,
    },
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line for each part, also where the alternate form is asked for.
        let Self {
            capacity,
            workers,
            ending,
            ..
        } = self;
        f.write_str(&format!(
            "capacity {capacity}, workers {workers}, {ending:?}\n"
        ))?;
        for (number, subscriber) in self.subscribers.iter().enumerate() {
            f.write_str(&format!("s{number}: {subscriber:?}\n"))?;
        }
        for client in &self.clients {
            f.write_str(&format!("client: {client:?}\n"))?;
        }
        Ok(())
    }
}

impl Program {
    /// How many handlers the pipeline of a subscriber runs at once.
    pub(super) fn workers_of(&self, pipeline: Option<usize>) -> usize {
        let own = pipeline.and_then(|subscriber| self.subscribers[subscriber].own_pipeline());
        own.map_or(self.workers, |own| own.workers.unwrap_or(self.workers))
    }

    /// How many events the pipeline of a subscriber holds.
    pub(super) fn capacity_of(&self, pipeline: Option<usize>) -> usize {
        let own = pipeline.and_then(|subscriber| self.subscribers[subscriber].own_pipeline());
        own.map_or(self.capacity, |own| own.capacity.unwrap_or(self.capacity))
    }

    /// The pipeline of a subscriber: its own, by its number, or `None` for the default one.
    pub(super) fn pipeline(&self, subscriber: usize) -> Option<usize> {
        self.subscribers[subscriber]
            .own_pipeline()
            .map(|_| subscriber)
    }
}

impl Subscriber {
    fn own_pipeline(&self) -> Option<Isolation> {
        let given = self.isolation;
        match self.ordering {
            Ordering::PerAggregate => given,
            Ordering::Total => Some(Isolation {
                workers: Some(1),
                ..given.unwrap_or_default()
            }),
            Ordering::None => Some(given.unwrap_or_default()),
        }
    }

    /// What attempt `attempt` of event `event` does.
    pub(super) fn behaviour(&self, event: usize, attempt: u32) -> Behaviour {
        let place = event + 5 * (attempt as usize - 1);
        let of_script = place.checked_rem(self.script.len());
        of_script.map_or_else(Behaviour::default, |place| self.script[place])
    }

    /// Whether events of the type are wanted.
    pub(super) fn wants(&self, kind: Kind) -> bool {
        self.wants.is_none_or(|wanted| wanted == kind)
    }
}
