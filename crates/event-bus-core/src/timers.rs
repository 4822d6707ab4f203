//! Retries by due time: one timer for all, so a long wait never delays a short one (F3).

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    after::After,
    engine::Engine,
    mailboxes::MailboxId,
    state::State,
    subscribed::Subscribed,
    sync::{Mutex, lock},
};

/// What is due for a subscription, and when.
pub(crate) struct Due {
    at: Instant,
    what: What,
    /// Not what keeps the subscription, which may go before its time comes.
    subscribed: Weak<Subscribed>,
}

#[derive(Clone, Copy)]
enum What {
    /// The next attempt of a blocked aggregate.
    Retry(MailboxId),
    /// A blocked aggregate whose first delivery was not attempted.
    GoOn(MailboxId),
    /// The probe of its circuit breaker.
    Probe,
}

impl Due {
    /// The retry that is due in `delay`.
    pub(crate) fn after(delay: Duration, mailbox: MailboxId, subscribed: &Arc<Subscribed>) -> Self {
        Self {
            at: far(delay),
            what: What::Retry(mailbox),
            subscribed: Arc::downgrade(subscribed),
        }
    }

    /// What may go on at once, unless a delivery was attempted meanwhile: that waits for its own time.
    pub(crate) fn now(mailbox: MailboxId, subscribed: &Arc<Subscribed>) -> Self {
        Self {
            at: Instant::now(),
            what: What::GoOn(mailbox),
            subscribed: Arc::downgrade(subscribed),
        }
    }

    /// The probe that is due in `delay`.
    pub(crate) fn probe(delay: Duration, subscribed: &Arc<Subscribed>) -> Self {
        Self {
            at: far(delay),
            what: What::Probe,
            subscribed: Arc::downgrade(subscribed),
        }
    }
}

/// The moment in `delay`, or about thirty years from now where that is out of range.
fn far(delay: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + delay.min(FAR)
}

struct Entry {
    due: Due,
    /// Equal times keep the order in which they were set.
    number: u64,
}

/// The retries that wait for their time.
#[derive(Default)]
pub(crate) struct Timers {
    heap: Mutex<Heap>,
    sooner: Notify,
}

#[derive(Default)]
struct Heap {
    entries: BinaryHeap<Reverse<Entry>>,
    numbers: u64,
    /// With so many entries, those of subscriptions that have gone are taken out.
    clear_at: usize,
}

impl Timers {
    pub(crate) fn set(&self, due: Due) {
        let at = due.at;
        let mut heap = lock(&self.heap);
        let first = heap.entries.peek().is_none_or(|Reverse(it)| at < it.due.at);
        heap.numbers += 1;
        let number = heap.numbers;
        heap.entries.push(Reverse(Entry { due, number }));
        if heap.entries.len() > heap.clear_at.max(64) {
            let is_there = |Reverse(it): &Reverse<Entry>| it.due.subscribed.strong_count() > 0;
            heap.entries.retain(is_there);
            heap.clear_at = 2 * heap.entries.len();
        }
        drop(heap);
        if first {
            self.sooner.notify_one();
        }
    }

    fn next_at(&self) -> Option<Instant> {
        let heap = lock(&self.heap);
        heap.entries.peek().map(|Reverse(entry)| entry.due.at)
    }

    fn pop_due(&self, now: Instant) -> Option<Due> {
        let mut heap = lock(&self.heap);
        heap.entries
            .peek()
            .filter(|Reverse(entry)| entry.due.at <= now)?;
        heap.entries.pop().map(|Reverse(entry)| entry.due)
    }
}

#[cfg(all(test, shuttle))]
impl Engine {
    /// Makes every retry due that is set.
    pub(crate) fn fire_timers(&self) {
        while let Some(at) = self.timers.next_at() {
            if let Some(due) = self.timers.pop_due(at) {
                self.step(|state, after| state.is_due(&due, after));
            }
        }
    }
}

/// Makes retries ready when they are due, for ever.
pub(crate) async fn run(engine: Arc<Engine>) {
    loop {
        let sooner = engine.timers.sooner.notified();
        match engine.timers.next_at() {
            None => sooner.await,
            Some(at) => {
                tokio::select! {
                    () = sooner => continue,
                    () = tokio::time::sleep_until(at) => {}
                }
                while let Some(due) = engine.timers.pop_due(Instant::now()) {
                    engine.step(|state, after| state.is_due(&due, after));
                }
            }
        }
    }
}

impl State {
    fn is_due(&mut self, due: &Due, after: &mut After) {
        let Some(subscribed) = due.subscribed.upgrade() else {
            return;
        };
        match due.what {
            What::Probe => self.probe_is_due(&subscribed, after),
            What::Retry(mailbox) | What::GoOn(mailbox) => {
                if let Some(pipeline) = self.pipelines.get_mut(subscribed.pipeline) {
                    let is_first = matches!(due.what, What::GoOn(_));
                    let ready = pipeline.mailboxes.due(mailbox, &subscribed, is_first);
                    pipeline.wake_workers(usize::from(ready), after);
                }
            }
        }
        after.dropped.push(Box::new(subscribed));
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due.at, self.number).cmp(&(other.due.at, other.number))
    }
}
