//! The reference model of a bus: plain, slow, obviously right.
//!
//! A [`Program`] is [played](play()) on a bus, everything observed is written down as a trace, and
//! the model says whether the promises allow such a trace. It decides nothing that a bus may decide
//! for itself, such as who of two racing publishers comes first: it refuses only what contradicts a
//! promise whatever the bus did unobserved.

mod attempts;
mod client;
mod delivery;
mod ended;
mod ends;
mod events;
mod handler;
mod known;
mod letters;
mod order;
mod outcomes;
mod play;
mod program;
mod publishing;
mod resting;
mod room;
mod rules;
mod strategy;
mod trace;
mod turns;

pub use play::{Pace, play};
pub use program::{Behaviour, Ending, Finish, How, Kind, Program, Raised, Step, Subscriber};
pub use rules::{Refusal, check};
pub use strategy::programs;
pub use trace::{Answer, Ended, Entry, Observed, Told};

#[cfg(test)]
mod tests;
