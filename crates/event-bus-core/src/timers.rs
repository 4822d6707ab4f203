//! Retries by due time: one timer for all, so a long wait never delays a short one (F3).

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{engine::Engine, mailboxes::MailboxId, subscriptions::Subscribed};

/// A blocked subscription and when its next attempt is due.
pub(crate) struct Due {
    pub(crate) at: Instant,
    pub(crate) mailbox: MailboxId,
    pub(crate) subscribed: Arc<Subscribed>,
}

impl Due {
    /// The retry that is due in `delay`.
    pub(crate) fn after(delay: Duration, mailbox: MailboxId, subscribed: &Arc<Subscribed>) -> Self {
        Self {
            at: far(delay),
            mailbox,
            subscribed: Arc::clone(subscribed),
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
    heap: Mutex<(BinaryHeap<Reverse<Entry>>, u64)>,
    sooner: Notify,
}

impl Timers {
    pub(crate) fn set(&self, due: Due) {
        let at = due.at;
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let first = heap.0.peek().is_none_or(|Reverse(first)| at < first.due.at);
        heap.1 += 1;
        let number = heap.1;
        heap.0.push(Reverse(Entry { due, number }));
        drop(heap);
        if first {
            self.sooner.notify_one();
        }
    }

    fn next_at(&self) -> Option<Instant> {
        let heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        heap.0.peek().map(|Reverse(entry)| entry.due.at)
    }

    fn pop_due(&self, now: Instant) -> Option<Due> {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        heap.0.peek().filter(|Reverse(entry)| entry.due.at <= now)?;
        heap.0.pop().map(|Reverse(entry)| entry.due)
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
                    engine.retry_is_due(&due);
                }
            }
        }
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
