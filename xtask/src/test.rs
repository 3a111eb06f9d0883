//! `cargo xtask test`.

use crate::{
    command::{Cargo, Failure},
    servers,
};

const ALL: [&str; 2] = ["--workspace", "--all-features"];
/// Suites whose cases share a server: nextest would start one for each case.
const SUITES: [&str; 4] = ["--test", "conformance*", "--test", "storage*"];
const NOT_SUITES: [&str; 2] = ["-E", "not binary(/^(conformance|storage)/)"];
/// Cases of a suite mostly wait.
const THREADS: [&str; 2] = ["--test-threads", "6"];

/// Builds and tests all packages, their doc tests too; with `args` only the tests
/// that they select.
pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    servers::provide()?;
    let selected = args.iter().map(String::as_str);
    let nextest = Cargo::new("nextest", ["nextest", "--version"]).works();
    if !nextest {
        eprintln!(
            "cargo-nextest is not installed: using `cargo test`, which does the same more slowly"
        );
        let command = ["test", "--all-targets"].into_iter().chain(ALL);
        Cargo::new("tests", command.chain(selected)).run()?;
    } else if args.is_empty() {
        let command = ["nextest", "run"].into_iter().chain(ALL);
        Cargo::new("tests", command.chain(NOT_SUITES)).run()?;
        let command = ["test", "--no-fail-fast"].into_iter().chain(ALL);
        let command = command.chain(SUITES).chain(["--"]).chain(THREADS);
        Cargo::new("suites", command).run()?;
    } else {
        let command = ["nextest", "run"].into_iter().chain(ALL);
        // A filter may leave a package without tests.
        let command = command.chain(["--no-tests", "pass"]);
        Cargo::new("tests", command.chain(selected)).run()?;
    }
    if args.is_empty() {
        // nextest does not run doc tests, and `--all-targets` leaves them out.
        let command = ["test", "--doc"].into_iter().chain(ALL);
        Cargo::new("doc tests", command).run()?;
    }
    Ok(())
}
