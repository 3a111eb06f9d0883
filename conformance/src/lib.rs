#![doc = include_str!("../README.md")]

pub mod faults;
#[cfg(feature = "process")]
pub mod process;
#[cfg(unix)]
pub mod server;

mod case;
mod cases;
mod clause;
mod fleet;
mod instance;
mod on;
mod options;
mod preflight;
mod restart;
mod runner;
mod storage;
mod suite;
mod table;
mod wait;

pub use case::{Absent, CASES, Case, STORAGE_CASES};
pub use clause::Clause;
pub use fleet::BoxError;
pub use options::Options;
pub use restart::Restart;
pub use runner::Report;
pub use suite::{Suite, certify, run, run_storage};
pub use table::clause_table;
