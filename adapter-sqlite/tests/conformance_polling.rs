//! The contract where the system has no inotify.

use std::process::ExitCode;

mod suite;

fn main() -> ExitCode {
    suite::run("sqlite_polling", |options| options.poll_only())
}
