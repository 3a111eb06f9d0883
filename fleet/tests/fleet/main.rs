//! The program as people run it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[cfg(target_os = "linux")]
mod processes;

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

fn keeps_its_promises(backend: &str, policy: &str) {
    let summary = run(&["--backend", backend, "--policy", policy]);
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
    assert_eq!(summary["backend"], backend);
    assert_eq!(number(&summary, "instances"), 3);
}

#[test]
fn services_keep_their_promises_behind_round_robin() {
    keeps_its_promises("memory", "round-robin");
}

#[test]
fn services_keep_their_promises_behind_anti() {
    keeps_its_promises("memory", "anti");
}

#[test]
fn services_keep_their_promises_behind_anti2() {
    keeps_its_promises("memory", "anti2");
}

#[test]
fn processes_keep_their_promises_behind_round_robin() {
    keeps_its_promises("sqlite", "round-robin");
}

#[test]
fn processes_keep_their_promises_behind_anti() {
    keeps_its_promises("sqlite", "anti");
}

#[test]
fn processes_keep_their_promises_behind_anti2() {
    keeps_its_promises("sqlite", "anti2");
}

/// Both without and with kills, on a server.
#[cfg(any(feature = "redis", feature = "postgres"))]
fn keeps_its_promises_on_a_server(backend: &str, url: &str) {
    for args in [&["--policy", "anti"][..], &["--policy", "anti2", "--kill"]] {
        let place = ["--backend", backend, "--url", url];
        let summary = run(&[&place, args].concat());
        assert_eq!(summary["backend"], backend);
        assert!(
            number(&summary, "cross_instance_elicitations") > 0,
            "{summary}"
        );
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn processes_keep_their_promises_on_redis() {
    let url = mcp_adapter_conformance::server::redis().await.unwrap();
    let done = tokio::task::spawn_blocking(move || keeps_its_promises_on_a_server("redis", &url));
    done.await.unwrap();
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn processes_keep_their_promises_on_postgres() {
    let url = mcp_adapter_conformance::server::postgres().await.unwrap();
    let done =
        tokio::task::spawn_blocking(move || keeps_its_promises_on_a_server("postgres", &url));
    done.await.unwrap();
}

fn killed(backend: &str) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.html");
    let summary = run(&[
        "--backend",
        backend,
        "--kill",
        "--policy",
        "round-robin",
        "--report",
        &report.to_string_lossy(),
    ]);
    let page = std::fs::read_to_string(&report).unwrap();
    // So short a load may be over before the last kill.
    let kills = number(&summary, "kills");
    assert!(kills > 0, "{summary}");
    // One mark for each in each of the three plots.
    let marks = page.matches("class=\"kill\"").count();
    assert_eq!(marks as u64, 3 * kills);
    assert!(page.contains("<svg") && page.ends_with("</html>"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}

#[test]
fn killed_services_cost_their_own_calls_and_no_others() {
    killed("memory");
}

#[test]
fn killed_processes_cost_their_own_calls_and_no_others() {
    killed("sqlite");
}

#[cfg(target_os = "linux")]
#[test]
fn a_soak_ends_flat_and_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.html");
    let output = fleet(&[
        "--soak",
        "8s",
        "--session-ttl",
        "1s",
        "--sessions",
        "4",
        "--calls",
        "13",
        "--json",
        "--report",
        &report.to_string_lossy(),
    ]);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    let summary: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(number(&summary, "deletes"), 0);
    assert!(number(&summary, "calls") > 4 * 13, "{summary}");
    let soak = summary["soak"].as_array().unwrap();
    // Sessions, the file and its log, memory and descriptors of three processes.
    assert_eq!(soak.len(), 3 + 2 * 3, "{summary}");
    for series in soak {
        assert_eq!(series["flat"], true, "{series}");
    }
    assert!(
        soak.iter()
            .any(|series| { series["name"] == "stored sessions" && number(series, "middle") > 0 })
    );
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("Size of the store") && page.contains("instance-3 memory"));
}

#[test]
fn what_cannot_start_says_why() {
    for (args, wanted) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["run", "--backend", "memory", "--url", "x"], "--url"),
        (&["run", "--backend", "paper"], "sqlite"),
        (&["serve", "--backend", "sqlite"], "--url"),
        (&["--soak", "1s"], "at least 60 s"),
        // It is a process of its own that cannot open this.
        (
            &["--url", "/no/such/folder/sessions.db"],
            "/no/such/folder/sessions.db",
        ),
        (
            &["--url", "/no/such/folder/sessions.db"],
            "instance-1 did not start",
        ),
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
        &["serve", "--backend", "memory", "--listen", &addr][..],
        &["up", "--listen", &addr],
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
        .args(["serve", "--backend", "memory", "--listen", "127.0.0.1:0"])
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

#[test]
fn a_backend_that_is_not_compiled_in_says_what_to_run() {
    for (backend, compiled_in) in [
        ("redis", cfg!(feature = "redis")),
        ("postgres", cfg!(feature = "postgres")),
    ] {
        if compiled_in {
            continue;
        }
        let output = fleet(&["--backend", backend]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let wanted = format!("cargo run --release -p fleet --features {backend} --");
        assert!(stderr.contains(&wanted), "{stderr}");
    }
}
