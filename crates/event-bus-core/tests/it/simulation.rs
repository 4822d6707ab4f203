//! Random programs on a bus whose process dies, at every call of its store: no promise is broken by it.
//!
//! `SIMULATION_SEED` is the first seed, and `SIMULATION_PROGRAMS` says how many are played. `cargo xtask
//! simulate` plays a thousand, built so that they take a fifth of the time.

mod books;
mod clients;
mod events;
mod handlers;
mod known;
mod program;
mod runs;
mod stage;

use std::{str::FromStr, sync::Arc};

use event_testkit::memory_store::{Crash, MemoryStore};

use program::Program;
use runs::{Act, play};
use stage::Stage;

/// How many programs are played, in each of two halves.
const PROGRAMS: u64 = 14;

/// What was played.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    programs: u64,
    runs: u64,
    crashes: u64,
}

/// The runs of one program: with which crashes the first of them end.
type Course = [Option<Crash>];

/// Plays programs without a crash, and with one at every call of the store.
fn crash_everywhere(seeds: std::ops::Range<u64>) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let calls = through(seed, &[None], &mut tally);
        for call in 1..=calls {
            // One of them is followed by another crash, while the bus recovers.
            let [once, twice] = match call % 2 {
                0 => [Crash::Before(call), Crash::After(call)],
                _ => [Crash::After(call), Crash::Before(call)],
            };
            through(seed, &[Some(once)], &mut tally);
            let place = 1 + (seed + 7 * call) % 40;
            let second = [Crash::Before(place), Crash::After(place)][call as usize / 2 % 2];
            through(seed, &[Some(twice), Some(second)], &mut tally);
        }
        tally.programs += 1;
    }
    tally
}

/// Plays one program through. Returns how many calls its first run has made.
fn through(seed: u64, course: &Course, tally: &mut Tally) -> u64 {
    let stage = Stage::of(Program::of(seed), false);
    let calls = runs(&stage, course, tally);
    if !stage.known().faults.is_empty() {
        fail(seed, course, &stage.known().faults);
    }
    calls
}

/// Plays the runs of a program. Returns how many calls the first one has made.
fn runs(stage: &Arc<Stage>, course: &Course, tally: &mut Tally) -> u64 {
    let mut before: Option<Arc<MemoryStore>> = None;
    let mut calls = Vec::new();
    let crashes = course.iter().copied().chain([None]);
    let acts = [Act::First].into_iter().chain([Act::Recovery; 3]);
    for (act, crash) in acts.zip(crashes) {
        let store = play(stage, before.as_deref(), act, crash);
        tally.runs += 1;
        tally.crashes += u64::from(store.has_crashed());
        calls.push(store.calls());
        before = Some(store);
        if !stage.known().faults.is_empty() {
            return 0;
        }
    }
    if course == [None] {
        let quiet = play(stage, before.as_deref(), Act::Quiet, None);
        before = Some(quiet);
    }
    // Who waits for answers holds the bus, which holds the store.
    if let Some(last) = before {
        runs::forget(&last);
    }
    calls[0]
}

/// Plays once more, and tells everything.
fn fail(seed: u64, course: &Course, faults: &[String]) -> ! {
    let stage = Stage::of(Program::of(seed), true);
    runs(&stage, course, &mut Tally::default());
    let known = stage.known();
    let trace = known.trace.as_deref().unwrap_or_default().join("\n");
    let program = format!("{:#?}", stage.program);
    panic!(
        "SIMULATION_SEED={seed}, {course:?}\n{program}\n{trace}\n\nSIMULATION_SEED={seed}, {course:?}: {faults:#?}"
    );
}

fn given<T: FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

#[expect(clippy::print_stderr, reason = "what was played is there to be read")]
fn say(what: &str) {
    eprintln!("{what}");
}

fn crash_everywhere_from(first: u64, programs: u64) {
    let first = given("SIMULATION_SEED").unwrap_or(first);
    let programs = given("SIMULATION_PROGRAMS").unwrap_or(programs);
    let tally = crash_everywhere(first..first + programs);
    say(&format!(
        "SIMULATION_SEED={first}, SIMULATION_PROGRAMS={programs}: {tally:?}"
    ));
}

#[test]
fn a_crash_at_any_call_of_the_store_breaks_no_promise_first_half() {
    crash_everywhere_from(0, PROGRAMS);
}

#[test]
fn a_crash_at_any_call_of_the_store_breaks_no_promise_second_half() {
    crash_everywhere_from(PROGRAMS, PROGRAMS);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_programs_first_half() {
    crash_everywhere_from(0, 500);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_programs_second_half() {
    crash_everywhere_from(500, 500);
}

#[test]
fn a_program_takes_the_same_course_each_time() {
    let course = [Some(Crash::After(20))];
    for seed in 0..20 {
        let [one, other] = [(); 2].map(|()| {
            let stage = Stage::of(Program::of(seed), true);
            runs(&stage, &course, &mut Tally::default());
            let trace = stage.known().trace.take().unwrap_or_default();
            // What the store was told holds ids and times.
            let seen = trace.into_iter().filter(|line| !line.contains("store: "));
            seen.collect::<Vec<_>>()
        });
        assert_eq!(one, other, "SIMULATION_SEED={seed}");
    }
}
