//! What every event bus promises: one check a promise, named by its number.
//!
//! An adapter's tests describe the adapter by a [`BusHarness`] and run the whole suite with
//! [`event_bus_conformance!`](crate::event_bus_conformance).

pub mod publishing;

pub mod live;

pub mod room;

pub mod inside;

pub mod delivery;

pub mod urgency;

pub mod pipelines;

pub mod selection;

pub mod failure;

pub mod code;

pub mod blocking;

pub mod batches;

pub mod breaker;

pub mod context;

pub mod pausing;

pub mod parking;

pub mod dead_letters;

pub mod grouping;

pub mod life_cycle;

pub mod stopping;

pub mod joining;

pub mod guards;

pub mod figures;

pub mod timing;

pub mod measuring;

pub mod probing;

pub mod lingering;

mod notebook;

use std::{panic::Location, pin::Pin, sync::Arc, task::Poll, time::Duration};

use domain_events::{DeliveryOutcome, EventBus, Handled, Receipt, Subscription};
use tokio::time::timeout;

use notebook::{
    Fate, Followed, Journal, Noted, answering, followed, gated, hears, journal_of, noted,
    quick_retries,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// How the suite gets a bus to check.
pub trait BusHarness: Send + Sync {
    /// A new bus, not started, with room for `capacity` events and with `workers` workers.
    fn bus(&self, capacity: usize, workers: usize) -> Arc<dyn EventBus>;

    /// Whether the bus keeps events in a store.
    fn is_durable(&self) -> bool;
}

/// Says that a check is left out where the bus `can` not do what it is about.
#[expect(
    clippy::print_stderr,
    reason = "who runs the suite is to know what it left out"
)]
fn left_out(can: bool, what: &str) -> bool {
    if !can {
        eprintln!("left out: the bus does not {what}");
    }
    !can
}

/// Waits for what should come at once; a wait without an end fails the test instead.
#[track_caller]
fn soon<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = Location::caller();
    async move {
        let came = timeout(Duration::from_secs(30), what).await;
        came.unwrap_or_else(|_| panic!("did not come within 30 s at {place}"))
    }
}

/// Polls once. Returns whether there is nothing yet.
async fn is_pending<T>(future: &mut Pin<Box<impl Future<Output = T> + ?Sized>>) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// Lets whatever can run do so: tasks that are ready go before those that are spawned.
async fn others_run() {
    for _ in 0..50 {
        drop(tokio::spawn(tokio::task::yield_now()).await);
    }
}

async fn started(bus: &Arc<dyn EventBus>, subscriptions: impl IntoIterator<Item = Subscription>) {
    for subscription in subscriptions {
        bus.subscribe(subscription).await.expect("subscribed");
    }
    soon(bus.start()).await.expect("started");
}

/// The receipt's outcomes by name, once there are all.
async fn outcomes(receipt: &Receipt) -> Vec<(String, DeliveryOutcome)> {
    let Handled { outcomes } = soon(receipt.handled()).await.expect("handled");
    let named = outcomes.into_iter();
    named
        .map(|(name, outcome)| (name.to_string(), outcome))
        .collect()
}

/// The receipt's only outcome, once it is there.
async fn outcome(receipt: &Receipt) -> DeliveryOutcome {
    let outcomes = outcomes(receipt).await;
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes[0].1
}

/// Writes one test for each promise of an event bus, run against the given
/// [`BusHarness`](crate::event_bus::BusHarness).
///
/// `event_bus_conformance!(harness, paused)` adds the checks of what comes when, by a clock that is
/// paused; a bus whose store works on threads cannot run them. The calling crate needs `tokio` with
/// its macros and its multi-thread runtime, and for the paused clock `test-util`.
#[macro_export]
macro_rules! event_bus_conformance {
    (@$runtime:tt $harness:expr => $group:ident: $($promise:ident)+) => {
        $(
            #[tokio::test $runtime]
            async fn $promise() {
                $crate::event_bus::$group::$promise(&$harness).await;
            }
        )+
    };
    (@threads $harness:expr => $($group:ident: $($promise:ident)+;)+) => {
        $($crate::event_bus_conformance! {
            @(flavor = "multi_thread", worker_threads = 2) $harness => $group: $($promise)+
        })+
    };
    (@paused $harness:expr => $($group:ident: $($promise:ident)+;)+) => {
        $($crate::event_bus_conformance! {
            @(start_paused = true) $harness => $group: $($promise)+
        })+
    };
    ($harness:expr, paused) => {
        $crate::event_bus_conformance! { $harness }
        $crate::event_bus_conformance! { @paused $harness =>
            timing:
                f3_delays_double_up_to_the_cap
                f3_the_default_is_four_attempts
                f3_jitter_stretches_delays_apart
                f3_no_attempt_is_made_past_the_age_limit
                f3_a_long_wait_does_not_delay_a_short_one
                f2_a_time_of_its_own_is_kept_whatever_the_cap
                f1_an_attempt_fails_at_its_time_out
                d2_an_aggregate_waits_for_its_retry
                f3_a_retry_of_a_paused_subscription_waits
                p4_publish_timeout_waits_its_time
                p4_a_publisher_that_gives_up_leaves_the_line
                p3_a_single_event_does_not_wait_for_company
                l2_a_stop_ends_at_its_deadline
                l2_a_stop_waits_for_retries_that_are_due
                n2_ages_are_told
                n2_a_replay_hides_no_older_event
                l5_at_rest_nothing_wakes;
            measuring:
                n2_times_are_measured
                f6_a_dead_letter_tells_its_times;
            probing:
                f8_the_handler_is_left_alone_between_probes
                f8_only_failures_in_a_row_trip
                f8_whatever_comes_next_is_the_probe
                f8_a_skip_is_no_failure
                f8_an_event_that_always_fails_keeps_nobody_waiting
                f8_a_batch_is_one_failure;
            lingering:
                d9_a_batch_lingers_as_long_as_it_is_told
                d9_a_batch_does_not_wait_for_what_has_no_room
                d9_what_others_handle_is_no_company
                d9_a_retry_does_not_wait_for_company
                d9_a_retry_has_its_turn_among_full_batches
                l4_unsubscribing_does_not_wait_for_company;
        }
    };
    ($harness:expr) => {
        $crate::event_bus_conformance! { @threads $harness =>
            publishing:
                p2_a_receipt_tells_the_outcome_of_each_subscription
                p2_a_receipt_follows_a_delivery_through_its_retries
                p2_a_receipt_may_be_asked_late_and_several_times
                p2_a_stop_is_an_outcome_beside_the_others
                p3_a_batch_is_consecutive_and_in_order
                p3_order_holds_while_publishers_wait_for_room
                p3_a_batch_waits_for_room_as_a_whole
                p3_a_batch_larger_than_the_queue
                p3_a_refused_batch_leaves_nothing
                p9_published_events_name_their_cause_and_repeat_their_ids
                p9_a_chain_keeps_its_correlation;
            live:
                d11_a_live_event_is_handed_over_without_decoding
                d11_an_event_that_is_not_read_back_as_it_was_is_refused;
            room:
                p4_a_full_queue_gives_the_event_back_or_makes_publishers_wait
                p4_a_failing_subscription_ends_as_back_pressure
                p4_a_failing_isolated_subscription_ends_as_back_pressure
                p4_a_full_isolated_pipeline_holds_back_only_what_it_wants
                p4_a_batch_that_will_never_fit_is_told
                p4_who_waits_for_a_pipeline_that_goes_is_let_in
                p4_waiting_publishers_are_served_in_their_order
                p4_a_waiting_batch_is_not_starved_by_single_events
                p4_a_dropped_publish_has_touched_nothing
                p4_a_publish_dropped_at_any_await_is_published_once_or_not_at_all;
            inside:
                p5_a_handler_publishes_into_a_full_queue
                p5_a_handler_is_told_when_its_share_of_the_room_is_used_up
                p5_a_handler_never_waits_for_another_pipeline
                p5_a_task_that_a_handler_spawns_is_an_outside_publisher;
            delivery:
                d2_order_holds_per_aggregate_with_many_workers
                d2_order_holds_under_retries
                d2_a_retry_ends_before_events_of_other_types
                d2_deliveries_of_an_aggregate_run_one_at_a_time
                d3_priority_orders_the_first_attempts_of_an_event
                d3_a_failed_attempt_does_not_gate_lower_priorities
                d7_an_event_without_a_subscription_is_done_at_once
                d2_an_aggregate_is_a_type_and_an_id
                d2_order_holds_among_many_with_failures_by_chance;
            urgency:
                d5_of_21_starts_16_are_high_4_normal_1_low
                d5_urgency_chooses_between_aggregates_never_within
                d5_a_publish_overrides_the_urgency_of_the_type
                d5_an_aggregate_goes_to_the_end_of_its_lane
                d5_the_lowest_lane_is_not_starved_by_an_endless_flood;
            pipelines:
                d6_as_many_handlers_run_as_there_are_workers
                d4_an_isolated_subscription_has_workers_of_its_own
                d6_a_waiting_retry_holds_no_worker
                d4_a_slow_isolated_subscription_delays_nobody_else
                d4_a_failing_isolated_subscription_delays_nobody_else
                d4_a_slow_default_pipeline_delays_no_isolated_subscription
                d2_a_total_order_is_one_order_of_all_events
                d2_without_an_order_events_of_an_aggregate_run_side_by_side
                d4_a_pipeline_that_cannot_work_is_refused;
            selection:
                d10_a_filtered_event_counts_as_done
                d10_a_failing_transform_is_a_failed_attempt
                d10_a_subscription_to_all_gets_every_type
                d10_a_filter_of_another_type_is_refused;
            failure:
                f1_errors_panics_and_timeouts_stay_in_their_own_delivery
                f2_each_verdict_has_its_consequence
                f3_a_long_wait_delays_nobody_else;
            code:
                f1_a_panic_of_the_call_is_a_failed_attempt
                f1_a_panic_of_the_future_is_a_failed_attempt
                f1_a_panic_of_the_filter_is_a_failed_attempt
                f1_a_panic_of_an_isolated_filter_is_a_failed_attempt
                f1_a_panic_of_the_transform_is_a_failed_attempt
                f1_a_panic_of_an_error_is_a_failed_attempt
                f1_a_panic_of_the_futures_drop_stays_in_its_delivery
                f1_a_panic_of_an_events_drop_ends_nothing
                f1_a_panic_of_the_encoder_is_an_error
                f1_a_panic_of_the_handlers_drop_hurts_no_other
                f1_a_panic_of_a_waker_ends_nothing;
            blocking:
                f1_blocking_handlers_run_off_the_workers
                f1_a_blocking_handler_past_its_time_out_keeps_its_place
                f1_a_panic_of_a_plain_closure_is_a_failed_attempt
                f2_each_verdict_of_a_plain_closure_counts
                p9_a_blocking_handler_publishes
                p9_a_plain_closure_publishes_on_its_worker
                l4_unsubscribing_waits_for_a_blocking_handler
                l2_a_stop_leaves_a_blocking_handler_to_its_thread;
            batches:
                d9_a_batch_takes_what_waits_up_to_its_size
                d9_one_aggregate_fills_a_batch
                d9_a_failed_item_fails_those_behind_it
                d9_each_item_has_its_own_verdict
                f1_a_batch_that_fails_as_a_whole_is_tried_again
                p9_each_item_of_a_batch_publishes_for_itself
                d10_a_batch_holds_what_the_filter_lets_pass
                d9_nothing_is_handed_over_behind_what_cannot_be_looked_at
                d2_order_holds_in_batches_with_failures_by_chance
                l4_a_batch_subscription_rests_and_goes
                a_batch_that_cannot_work_is_refused;
            breaker:
                f8_a_tripped_subscription_goes_on_once_a_probe_is_handled
                l4_a_tripped_subscription_goes_and_stops
                a_breaker_that_cannot_work_is_refused;
            context:
                f1_the_context_tells_the_deadline
                f1_what_a_handler_spawned_is_told_of_its_time_out
                f1_what_a_batch_spawned_is_told_of_its_time_out
                l2_what_a_handler_spawned_is_told_of_the_stop
                f1_an_attempt_that_ended_is_not_given_up;
            pausing:
                d3_a_paused_subscription_is_passed_over_and_goes_on_in_order
                p2_a_paused_delivery_has_another_outcome_later
                p2_who_waits_is_told_that_the_delivery_is_paused
                l3_what_is_paused_keeps_nobody_waiting
                l4_pausing_returns_after_the_running_attempt
                f5_what_fails_while_it_is_paused_waits
                l4_a_handler_pauses_its_own_subscription
                p4_what_is_paused_counts
                l2_a_stop_does_not_wait_for_what_is_paused
                f5_a_dead_letter_pauses_the_subscription
                f5_a_dead_letter_pauses_whatever_the_order
                d2_order_holds_while_a_subscription_is_paused_and_resumed;
            parking:
                f5_an_aggregate_is_parked_behind_its_dead_letter
                f5_a_replay_lets_the_parked_go_on_in_order
                f5_a_discard_lets_the_parked_go_on_in_order
                f5_what_fails_again_parks_again
                p4_what_is_parked_counts
                l2_a_stop_does_not_wait_for_what_is_parked
                f5_by_default_later_events_go_on
                f5_replays_and_discards_beside_publishers_keep_the_order
                f5_an_older_letter_that_fails_again_frees_nothing
                p2_what_is_parked_no_more_is_told_as_it_is;
            dead_letters:
                f6_a_dead_letter_says_whose_it_is_and_why
                f6_a_replay_runs_beside_nothing_of_its_aggregate
                f6_a_replay_that_fails_is_a_dead_letter_again
                f6_a_replay_works_in_every_order
                f6_only_what_is_there_is_replayed_or_discarded
                a_processing_log_keeps_failed_attempts;
            grouping:
                f6_letters_are_found_and_grouped
                f6_letters_are_exported
                f6_a_group_is_replayed_or_discarded_as_one
                f6_all_are_replayed_or_none;
            life_cycle:
                l1_misuse_of_the_life_cycle_is_a_typed_error
                l3_rest_comes_after_retries_and_what_follows
                l3_there_is_rest_before_the_start_and_after_the_stop
                l4_waiting_from_inside_a_handler_is_a_typed_error
                n1_figures_add_up_at_a_quiet_moment;
            stopping:
                l2_a_stop_drains_and_reports
                l2_what_runs_at_the_deadline_is_cut_off
                l2_a_retry_past_the_deadline_is_left
                l2_stops_at_once_are_harmless
                l2_a_stop_beside_publishers_loses_nothing_accepted
                l2_who_waits_for_room_is_told
                l2_what_handlers_publish_during_the_drain_is_delivered
                l2_a_bus_that_never_ran_is_stopped;
            joining:
                l4_subscriptions_come_and_go
                l4_subscriptions_come_and_go_before_the_start
                l4_unsubscribing_returns_after_the_last_attempt
                l4_unsubscribing_ends_a_pipeline_of_its_own
                l4_who_goes_during_a_failing_attempt_leaves_nothing
                l4_coming_and_going_costs_the_others_nothing
                l4_a_handler_removes_its_own_subscription;
            guards:
                l4_a_dropped_guard_removes_its_subscription
                l4_a_guard_removes_only_its_own
                l4_a_guard_works_at_any_time
                l4_a_handler_subscribes;
            figures:
                n1_each_delivery_is_in_one_place
                n1_what_rests_is_counted_where_it_rests
                n1_a_letter_of_one_that_has_gone_is_counted_where_it_comes
                n2_figures_are_told_of_each_and_of_all
                n3_health_says_what_is_wrong;
        }
    };
}
