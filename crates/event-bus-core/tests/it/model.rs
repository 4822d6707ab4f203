//! Random programs on the volatile bus: each trace must be one that the model allows.
//!
//! `MODEL_SEED` repeats a run, and `MODEL_CASES` says how many programs each test plays.

use std::{fmt::Write, str::FromStr, sync::Arc};

use domain_events::EventBus;
use event_bus_core::{BusConfig, InMemoryEventBus};
use event_testkit::model::{Entry, Pace, Program, check, play, programs};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tokio::runtime::{Builder, Runtime};

/// Plays random programs, and shrinks the first whose trace the model refuses.
fn hold_against_the_model(cases: u32, pace: Pace, runtime: impl Fn() -> Runtime) {
    let seed = given("MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    say(&format!("MODEL_SEED={seed}"));
    let result = runner(seed, cases).run(&programs(), |program| {
        // The delays of retries are stretched at random, and are to be the same ones every time.
        fastrand::seed(0);
        let trace = runtime().block_on(play(bus(&program), &program, pace));
        check(&program, pace, &trace)
            .map_err(|refusal| TestCaseError::fail(format!("{refusal}\n{}", told(&trace))))
    });
    if let Err(failure) = result {
        panic!("with MODEL_SEED={seed}: {failure}");
    }
}

fn given<T: FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

#[expect(clippy::print_stderr, reason = "a seed is there to be read")]
fn say(what: &str) {
    eprintln!("{what}");
}

fn runner(seed: u64, cases: u32) -> TestRunner {
    let config = Config {
        cases: given("MODEL_CASES").unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 10_000,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn bus(program: &Program) -> Arc<dyn EventBus> {
    let config = BusConfig {
        capacity: program.capacity,
        workers: program.workers,
        ..BusConfig::default()
    };
    Arc::new(InMemoryEventBus::new(config).expect("a configuration that can work"))
}

fn told(trace: &[Entry]) -> String {
    let mut lines = String::new();
    for (step, Entry { at, what }) in trace.iter().enumerate() {
        let _ = writeln!(lines, "{step:4} {at:>10.1?} {what:?}");
    }
    lines
}

fn with_a_paused_clock() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true);
    builder.build().expect("a runtime")
}

fn on_threads() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().worker_threads(3);
    builder.build().expect("a runtime")
}

/// Tests that each play a part of the programs, so that they run side by side.
macro_rules! parts {
    ($($part:ident)+) => {
        $(
            #[test]
            fn $part() {
                hold_against_the_model(2_500, Pace::Paused, with_a_paused_clock);
            }
        )+
    };
}

parts! {
    random_programs_keep_every_promise_first_part
    random_programs_keep_every_promise_second_part
    random_programs_keep_every_promise_third_part
    random_programs_keep_every_promise_fourth_part
}

#[test]
fn random_programs_on_threads_keep_every_promise_but_times() {
    hold_against_the_model(150, Pace::Real, on_threads);
}
