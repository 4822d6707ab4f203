//! Traces that break what is promised of waiting, stopping and figures.

use domain_events::{StopReport, SubscriptionStatistics};

use super::script::Script;
use crate::model::{Ended, How, Observed};

fn published() -> Script {
    Script::of(1).subscribed().publish(&[0])
}

fn stopping() -> Script {
    published().began(0, 0, 1).note(Observed::Stopping).pass(1)
}

#[test]
fn l2_an_attempt_after_the_stop() {
    published()
        .note(Observed::Stopping)
        .stopped(StopReport {
            abandoned: 1,
            ..StopReport::default()
        })
        .began(0, 0, 1)
        .is_refused_by("L2");
}

#[test]
fn l2_an_attempt_that_outlives_the_stop() {
    stopping()
        .stopped(StopReport::default())
        .is_refused_by("L2");
}

#[test]
fn l2_a_publish_that_a_stopping_bus_accepts() {
    stopping()
        .publishing(How::Wait, &[1])
        .accepted(1, 1)
        .is_refused_by("L2");
}

#[test]
fn l2_figures_of_the_report_that_are_wrong() {
    let report = StopReport::default();
    let drained = || stopping().ended(0, 0, Ended::Handled);
    drained().stopped(report.clone()).is_refused_by("L2");
    let one_abandoned = StopReport {
        abandoned: 1,
        drained: 1,
        ..report.clone()
    };
    drained().stopped(one_abandoned).is_refused_by("L2");
    let cut_off = || stopping().ended(0, 0, Ended::Dropped);
    cut_off().stopped(report.clone()).is_refused_by("L2");
    published()
        .note(Observed::Stopping)
        .stopped(report)
        .is_refused_by("L2");
}

#[test]
fn l3_idle_before_everything_is_done() {
    published().waited().is_refused_by("L3");
    published()
        .began(0, 0, 1)
        .ended(0, 0, Ended::Failed)
        .waited()
        .is_refused_by("L3");
}

#[test]
fn l3_what_never_comes() {
    published()
        .note(Observed::Stuck("wait_idle"))
        .is_refused_by("L3");
}

#[test]
fn n1_figures_that_do_not_add_up() {
    let done = || published().handled(0, 0);
    done().quiet(2, 0, 1).is_refused_by("N1");
    done().quiet(1, 1, 1).is_refused_by("N1");
    done().quiet(1, 0, 0).is_refused_by("N1");
    done().quiet(1, 0, 2).is_refused_by("N1");
    // One is handled, and no other one is anywhere.
    let right = SubscriptionStatistics {
        matching: 1,
        handled: 1,
        ..SubscriptionStatistics::default()
    };
    let wrong: [fn(&mut SubscriptionStatistics); 5] = [
        |it| it.matching = 2,
        |it| (it.matching, it.pending) = (2, 1),
        |it| (it.matching, it.running) = (2, 1),
        |it| (it.matching, it.waiting) = (2, 1),
        |it| (it.matching, it.abandoned) = (2, 1),
    ];
    done().quiet_with(1, 0, right.clone()).is_allowed();
    for change in wrong {
        let mut figures = right.clone();
        change(&mut figures);
        done().quiet_with(1, 0, figures).is_refused_by("N1");
    }
}
