//! Tasks of this repository; `cargo xtask help` lists them.

mod bench;
mod command;
mod mcp_conformance;
mod servers;
mod test;

use std::process::ExitCode;

use self::command::{Cargo, Failure};

const HELP: &str = "\
Usage: cargo xtask <task>

Tasks:
  test [-- ARGS]  Build and test all packages, doc tests too. With ARGS for the test
                  runner, such as a filter, only the tests that they select
  ci              Format, lints and docs with warnings denied, then test
  bench ADAPTER   The gates of an adapter (memory, sqlite, redis, postgres), as ratios
                  to the raw engine
  mcp-conformance The official MCP conformance suite against three instances behind
                  each policy of the proxy; needs npm
";

#[derive(Debug, PartialEq, Eq)]
enum Task {
    Help,
    Test(Vec<String>),
    Ci,
    Bench(Vec<String>),
    McpConformance,
}

fn main() -> ExitCode {
    let task = match parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(problem) => {
            eprint!("xtask: {problem}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let done = match task {
        Task::Help => {
            print!("{HELP}");
            Ok(())
        }
        Task::Test(args) => test::run(&args),
        Task::Ci => ci(),
        Task::Bench(args) => bench::run(&args),
        Task::McpConformance => mcp_conformance::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Task, String> {
    let Some(task) = args.next() else {
        return Err("which task?".into());
    };
    let rest: Vec<String> = args.collect();
    match (task.as_str(), rest.split_first()) {
        ("help" | "-h" | "--help", _) => Ok(Task::Help),
        ("ci", None) => Ok(Task::Ci),
        ("mcp-conformance", None) => Ok(Task::McpConformance),
        ("bench", Some(_)) => Ok(Task::Bench(rest)),
        ("bench", None) => Err("bench: of which adapter?".into()),
        ("test", None) => Ok(Task::Test(Vec::new())),
        ("test", Some((dashes, args))) if dashes == "--" => Ok(Task::Test(args.to_vec())),
        ("ci" | "test" | "mcp-conformance", Some((extra, _))) => {
            Err(format!("{task} does not know `{extra}`"))
        }
        _ => Err(format!("there is no task `{task}`")),
    }
}

fn ci() -> Result<(), Failure> {
    Cargo::new("format", ["fmt", "--all", "--check"])
        .hint("`cargo fmt --all` puts it right")
        .run()?;
    Cargo::new(
        "lints",
        [
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ],
    )
    .run()?;
    Cargo::new(
        "docs",
        ["doc", "--workspace", "--all-features", "--no-deps"],
    )
    .env("RUSTDOCFLAGS", "-D warnings")
    .run()?;
    test::run(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Task, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn tasks_are_understood() {
        assert_eq!(parsed(&["ci"]), Ok(Task::Ci));
        assert_eq!(parsed(&["test"]), Ok(Task::Test(vec![])));
        assert_eq!(
            parsed(&["test", "--", "memory", "-x"]),
            Ok(Task::Test(vec!["memory".into(), "-x".into()]))
        );
        assert_eq!(parsed(&["--help"]), Ok(Task::Help));
    }

    #[test]
    fn anything_else_is_named_in_the_error() {
        assert!(parsed(&[]).is_err());
        assert!(parsed(&["bake"]).unwrap_err().contains("bake"));
        assert!(parsed(&["ci", "--fast"]).unwrap_err().contains("--fast"));
        assert!(parsed(&["test", "memory"]).unwrap_err().contains("memory"));
    }
}
