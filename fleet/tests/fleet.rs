//! The program as people run it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn fleet(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a small fleet and returns its JSON object.
fn run(args: &[&str]) -> Value {
    let size = ["run", "--sessions", "8", "--calls", "26", "--json"];
    let output = fleet(&[&size, args].concat());
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn number(summary: &Value, field: &str) -> u64 {
    summary[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field} in {summary}"))
}

fn keeps_its_promises(policy: &str) {
    let summary = run(&["--policy", policy]);
    for field in [
        "lost",
        "duplicated",
        "wrong",
        "hung",
        "errors",
        "expected_errors",
        "kills",
    ] {
        assert_eq!(number(&summary, field), 0, "{field} in {summary}");
    }
    for field in [
        "cross_instance_elicitations",
        "cross_instance_resumes",
        "cancels",
    ] {
        assert!(number(&summary, field) > 0, "{field} in {summary}");
    }
    assert_eq!(number(&summary, "calls"), 8 * 26);
    assert_eq!(number(&summary, "deletes"), 8);
    assert_eq!(summary["policy"], policy);
    assert_eq!(summary["backend"], "memory");
    assert_eq!(number(&summary, "instances"), 3);
}

#[test]
fn round_robin_keeps_its_promises() {
    keeps_its_promises("round-robin");
}

#[test]
fn anti_keeps_its_promises() {
    keeps_its_promises("anti");
}

#[test]
fn anti2_keeps_its_promises() {
    keeps_its_promises("anti2");
}

#[test]
fn killed_instances_cost_their_own_calls_and_no_others() {
    let report = std::env::temp_dir().join(format!("fleet-test-{}.html", std::process::id()));
    let summary = run(&[
        "--kill",
        "--policy",
        "round-robin",
        "--report",
        &report.to_string_lossy(),
    ]);
    let page = std::fs::read_to_string(&report).unwrap();
    std::fs::remove_file(&report).unwrap();
    // So short a load may be over before the last kill.
    assert!(number(&summary, "kills") > 0, "{summary}");
    assert!(page.contains("<svg") && page.ends_with("</html>"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}

#[test]
fn what_cannot_start_says_why() {
    for (args, wanted) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["run", "--url", "redis://localhost"], "--url"),
        (&["load", "--url", "nowhere"], "nowhere"),
        (&["load", "--url", "http://127.0.0.1:1/mcp"], "127.0.0.1:1"),
        (&["load", "--url", "ftp://127.0.0.1/mcp"], "ftp"),
    ] {
        let output = fleet(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(
            stderr.contains(wanted) && !stderr.contains("panicked"),
            "{stderr}"
        );
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for args in [
        &["serve", "--listen", &addr][..],
        &["proxy", "--listen", &addr, "--upstream", "127.0.0.1:1"],
    ] {
        let output = fleet(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains(&addr) && stderr.contains("in use"),
            "{stderr}"
        );
    }
}

#[cfg(unix)]
#[test]
fn an_instance_says_when_it_is_ready_and_drains_on_sigterm() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(["serve", "--listen", "127.0.0.1:0", "--name", "alone"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap();
    let load = fleet(&[
        "load",
        "--url",
        url,
        "--sessions",
        "2",
        "--calls",
        "13",
        "--json",
    ]);
    let killed = Command::new("kill")
        .args(["-TERM", &server.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let status = server.wait().unwrap();
    let mut stderr = String::new();
    server
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert!(load.status.success(), "{}", text(&load.stdout));
    assert!(status.success(), "{status}: {stderr}");
}
