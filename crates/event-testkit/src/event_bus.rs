//! What every event bus promises: one check a promise, named by its number.
//!
//! An adapter's tests describe the adapter by a [`BusHarness`] and run the whole suite with
//! [`event_bus_conformance!`](crate::event_bus_conformance).

pub mod delivery;
pub mod failure;
pub mod life_cycle;
pub mod publishing;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain_events::{DomainEvent, Event, EventBus, NewEvent, RetryPolicy, Subscription};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

/// How the suite gets a bus to check.
pub trait BusHarness: Send + Sync {
    /// A new bus, not started, with room for `capacity` events and with `workers` workers.
    fn bus(&self, capacity: usize, workers: usize) -> Arc<dyn EventBus>;

    /// Whether the bus keeps events in a store.
    fn is_durable(&self) -> bool;
}

/// The event of the suite: the `number`th of its aggregate.
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.noted", aggregate = "notebook", id = aggregate)]
struct Noted {
    aggregate: String,
    number: u64,
}

/// An event that follows from [`Noted`].
#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "testkit.followed", aggregate = "notebook", id = aggregate)]
struct Followed {
    aggregate: String,
    number: u64,
}

fn noted(aggregate: impl Into<String>, number: u64) -> NewEvent {
    NewEvent::new(Noted {
        aggregate: aggregate.into(),
        number,
    })
}

/// What handlers write down, in order.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<(String, u64)>>>);

impl Journal {
    fn write(&self, who: &str, number: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((who.to_owned(), number));
    }

    fn lines(&self) -> Vec<(String, u64)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn of(&self, who: &str) -> Vec<u64> {
        self.lines()
            .into_iter()
            .filter(|line| line.0 == who)
            .map(|line| line.1)
            .collect()
    }
}

/// Waits for what should come at once; a wait without an end fails the test instead.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what)
        .await
        .expect("did not come within 30 s")
}

fn quick_retries(attempts: u32) -> RetryPolicy {
    RetryPolicy::exponential()
        .base(Duration::from_millis(2))
        .max_attempts(attempts)
}

fn journal_of(name: &str, journal: &Journal) -> Subscription {
    let (journal, who) = (journal.clone(), name.to_owned());
    Subscription::from_fn(name, move |event: Event<Noted>, _| {
        journal.write(&who, event.number);
        async { Ok(()) }
    })
}

/// A subscription that takes a permit of `gate` for each event before it writes it down as "seen".
fn gated(journal: &Journal, gate: &Arc<Semaphore>) -> Subscription {
    let (journal, gate) = (journal.clone(), Arc::clone(gate));
    Subscription::from_fn("waits", move |event: Event<Noted>, _| {
        let (journal, gate) = (journal.clone(), Arc::clone(&gate));
        async move {
            gate.acquire().await?.forget();
            journal.write("seen", event.number);
            Ok(())
        }
    })
}

async fn started(bus: &Arc<dyn EventBus>, subscriptions: impl IntoIterator<Item = Subscription>) {
    for subscription in subscriptions {
        bus.subscribe(subscription).await.expect("subscribed");
    }
    bus.start().await.expect("started");
}

/// Writes one test for each promise of an event bus, run against the given
/// [`BusHarness`](crate::event_bus::BusHarness).
///
/// The calling crate needs `tokio` with its macros and its multi-thread runtime.
#[macro_export]
macro_rules! event_bus_conformance {
    ($harness:expr) => {
        $crate::event_bus_conformance! { $harness => publishing:
            p2_a_receipt_tells_the_outcome_of_each_subscription
            p2_a_receipt_follows_a_delivery_through_its_retries
            p3_a_batch_is_consecutive_and_in_order
            p3_a_batch_larger_than_the_queue
            p4_a_full_queue_gives_the_event_back_or_makes_publishers_wait
            p4_a_dropped_publish_has_touched_nothing
            p5_a_handler_publishes_into_a_full_queue
            p9_published_events_name_their_cause_and_repeat_their_ids
        }
        $crate::event_bus_conformance! { $harness => delivery:
            d2_order_holds_per_aggregate_with_many_workers
            d2_order_holds_under_retries
            d2_a_retry_ends_before_events_of_other_types
            d2_deliveries_of_an_aggregate_run_one_at_a_time
            d3_priority_orders_the_first_attempts_of_an_event
            d3_a_failed_attempt_does_not_gate_lower_priorities
            d7_an_event_without_a_subscription_is_done_at_once
        }
        $crate::event_bus_conformance! { $harness => failure:
            f1_errors_panics_and_timeouts_stay_in_their_own_delivery
            f2_each_verdict_has_its_consequence
            f3_a_long_wait_delays_nobody_else
        }
        $crate::event_bus_conformance! { $harness => life_cycle:
            l1_misuse_of_the_life_cycle_is_a_typed_error
            l2_a_stop_drains_and_reports
            l2_what_runs_at_the_deadline_is_cut_off
            l4_subscriptions_come_and_go
            l4_waiting_from_inside_a_handler_is_a_typed_error
            n1_figures_add_up_at_a_quiet_moment
        }
    };
    ($harness:expr => $group:ident: $($promise:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                $crate::event_bus::$group::$promise(&$harness).await;
            }
        )+
    };
}
