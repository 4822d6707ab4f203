//! The events of the suite, and the handlers that write down what they see.

use std::{
    hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use domain_events::{
    DomainEvent, Event, HandlerContext, HandlerError, NewEvent, RetryPolicy, Subscription,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::soon;

/// The event of the suite: the `number`th of its aggregate.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.noted", aggregate = "notebook", id = aggregate)]
pub(super) struct Noted {
    pub(super) aggregate: String,
    pub(super) number: u64,
}

/// An event that follows from [`Noted`].
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.followed", aggregate = "notebook", id = aggregate)]
pub(super) struct Followed {
    pub(super) aggregate: String,
    pub(super) number: u64,
}

pub(super) fn noted(aggregate: impl Into<String>, number: u64) -> NewEvent {
    NewEvent::new(Noted {
        aggregate: aggregate.into(),
        number,
    })
}

pub(super) fn followed(aggregate: impl Into<String>, number: u64) -> NewEvent {
    NewEvent::new(Followed {
        aggregate: aggregate.into(),
        number,
    })
}

/// What handlers write down, in order.
#[derive(Clone)]
pub(super) struct Journal(Arc<watch::Sender<Vec<(String, u64)>>>);

impl Default for Journal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }
}

impl Journal {
    pub(super) fn write(&self, who: &str, number: u64) {
        self.0
            .send_modify(|lines| lines.push((who.to_owned(), number)));
    }

    pub(super) fn lines(&self) -> Vec<(String, u64)> {
        self.0.borrow().clone()
    }

    pub(super) fn of(&self, who: &str) -> Vec<u64> {
        let lines = self.0.borrow();
        let of_them = lines.iter().filter(|line| line.0 == who);
        of_them.map(|line| line.1).collect()
    }

    /// Waits until `who` has written `count` lines.
    pub(super) async fn has(&self, count: usize, who: &str) {
        let mut changes = self.0.subscribe();
        let enough =
            |lines: &Vec<(String, u64)>| lines.iter().filter(|line| line.0 == who).count() >= count;
        // The sender outlives the wait.
        drop(soon(changes.wait_for(enough)).await);
    }
}

/// A subscription that writes down what it handles, under its name.
pub(super) fn journal_of(name: &str, journal: &Journal) -> Subscription {
    answering(name, journal, |_, _| Ok(()))
}

/// A subscription that writes down each attempt under its name, and ends it as `answer` says of the
/// event's number and the number of the attempt.
pub(super) fn answering(
    name: &str,
    journal: &Journal,
    answer: impl Fn(u64, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
) -> Subscription {
    let (journal, who) = (journal.clone(), name.to_owned());
    Subscription::from_fn(name, move |event: Event<Noted>, cx: HandlerContext| {
        journal.write(&who, event.number);
        std::future::ready(answer(event.number, cx.attempt()))
    })
}

/// A subscription that writes down each event as "began", takes a permit of `gate`, and then writes
/// it down as "seen".
pub(super) fn gated(journal: &Journal, gate: &Arc<Semaphore>) -> Subscription {
    let (journal, gate) = (journal.clone(), Arc::clone(gate));
    Subscription::from_fn("waits", move |event: Event<Noted>, _| {
        let (journal, gate) = (journal.clone(), Arc::clone(&gate));
        async move {
            journal.write("began", event.number);
            gate.acquire().await?.forget();
            journal.write("seen", event.number);
            Ok(())
        }
    })
}

/// A subscription that writes down the events that follow.
pub(super) fn hears(name: &str, journal: &Journal) -> Subscription {
    let (journal, who) = (journal.clone(), name.to_owned());
    Subscription::from_fn(name, move |event: Event<Followed>, _| {
        journal.write(&who, event.number);
        std::future::ready(Ok(()))
    })
}

pub(super) fn quick_retries(attempts: u32) -> RetryPolicy {
    RetryPolicy::exponential()
        .base(Duration::from_millis(2))
        .max_attempts(attempts)
}

/// Chance that can be repeated: the same for the same seed and question.
#[derive(Clone, Copy)]
pub(super) struct Fate(u64);

impl Fate {
    /// Fate from a fresh seed, printed for a repetition with `TESTKIT_SEED`.
    #[expect(
        clippy::print_stderr,
        reason = "what failed by chance must be repeatable"
    )]
    pub(super) fn fresh() -> Self {
        let given = std::env::var("TESTKIT_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        eprintln!("TESTKIT_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound` for `question`.
    pub(super) fn below(self, bound: u64, question: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.0, question).hash(&mut hasher);
        hasher.finish() % bound
    }
}
