//! What keeps the promises is allowed.

use domain_events::{DeliveryOutcome, FailurePolicy, Isolation, StopReport};

use super::script::Script;
use crate::model::{Answer, Ended, How, Observed};

#[test]
fn a_plain_run() {
    Script::of(1)
        .subscribed()
        .publish(&[0, 1])
        .handled(0, 1)
        .handled(0, 0)
        .waited()
        .quiet(2, 0, 2)
        .asked(0, &[(0, DeliveryOutcome::Handled)])
        .note(Observed::Stopping)
        .stopped(StopReport::default())
        .is_allowed();
}

#[test]
fn a_retry_while_other_aggregates_go_on() {
    Script::of(1)
        .subscribed()
        .publish(&[0, 1])
        .began(0, 0, 1)
        .ended(0, 0, Ended::Failed)
        .handled(0, 1)
        .pass(12)
        .began(0, 0, 2)
        .ended(0, 0, Ended::Handled)
        .waited()
        .is_allowed();
}

#[test]
fn racing_publishers_in_either_order() {
    let racing = || {
        Script::of(1)
            .subscribed()
            .publishing(How::Wait, &[0])
            .publishing(How::Wait, &[0])
    };
    racing().handled(0, 0).handled(0, 1).is_allowed();
    racing().handled(0, 1).handled(0, 0).is_allowed();
}

#[test]
fn a_blocked_subscription_is_passed_over() {
    Script::of(2)
        .with(0, |first| first.priority = 1)
        .subscribed()
        .publish(&[0, 0])
        .began(0, 0, 1)
        .ended(0, 0, Ended::Failed)
        .handled(1, 0)
        .handled(1, 1)
        .pass(11)
        .began(0, 0, 2)
        .ended(0, 0, Ended::Handled)
        .handled(0, 1)
        .is_allowed();
}

#[test]
fn a_parked_aggregate_goes_on_after_its_replay() {
    Script::of(1)
        .with(0, |parks| parks.policy = FailurePolicy::ParkAggregate)
        .subscribed()
        .publish(&[0, 0])
        .dies(0, 0)
        .waited()
        .asked(1, &[(0, DeliveryOutcome::Parked)])
        .replay(0, 0)
        .attempt(0, 0, 1, true)
        .ended(0, 0, Ended::Handled)
        .handled(0, 1)
        .is_allowed();
}

/// In the moment of the time-out of the last attempt, the stop may cut it off, or it is over.
#[test]
fn a_stop_in_the_moment_of_a_time_out_leaves_a_dead_letter_or_none() {
    let ended = || {
        Script::of(1)
            .with(0, |once| once.attempts = 1)
            .subscribed()
            .publish(&[0])
            .began(0, 0, 1)
            .note(Observed::Stopping)
            .pass(50)
            .ended(0, 0, Ended::Dropped)
    };
    for (listed, cut_off) in [(vec![], 1), (vec![0], 0)] {
        let report = StopReport {
            abandoned: cut_off,
            drained: 1 - cut_off,
            cut_off,
            ..StopReport::default()
        };
        ended()
            .note(Observed::Letters(0, listed))
            .stopped(report)
            .is_allowed();
    }
    ended()
        .note(Observed::Letters(0, vec![1]))
        .is_refused_by("F6");
}

#[test]
fn a_full_pipeline_refuses_and_a_stop_abandons() {
    let own = Isolation {
        workers: Some(1),
        capacity: Some(1),
    };
    Script::of(1)
        .with(0, |small| small.isolation = Some(own))
        .subscribed()
        .publish(&[0])
        .publishing(How::Try, &[1])
        .answered(1, Answer::Full(1))
        .began(0, 0, 1)
        .note(Observed::Stopping)
        .pass(1)
        .ended(0, 0, Ended::Dropped)
        .stopped(StopReport {
            abandoned: 1,
            cut_off: 1,
            ..StopReport::default()
        })
        .asked(0, &[(0, DeliveryOutcome::Stopped)])
        .is_allowed();
}
