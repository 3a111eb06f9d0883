//! `cargo xtask bench`.

use crate::command::{Cargo, Failure};

/// Measures an adapter's gates in a release build.
pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let command = ["run", "--release", "--quiet", "--package", "bench", "--"];
    let command = command.into_iter().chain(args.iter().map(String::as_str));
    Cargo::new("gates", command)
        .hint("a gate is a ratio within one run; still, a busy machine disturbs it")
        .run()
}
