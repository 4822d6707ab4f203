//! Traces written by hand: what breaks a promise is refused with its number.

mod allowed;
mod delivery;
mod failure;
mod life_cycle;
mod publishing;
mod script;
