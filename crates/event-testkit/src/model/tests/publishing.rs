//! Traces that break what is promised of publishing.

use domain_events::{DeliveryOutcome, EventId, Isolation};

use super::script::Script;
use crate::model::{Answer, How, Observed, Told};

fn small(capacity: usize) -> Script {
    let own = Isolation {
        workers: None,
        capacity: Some(capacity),
    };
    Script::of(1)
        .with(0, |small| small.isolation = Some(own))
        .subscribed()
}

#[test]
fn p2_a_receipt_that_tells_what_did_not_happen() {
    let handled = || Script::of(1).subscribed().publish(&[0]).handled(0, 0);
    handled()
        .asked(0, &[(0, DeliveryOutcome::Skipped)])
        .is_refused_by("P2");
    handled()
        .asked(0, &[(0, DeliveryOutcome::Paused)])
        .is_refused_by("P2");
    handled().asked(0, &[]).is_refused_by("P2");
    let waiting = Script::of(1).subscribed().publish(&[0]);
    waiting
        .asked(0, &[(0, DeliveryOutcome::Stopped)])
        .is_refused_by("P2");
}

#[test]
fn p3_events_of_one_task_in_another_order() {
    Script::of(1)
        .subscribed()
        .publish(&[0, 0])
        .began(0, 1, 1)
        .is_refused_by("D2");
    // What one subscription saw of a race holds for all.
    Script::of(2)
        .subscribed()
        .publishing(How::Wait, &[0])
        .publishing(How::Wait, &[0])
        .handled(0, 1)
        .handled(0, 0)
        .began(1, 0, 1)
        .is_refused_by("D2");
}

#[test]
fn p3_an_event_between_those_of_a_batch() {
    Script::of(1)
        .subscribed()
        .publishing(How::Wait, &[0, 0])
        .publishing(How::Wait, &[0])
        .handled(0, 0)
        .began(0, 2, 1)
        .is_refused_by("P3");
}

#[test]
fn p3_a_part_of_a_dropped_batch() {
    Script::of(1)
        .subscribed()
        .publishing(How::DropAfter(1), &[0, 1])
        .answered(0, Answer::Dropped)
        .handled(0, 0)
        .quiet(2, 0, 1)
        .is_refused_by("D1");
}

#[test]
fn p3_a_batch_that_can_never_fit_is_accepted_or_one_that_fits_refused() {
    small(1)
        .publishing(How::Wait, &[0, 0])
        .accepted(0, 2)
        .is_refused_by("P3");
    small(2)
        .publishing(How::Wait, &[0, 0])
        .answered(0, Answer::TooLarge)
        .is_refused_by("P3");
}

#[test]
fn p4_more_than_the_capacity() {
    small(1)
        .publish(&[0])
        .publishing(How::Wait, &[1])
        .accepted(1, 1)
        .is_refused_by("P4");
}

#[test]
fn p4_more_than_twice_the_capacity_of_handlers() {
    small(1)
        .publish(&[0])
        .began(0, 0, 1)
        .publishing_inside(How::Wait, &[0], Some((0, 0)))
        .accepted(1, 1)
        .publishing_inside(How::Wait, &[0], Some((0, 0)))
        .accepted(2, 1)
        .is_refused_by("P4");
}

#[test]
fn p4_refused_although_there_is_room() {
    small(2)
        .publish(&[0])
        .publishing(How::Try, &[1])
        .answered(1, Answer::Full(1))
        .is_refused_by("P4");
}

#[test]
fn p4_refused_before_the_time_is_over() {
    small(1)
        .publish(&[0])
        .publishing(How::Timeout(10), &[1])
        .pass(9)
        .answered(1, Answer::Full(1))
        .is_refused_by("P4");
}

#[test]
fn p4_refused_although_it_was_to_wait_or_without_its_event() {
    small(1)
        .publish(&[0])
        .publishing(How::Wait, &[1])
        .answered(1, Answer::Full(1))
        .is_refused_by("P4");
    small(1)
        .publish(&[0])
        .publishing(How::Try, &[1])
        .answered(1, Answer::Full(0))
        .is_refused_by("P4");
}

#[test]
fn p4_refused_and_delivered() {
    small(1)
        .publish(&[0])
        .publishing(How::Try, &[1])
        .answered(1, Answer::Full(1))
        .began(0, 1, 1)
        .is_refused_by("P4");
}

#[test]
fn p5_a_handler_is_refused_although_there_is_room() {
    small(1)
        .publish(&[0])
        .began(0, 0, 1)
        .publishing_inside(How::Wait, &[0], Some((0, 0)))
        .answered(1, Answer::Full(1))
        .is_refused_by("P5");
}

#[test]
fn p9_an_event_that_names_no_cause_or_another() {
    let script = Script::of(1)
        .subscribed()
        .publish(&[0])
        .began(0, 0, 1)
        .publishing_inside(How::Wait, &[1], Some((0, 0)));
    let cause = script.told(0);
    let named = |told: Told| Observed::AttemptBegan {
        subscription: 0,
        event: 1,
        attempt: 1,
        is_replay: false,
        told,
    };
    let right = Told {
        id: EventId::derived(cause.id, "s0", 1),
        causation: Some(cause.id),
        correlation: cause.correlation,
    };
    let wrong = Told {
        causation: None,
        ..right
    };
    let wrong_id = Told {
        id: EventId::derived(cause.id, "s0", 2),
        ..right
    };
    let after = |told: Told| script.clone().note(named(told));
    after(right).is_allowed();
    after(wrong).is_refused_by("P9");
    after(wrong_id).is_refused_by("P9");
}
