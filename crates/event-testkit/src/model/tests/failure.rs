//! Traces that break what is promised of failures.

use domain_events::FailurePolicy;

use super::script::Script;
use crate::model::{Ended, Observed};

fn published() -> Script {
    Script::of(1).subscribed().publish(&[0, 0])
}

fn with_policy(policy: FailurePolicy) -> Script {
    let script = Script::of(1).with(0, |one| one.policy = policy);
    script.subscribed().publish(&[0, 0, 1])
}

#[test]
fn f1_an_attempt_cut_off_before_its_time_or_never() {
    let running = || published().began(0, 0, 1);
    running()
        .pass(49)
        .ended(0, 0, Ended::Dropped)
        .is_refused_by("F1");
    running()
        .pass(60)
        .note(Observed::WaitingIdle(0))
        .is_refused_by("F1");
}

#[test]
fn f2_an_attempt_after_the_end() {
    for how in [Ended::Handled, Ended::Skipped] {
        published()
            .began(0, 0, 1)
            .ended(0, 0, how)
            .began(0, 0, 2)
            .is_refused_by("F2");
    }
    published().dies(0, 0).began(0, 0, 2).is_refused_by("F3");
}

#[test]
fn f3_attempts_that_are_not_counted_one_by_one() {
    let failed = || published().began(0, 0, 1).ended(0, 0, Ended::Failed);
    failed().pass(12).began(0, 0, 1).is_refused_by("F3");
    failed().pass(12).began(0, 0, 3).is_refused_by("F3");
    published().began(0, 0, 2).is_refused_by("F3");
}

#[test]
fn f3_one_attempt_more_than_the_limit() {
    let tried = |script: Script, attempt| {
        let began = script.pass(16).began(0, 0, attempt);
        began.ended(0, 0, Ended::Failed)
    };
    let thrice = tried(tried(tried(published(), 1), 2), 3);
    thrice.pass(16).began(0, 0, 4).is_refused_by("F3");
}

#[test]
fn f3_a_retry_before_it_is_due_or_long_after() {
    let failed = || published().began(0, 0, 1).ended(0, 0, Ended::Failed);
    failed().pass(9).began(0, 0, 2).is_refused_by("F3");
    failed().pass(19).began(0, 0, 2).is_refused_by("F3");
    let asked = |units| {
        let began = published().began(0, 0, 1);
        began.ended(0, 0, Ended::RetryAfter(units))
    };
    asked(40).pass(15).began(0, 0, 2).is_refused_by("F3");
    asked(0).pass(10).began(0, 0, 2).is_refused_by("F3");
}

#[test]
fn f5_what_is_parked_goes_on() {
    with_policy(FailurePolicy::ParkAggregate)
        .dies(0, 0)
        .began(0, 1, 1)
        .is_refused_by("F5");
    with_policy(FailurePolicy::ParkAggregate)
        .dies(0, 0)
        .replay(0, 0)
        .began(0, 1, 1)
        .is_refused_by("D2");
}

#[test]
fn f5_what_is_paused_goes_on() {
    with_policy(FailurePolicy::PauseSubscription)
        .dies(0, 0)
        .began(0, 2, 1)
        .is_refused_by("F5");
    let paused = || {
        with_policy(FailurePolicy::Skip)
            .note(Observed::Pausing(0, 0))
            .note(Observed::Paused(0, 0, true))
    };
    paused().began(0, 0, 1).is_refused_by("F5");
    paused()
        .note(Observed::Resuming(1, 0))
        .handled(0, 0)
        .is_allowed();
}

#[test]
fn f5_a_pause_that_does_not_wait_for_its_attempt() {
    published()
        .began(0, 0, 1)
        .note(Observed::Pausing(0, 0))
        .note(Observed::Paused(0, 0, true))
        .is_refused_by("L4");
}

#[test]
fn f6_a_replay_that_is_none() {
    let dead = || published().dies(0, 0);
    dead()
        .replay(0, 0)
        .attempt(0, 0, 1, false)
        .is_refused_by("F6");
    dead()
        .replay(0, 0)
        .attempt(0, 0, 2, true)
        .is_refused_by("F3");
    published().attempt(0, 0, 1, true).is_refused_by("F6");
    published().handled(0, 0).replay(0, 0).is_refused_by("F6");
}

#[test]
fn f6_a_replay_beside_another_delivery_of_its_aggregate() {
    published()
        .dies(0, 0)
        .began(0, 1, 1)
        .replay(0, 0)
        .attempt(0, 0, 1, true)
        .is_refused_by("F6");
}

#[test]
fn f6_letters_that_are_not_listed_or_not_found() {
    let dead = || published().dies(0, 0);
    dead()
        .note(Observed::Letters(0, vec![]))
        .is_refused_by("F6");
    dead()
        .note(Observed::Letters(0, vec![1]))
        .is_refused_by("F6");
    dead()
        .note(Observed::Discarding(0, 0, 0))
        .note(Observed::Discarded(0, false))
        .is_refused_by("F6");
    dead()
        .note(Observed::Discarding(0, 0, 0))
        .note(Observed::Discarded(0, true))
        .attempt(0, 0, 1, true)
        .is_refused_by("F6");
}
