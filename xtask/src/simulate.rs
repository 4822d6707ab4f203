//! `cargo xtask simulate`: a thousand random programs, crashed at every call of their store.

use anyhow::Result;

use crate::step;

/// Plays them, in a build of their own: they take a fifth of the time where the compiler has worked a
/// little.
pub(crate) fn run() -> Result<()> {
    let test = [
        "test",
        "--package",
        "event-bus-core",
        "--test",
        "it",
        "--target-dir",
        "target/simulation",
        "--",
        "--ignored",
        "--nocapture",
        "a_thousand_programs",
    ];
    let mut command = step::cargo(test);
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    command.env("CARGO_PROFILE_TEST_OPT_LEVEL", "1");
    step::run(&mut command)
}
