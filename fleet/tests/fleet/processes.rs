//! Processes, seen from outside.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{fleet, run, text};

const PATIENCE: Duration = Duration::from_secs(30);

/// A fleet without clients.
struct Up {
    process: Child,
    url: String,
}

impl Up {
    /// Starts it with its temporary files in `folder`.
    fn start(folder: &Path, args: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fleet"))
            .args(["up", "--listen", "127.0.0.1:0"])
            .args(args)
            .env("TMPDIR", folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let url = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        Self { process, url }
    }

    /// The processes that it has started.
    fn children(&self) -> BTreeSet<u32> {
        let of = format!("PPid:\t{}", self.process.id());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id: &u32| status(*id).is_some_and(|status| status.contains(&of)))
            .collect()
    }

    fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Waits for its end.
    fn ended(&mut self) -> std::process::ExitStatus {
        until(|| self.process.try_wait().unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn signal(process: u32, name: &str) {
    let process = process.to_string();
    let sent = Command::new("kill").args([name, &process]).status();
    assert!(sent.unwrap().success());
}

/// A process that runs, and not one that only waits to be buried.
fn status(process: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    (!status.contains("State:\tZ")).then_some(status)
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not come to that");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn all_gone(processes: &BTreeSet<u32>) {
    until(|| {
        let left = processes.iter().any(|process| status(*process).is_some());
        (!left).then_some(())
    });
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn nobody_is_left_behind_by_a_killed_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path(), &[]);
    let children = up.children();
    assert_eq!(children.len(), 3);
    up.signal("-KILL");
    up.ended();
    all_gone(&children);
}

#[test]
fn whoever_is_asked_to_stop_takes_everything_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path(), &["--instances", "2"]);
    let children = up.children();
    assert_eq!(children.len(), 2);
    assert_eq!(files(folder.path()).len(), 1);
    up.signal("-TERM");
    assert!(up.ended().success());
    all_gone(&children);
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(["--sessions", "1000", "--instances", "2"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let mut run = Up {
        process,
        url: String::new(),
    };
    let children = until(|| Some(run.children()).filter(|children| children.len() == 2));
    run.signal("-INT");
    assert_eq!(run.ended().code(), Some(2));
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("interrupted"), "{said}");
    all_gone(&children);
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
}

/// Nobody has asked for its end: that is a failure, and it says of whom.
#[test]
fn a_process_that_dies_by_itself_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path(), &[]);
    let children = up.children();
    let victim = *children.first().unwrap();
    signal(victim, "-KILL");
    all_gone(&BTreeSet::from([victim]));
    // Two are left, and behind the proxy nobody misses the third.
    let load = fleet(&["load", "--url", &up.url, "--sessions", "2", "--calls", "13"]);
    assert!(load.status.success(), "{}", text(&load.stdout));
    up.signal("-TERM");
    assert_eq!(up.ended().code(), Some(2));
    all_gone(&children);
}

/// What only the instances may know is on no command line.
#[test]
fn command_lines_hold_no_address_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().join("secret-name.db");
    let up = Up::start(folder.path(), &["--url", &url.to_string_lossy()]);
    for child in up.children() {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(
            line.contains("serve") && !line.contains("secret-name"),
            "{line}"
        );
    }
    assert!(url.exists());
}

#[test]
fn a_file_that_was_named_stays() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().join("sessions.db");
    run(&["--url", &url.to_string_lossy(), "--instances", "2"]);
    assert!(url.exists());
}
