//! The contract as it is by default.

use std::process::ExitCode;

mod suite;

fn main() -> ExitCode {
    suite::run("sqlite", |options| options)
}
