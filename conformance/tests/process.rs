//! Storages in child processes: this program starts itself as its children.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::ExitCode;

#[cfg(unix)]
mod children;

#[cfg(unix)]
fn main() -> ExitCode {
    children::main()
}

#[cfg(not(unix))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}
