//! What every store has to do: one fact a function, named after the promise it checks.
//!
//! [`event_store_conformance!`](crate::event_store_conformance) makes a test of each.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use domain_events::{
    AggregateRef, Append, AppendError, Appended, DeliveryStore, DomainEvent, EventEnvelope,
    EventStore, NewEvent, Position, Version,
};
use serde::{Deserialize, Serialize};

mod appending;
pub use appending::*;

mod identity;
pub use identity::*;

mod identity_model;
pub use identity_model::*;

mod reading;
pub use reading::*;

mod queries;
pub use queries::*;

mod figures;
pub use figures::*;

mod concurrency;
pub use concurrency::*;

mod deliveries;
pub use deliveries::*;

mod settling;
pub use settling::*;

mod transactions;
pub use transactions::*;

mod pruning;
pub use pruning::*;

/// A store of events and of deliveries.
pub trait Store: EventStore + DeliveryStore {}

impl<S: EventStore + DeliveryStore + ?Sized> Store for S {}

/// Makes a test of every fact in this module, in a module `$name`.
///
/// `$fresh` is an expression that makes an empty store, `Arc<S>`, with whatever must outlive it:
/// a pair. The crate needs tokio with `rt` and `macros`.
///
/// ```ignore
/// event_testkit::event_store_conformance!(in_memory, (Arc::new(MyStore::new()), ()));
/// ```
#[macro_export]
macro_rules! event_store_conformance {
    ($name:ident, $fresh:expr) => {
        $crate::event_store_conformance! {
            @facts $name, $fresh,
            p1_an_appended_event_is_read_as_it_was_written
            p1_any_payload_and_any_unicode_is_kept
            p2_positions_and_versions_count_from_one
            p3_a_batch_is_consecutive
            p3_answers_come_in_the_order_of_the_log
            p3_an_empty_batch_appends_nothing
            p3_a_refused_batch_leaves_no_trace_and_no_gap
            p6_expected_versions_are_checked_in_order_within_a_batch
            p6_a_conflict_names_expected_and_actual_version
            p6_the_same_event_again_is_not_appended_again
            p6_the_id_is_checked_before_the_version
            p6_an_id_with_other_content_is_taken
            p6_numbers_of_any_size_tell_contents_apart
            p6_a_batch_that_is_partly_there_is_refused
            p6_a_batch_that_is_wholly_there_returns_its_places
            p6_an_event_twice_in_a_batch_is_appended_once
            p6_two_contents_under_one_id_in_a_batch_are_refused
            p6_an_event_with_an_older_id_than_others_is_found_again
            p6_an_event_is_found_again_after_a_refused_neighbour
            p6_an_event_is_found_again_within_one_group
            p6_events_in_any_order_of_ids_are_found_again
            an_event_that_cannot_be_encoded_is_refused
            the_log_is_read_in_pages
            a_history_is_read_by_version
            an_event_is_found_by_its_id
            an_event_of_another_type_is_not_decoded
            events_are_read_by_type
            events_are_read_by_correlation
            events_are_read_by_the_time_of_recording
            a_history_is_streamed_by_version
            the_log_is_streamed_after_a_position
            a_stream_reads_what_is_appended_meanwhile
            a_stream_ends_where_the_log_does
            a_history_is_folded_into_a_state
            p1_odd_payloads_are_read_in_any_way
            p1_a_payload_over_the_limit_is_refused_with_both_numbers
            statistics_of_an_empty_store_are_zero
            statistics_add_up
            what_is_unfinished_is_read_and_counted
            p6_of_writers_on_one_aggregate_one_wins_each_version
            p6_writers_on_different_aggregates_do_not_meet
            d8_a_new_subscription_starts_where_it_says
            d8_a_registration_is_answered_in_the_order_of_the_log
            d8_a_known_subscription_goes_on
            r3_progress_is_kept_with_what_is_unfinished
            r3_progress_that_makes_no_sense_is_refused
            f4_a_waiting_delivery_is_kept_until_it_is_finished
            f4_an_unclean_end_counts_for_what_its_own_run_has_started
            f5_a_blocked_aggregate_is_kept_until_it_is_unblocked
            f6_a_dead_letter_is_kept_and_waits_no_longer
            f5_a_pause_is_kept
            f5_a_parked_aggregate_is_kept
            f6_a_letter_that_is_replayed_waits
            f6_a_discarded_letter_is_gone
            f6_letters_are_listed_in_pages
            f6_letters_are_grouped_and_found_by_event
            d8_a_former_name_becomes_the_new_one
            d8_every_name_is_told_with_its_lag
            d8_a_subscription_is_reset_and_forgotten
            a_processing_log_keeps_the_latest
            f6_dead_letters_are_listed_oldest_first
            a_change_of_an_unknown_subscription_fails_alone
            a_clean_end_is_told_from_an_unclean_one
            r7_what_is_over_is_taken_out_of_the_progress
            r7_what_is_over_is_not_made_again
            r7_what_is_over_is_taken_out_of_its_rows
            r7_a_panic_is_a_failure
            r7_progress_that_makes_no_sense_is_refused
            r7_an_unknown_subscription_has_no_deliveries
            r8_a_pruned_log_goes_on_where_it_was
            r8_the_log_is_pruned_up_to_what_is_to_be_kept
            r8_what_is_not_finished_is_kept
            r8_the_event_of_a_dead_letter_is_kept
            r8_the_event_of_a_delivery_that_was_started_is_kept
            r8_what_was_appended_before_is_pruned
            r8_a_start_before_what_is_kept_is_refused
            r8_who_starts_far_ahead_holds_nothing
            r8_an_event_that_was_pruned_is_appended_again
        }
    };
    (@facts $name:ident, $fresh:expr, $($fact:ident)*) => {
        mod $name {
            #[allow(unused_imports, reason = "what the expression names")]
            use super::*;
            $(
                #[tokio::test]
                async fn $fact() {
                    let (store, _outlives) = $fresh;
                    $crate::event_store::$fact(&*store).await;
                }
            )*
        }
    };
}

/// An event to be stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    /// The id of the aggregate.
    pub notebook: String,
    /// Anything.
    pub text: String,
}

impl DomainEvent for Noted {
    const EVENT_TYPE: &'static str = "testkit.noted";
    const AGGREGATE_TYPE: &'static str = "notebook";
    const SCHEMA_VERSION: u32 = 3;

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.notebook)
    }
}

/// Another event of the same aggregates.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Torn {
    notebook: String,
}

impl DomainEvent for Torn {
    const EVENT_TYPE: &'static str = "testkit.torn";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.notebook)
    }
}

/// An event with a number that only 128 bits hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Numbered {
    number: u128,
}

impl DomainEvent for Numbered {
    const EVENT_TYPE: &'static str = "testkit.numbered";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed("a")
    }
}

/// An event that cannot be written as JSON.
#[derive(Clone, Debug, Deserialize)]
struct Unspeakable {
    panics: bool,
}

impl Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        assert!(!self.panics, "an event's own panic");
        Err(serde::ser::Error::custom("no words"))
    }
}

impl DomainEvent for Unspeakable {
    const EVENT_TYPE: &'static str = "testkit.unspeakable";
    const AGGREGATE_TYPE: &'static str = "notebook";

    fn aggregate_id(&self) -> Cow<'_, str> {
        Cow::Borrowed("a")
    }
}

/// An event of the aggregate `notebook`.
pub fn noted(notebook: &str, text: &str) -> NewEvent {
    NewEvent::new(Noted {
        notebook: notebook.to_owned(),
        text: text.to_owned(),
    })
}

/// The aggregate of [`noted`] events.
pub fn notebook(id: &str) -> AggregateRef {
    AggregateRef::new(Noted::AGGREGATE_TYPE, id)
}

/// `events` as a batch.
pub fn batch(events: impl IntoIterator<Item = NewEvent>) -> Vec<Append> {
    let append = |event: NewEvent| Append {
        expected: event.expected(),
        event: event.seal(),
    };
    events.into_iter().map(append).collect()
}

/// Appends `events` to `store` and returns their positions.
///
/// # Panics
/// When they are not appended.
pub async fn append_all(
    store: &(impl EventStore + ?Sized),
    events: impl IntoIterator<Item = NewEvent>,
) -> Vec<u64> {
    let appended = store.append(batch(events)).await.expect("appended");
    appended.iter().map(position).collect()
}

fn position(appended: &Appended) -> u64 {
    appended.event.position().map_or(0, Position::get)
}

fn version(envelope: &EventEnvelope) -> u64 {
    envelope.version().map_or(0, Version::get)
}

fn text(envelope: EventEnvelope) -> String {
    Arc::new(envelope)
        .typed::<Noted>()
        .expect("typed")
        .text
        .clone()
}

async fn append_one(store: &impl EventStore, event: NewEvent) -> Result<Appended, AppendError> {
    store
        .append(batch([event]))
        .await
        .map(|mut all| all.remove(0))
}

/// Every position of the log, with the text of its event.
async fn log(store: &impl EventStore) -> Vec<(u64, String)> {
    let log = store.read_log(Position::ZERO, 10_000).await.expect("read");
    log.into_iter()
        .map(|event| (event.position().map_or(0, Position::get), text(event)))
        .collect()
}

/// Each event of a page is what it is when it is read alone.
async fn assert_each_is_itself(store: &impl EventStore, page: &[EventEnvelope]) {
    let content = |event: &EventEnvelope| {
        let payload = event.payload().expect("encoded").to_vec();
        let (aggregate, metadata) = (event.aggregate().clone(), event.metadata().clone());
        (payload, aggregate, metadata, event.recorded())
    };
    for event in page {
        let alone = store.get(event.id()).await.expect("read").expect("found");
        assert_eq!(content(event), content(&alone));
    }
}

const FIRST: Version = Version::FIRST;
const LAST: Version = Version::new(u64::MAX);

async fn read_history(
    store: &impl EventStore,
    id: &str,
    versions: RangeInclusive<Version>,
    limit: usize,
) -> Vec<EventEnvelope> {
    let aggregate = notebook(id);
    store
        .read_aggregate(&aggregate, versions, limit)
        .await
        .expect("read")
}

/// How long an answer may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);
