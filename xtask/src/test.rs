//! `cargo xtask test`.

use crate::command::{Cargo, Failure};

/// Builds and tests all packages, their doc tests too; with `args` only the tests
/// that they select.
pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let all = ["--workspace", "--all-features"];
    if Cargo::new("nextest", ["nextest", "--version"]).works() {
        let command = ["nextest", "run"].into_iter().chain(all);
        // A filter may leave a package without tests.
        let command = command.chain(["--no-tests", "pass"]);
        Cargo::new("tests", command.chain(args.iter().map(String::as_str))).run()?;
    } else {
        eprintln!(
            "cargo-nextest is not installed: using `cargo test`, which does the same more slowly"
        );
        let command = ["test", "--all-targets"].into_iter().chain(all);
        Cargo::new("tests", command.chain(args.iter().map(String::as_str))).run()?;
    }
    if args.is_empty() {
        // nextest does not run doc tests, and `--all-targets` leaves them out.
        let command = ["test", "--doc"].into_iter().chain(all);
        Cargo::new("doc tests", command).run()?;
    }
    Ok(())
}
