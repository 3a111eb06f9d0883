//! `cargo xtask mcp-conformance`: the official MCP conformance suite against
//! three instances behind each policy of the worst-case proxy.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use crate::command::{Cargo, Failure, root};

/// Pinned: the suite has no stable release of this revision yet.
const SUITE: &str = "@modelcontextprotocol/conformance@0.2.0-alpha.12";
/// The suite needs Node 22, which comes from npm as well.
const NODE: &str = "node@22";
const POLICIES: [&str; 3] = ["anti", "anti2", "round-robin"];
const REQUIREMENTS: [&str; 2] = ["2025-11-25", "2026-07-28"];
/// Scenarios of an extension that the example server does not have; the suite
/// does not score them.
const NOT_OURS: &str = "server-tasks-";
/// How long the fleet may take until it listens.
const START: Duration = Duration::from_secs(30);

/// What a run of the suite found, by status.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    success: usize,
    failure: usize,
    warning: usize,
    /// Failures among [`NOT_OURS`].
    not_ours: usize,
}

pub(crate) fn run() -> Result<(), Failure> {
    let folder = root().join("target/mcp-conformance");
    install(&folder)?;
    Cargo::new("fleet", ["build", "--release", "--package", "fleet"]).run()?;
    let mut failed = Vec::new();
    let mut table = Vec::new();
    for policy in POLICIES {
        let fleet = Fleet::start(policy, &folder.join("store"))?;
        for requirements in REQUIREMENTS {
            let out = folder.join(format!("out-{policy}-{requirements}"));
            let passed = suite(&folder, &fleet.url, requirements, &out)?;
            let counts = count(&out)?;
            // The suite passes with warnings, and so with a promise half kept.
            let passed = passed && counts.failure + counts.warning == 0;
            table.push(format!(
                "{policy:<12} {requirements}  {:>4} passed {:>3} failed {:>3} warnings {:>3} of extensions  {}",
                counts.success,
                counts.failure,
                counts.warning,
                counts.not_ours,
                if passed { "ok" } else { "NOT OK" },
            ));
            if !passed {
                failed.push(format!("{requirements} behind {policy}"));
            }
        }
    }
    println!("{}", table.join("\n"));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "scenarios fail or warn: {}; see {}",
            failed.join(", "),
            folder.display()
        )))
    }
}

fn install(folder: &Path) -> Result<(), Failure> {
    let modules = folder.join("node_modules");
    if modules.join("node/bin/node").exists() && modules.join("@modelcontextprotocol").exists() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(Failure::io("cannot make a folder for the suite"))?;
    eprintln!("==> installing {SUITE} and {NODE} with npm");
    let status = Command::new("npm")
        .args([
            "install",
            "--no-save",
            "--no-audit",
            "--no-fund",
            NODE,
            SUITE,
        ])
        .arg("--prefix")
        .arg(folder)
        .stdout(Stdio::null())
        .status()
        .map_err(Failure::io("cannot run npm: install Node.js first"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new("npm could not install the suite"))
    }
}

/// Runs the suite; whether its required scenarios pass.
fn suite(folder: &Path, url: &str, requirements: &str, out: &Path) -> Result<bool, Failure> {
    if out.exists() {
        fs::remove_dir_all(out).map_err(Failure::io("cannot clear the former results"))?;
    }
    let modules = folder.join("node_modules");
    eprintln!("==> suite: {requirements} at {url}");
    let log = folder.join(format!("{requirements}.log"));
    let log = fs::File::create(log).map_err(Failure::io("cannot write the suite's log"))?;
    let status = Command::new(modules.join(".bin/node"))
        .arg(modules.join("@modelcontextprotocol/conformance/dist/index.js"))
        .args(["server", "--url", url, "--requirements", requirements, "-o"])
        .arg(out)
        .stdout(log)
        .status()
        .map_err(Failure::io("cannot run the suite"))?;
    Ok(status.success())
}

/// Counts the checks that the suite has written, a file per scenario: its exit
/// code says nothing of warnings.
fn count(out: &Path) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let scenarios = fs::read_dir(out).map_err(Failure::io("the suite wrote no results"))?;
    for scenario in scenarios {
        let scenario = scenario.map_err(Failure::io("cannot read the suite's results"))?;
        let checks: PathBuf = scenario.path().join("checks.json");
        let Ok(text) = fs::read_to_string(&checks) else {
            continue;
        };
        let name = scenario.file_name();
        if name.to_string_lossy().starts_with(NOT_OURS) {
            counts.not_ours += of(&text, "FAILURE");
            continue;
        }
        counts.add(&text);
        for status in ["FAILURE", "WARNING"] {
            if text.contains(&format!("\"{status}\"")) {
                eprintln!("    {status} in {}", scenario.path().display());
            }
        }
    }
    Ok(counts)
}

impl Counts {
    fn add(&mut self, checks: &str) {
        self.success += of(checks, "SUCCESS");
        self.failure += of(checks, "FAILURE");
        self.warning += of(checks, "WARNING");
    }
}

fn of(checks: &str, status: &str) -> usize {
    checks.matches(&format!("\"status\": \"{status}\"")).count()
}

/// A running fleet; dropping it ends it.
struct Fleet {
    process: Child,
    url: String,
}

impl Fleet {
    /// Starts one that keeps its file in `store`: it is ended by force, and
    /// would leave a temporary folder behind.
    fn start(policy: &str, store: &Path) -> Result<Self, Failure> {
        if store.exists() {
            fs::remove_dir_all(store).map_err(Failure::io("cannot clear the former store"))?;
        }
        fs::create_dir_all(store).map_err(Failure::io("cannot make a folder for the store"))?;
        let mut process = Command::new(root().join("target/release/fleet"))
            .args(["up", "--listen", "127.0.0.1:0", "--policy", policy, "--url"])
            .arg(store.join("sessions.db"))
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Failure::io("cannot start the fleet"))?;
        let stdout = process.stdout.take();
        let mut fleet = Self {
            process,
            url: String::new(),
        };
        let (said, says) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout?).lines();
            // Nobody listens any more once the first line was taken.
            let _ = said.send(lines.next()?.ok()?);
            // The pipe stays open, or the fleet's next line would end it.
            lines.for_each(drop);
            Some(())
        });
        let line = says.recv_timeout(START).unwrap_or_default();
        match line.strip_prefix("listening on ") {
            Some(url) => {
                url.clone_into(&mut fleet.url);
                Ok(fleet)
            }
            None => Err(Failure::new(format!("the fleet does not listen: {line:?}"))),
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_counted_by_status() {
        let mut counts = Counts::default();
        counts.add(r#"[{"id": "a", "status": "SUCCESS"}, {"id": "b", "status": "WARNING"}]"#);
        counts.add(r#"[{"id": "c", "status": "SUCCESS"}, {"id": "d", "status": "INFO"}]"#);
        let expected = Counts {
            success: 2,
            failure: 0,
            warning: 1,
            not_ours: 0,
        };
        assert_eq!(counts, expected);
    }
}
