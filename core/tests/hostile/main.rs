//! A seeded simulation of a fleet over a hostile backend.

mod adversary;
mod check;
mod fleet;
mod history;
mod link;
mod load;
mod reference;
mod rng;
mod run;
mod seeds;
mod wire;
