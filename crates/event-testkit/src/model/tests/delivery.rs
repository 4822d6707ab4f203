//! Traces that break what is promised of deliveries.

use domain_events::{Isolation, Ordering};

use super::script::Script;
use crate::model::{Ended, How, Kind, Observed};

#[test]
fn d1_an_event_that_is_never_delivered() {
    Script::of(1)
        .subscribed()
        .publish(&[0])
        .quiet(1, 0, 0)
        .is_refused_by("D1");
}

#[test]
fn d1_an_event_for_somebody_who_does_not_want_it() {
    let of_another_type = Script::of(1).with(0, |one| one.wants = Some(Kind::Closed));
    of_another_type
        .subscribed()
        .publish(&[0])
        .began(0, 0, 1)
        .is_refused_by("D1");
    let too_late = Script::of(1).publish(&[0]).subscribed();
    too_late.began(0, 0, 1).is_refused_by("D1");
    let filtered = Script::of(1).with(0, |one| one.passes_over = Some(0));
    filtered
        .subscribed()
        .publish(&[0])
        .began(0, 0, 1)
        .is_refused_by("D10");
}

#[test]
fn d2_the_next_event_before_the_first_is_done() {
    let published = || Script::of(1).subscribed().publish(&[0, 0]);
    published()
        .began(0, 0, 1)
        .began(0, 1, 1)
        .is_refused_by("D2");
    published()
        .began(0, 0, 1)
        .ended(0, 0, Ended::Failed)
        .began(0, 1, 1)
        .is_refused_by("D2");
    published().began(0, 1, 1).is_refused_by("D2");
    published()
        .began(0, 0, 1)
        .began(0, 0, 2)
        .is_refused_by("D2");
}

#[test]
fn d2_two_aggregates_at_once_where_the_order_is_total() {
    let total = Script::of(1).with(0, |one| one.ordering = Ordering::Total);
    total
        .subscribed()
        .publish(&[0, 1])
        .began(0, 0, 1)
        .began(0, 1, 1)
        .is_refused_by("D2");
}

#[test]
fn d3_the_lower_priority_or_the_later_registration_first() {
    let published = |priority| {
        Script::of(2)
            .with(1, |one| one.priority = priority)
            .subscribed()
            .publish(&[0])
    };
    published(1).began(0, 0, 1).is_refused_by("D3");
    published(0).began(1, 0, 1).is_refused_by("D3");
    published(-1).began(1, 0, 1).is_refused_by("D3");
}

#[test]
fn d3_two_first_attempts_of_an_event_at_once() {
    Script::of(2)
        .subscribed()
        .publish(&[0])
        .began(0, 0, 1)
        .began(1, 0, 1)
        .is_refused_by("D3");
}

#[test]
fn d6_more_handlers_than_workers() {
    Script::of(1)
        .subscribed()
        .publish(&[0, 1, 2])
        .began(0, 0, 1)
        .began(0, 1, 1)
        .began(0, 2, 1)
        .is_refused_by("D6");
    let own = Isolation {
        workers: Some(1),
        capacity: None,
    };
    Script::of(1)
        .with(0, |one| one.isolation = Some(own))
        .subscribed()
        .publish(&[0, 1])
        .began(0, 0, 1)
        .began(0, 1, 1)
        .is_refused_by("D6");
}

#[test]
fn l4_an_attempt_after_unsubscribe() {
    let gone = |script: Script| {
        script
            .note(Observed::Unsubscribing(0))
            .note(Observed::Unsubscribed(0, true))
    };
    let published = || Script::of(1).subscribed().publish(&[0]);
    gone(published()).began(0, 0, 1).is_refused_by("L4");
    gone(published().began(0, 0, 1)).is_refused_by("L4");
}

#[test]
fn d1_a_dropped_publish_that_only_one_of_two_gets() {
    Script::of(2)
        .subscribed()
        .publishing(How::DropAfter(1), &[0])
        .answered(0, crate::model::Answer::Dropped)
        .handled(0, 0)
        .quiet(1, 0, 1)
        .is_refused_by("D1");
}
