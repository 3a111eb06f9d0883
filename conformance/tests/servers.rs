//! The server programs: started, stopped, killed, restarted and gone.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use mcp_adapter_conformance::{
    faults::{Program, Signal},
    server::{Postgres, Redis},
};

/// The answer of Redis to one command, if there is one in time.
fn redis(addr: SocketAddr, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(2)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).ok().filter(|read| *read > 0)?;
    Some(String::from_utf8_lossy(&answer[..read]).trim().to_owned())
}

/// `R` where a server takes a client in.
fn postgres(addr: SocketAddr) -> Option<u8> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(2)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .ok()?;
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let mut packet = (u32::try_from(parameters.len()).unwrap() + 8)
        .to_be_bytes()
        .to_vec();
    packet.extend(196_608_u32.to_be_bytes());
    packet.extend(parameters);
    stream.write_all(&packet).ok()?;
    let mut answer = [0];
    stream.read_exact(&mut answer).ok().map(|()| answer[0])
}

fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(15);
    while !probe() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// What is true of every server: it can be frozen, and leaves nothing behind.
fn freezes_and_goes(program: &mut Program, answers: impl Fn(SocketAddr) -> bool) -> (u32, PathBuf) {
    let addr = program.addr();
    assert!(![6379, 5432].contains(&addr.port()), "a port of its own");
    assert!(answers(addr), "it is ready when it is started");
    program.signal(Signal::Stop).unwrap();
    eventually("it stands still", || !answers(addr));
    program.signal(Signal::Continue).unwrap();
    eventually("it goes on", || answers(addr));
    (program.pid(), program.folder().to_owned())
}

#[test]
fn redis_is_frozen_killed_and_restarted_and_leaves_nothing() {
    let mut server = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).unwrap();
    let addr = server.program().addr();
    assert_eq!(server.url(), format!("redis://{addr}"));
    let pong = |addr| redis(addr, "PING").as_deref() == Some("+PONG");
    let (pid, folder) = freezes_and_goes(server.program(), pong);
    assert_eq!(redis(addr, "SET key value").as_deref(), Some("+OK"));
    server.program().end(true).unwrap();
    assert!(!is_running(pid));
    assert!(!pong(addr));
    assert!(folder.exists(), "its folder stays for the next start");
    server.program().restart().unwrap();
    assert_ne!(server.program().pid(), pid);
    let value = redis(addr, "GET key");
    assert!(
        value.is_some_and(|value| value.ends_with("value")),
        "its data is there"
    );
    let pid = server.program().pid();
    drop(server);
    assert!(!is_running(pid));
    assert!(!folder.exists());
}

#[test]
fn postgres_is_frozen_restarted_and_leaves_nothing() {
    let mut server = Postgres::start(&["log_connections=on"]).unwrap();
    let ready = |addr| postgres(addr) == Some(b'R');
    let (_, folder) = freezes_and_goes(server.program(), |addr| {
        // Its postmaster accepts; one that stands still answers nobody.
        ready(addr)
    });
    let addr = server.program().addr();
    server.program().end(true).unwrap();
    assert!(!ready(addr));
    server.program().restart().unwrap();
    assert!(ready(addr));
    server.program().end(false).unwrap();
    assert!(!ready(addr));
    server.program().restart().unwrap();
    let pid = server.program().pid();
    drop(server);
    assert!(!is_running(pid));
    assert!(!folder.exists());
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let started = Instant::now();
    let error = Redis::start(&["--no-such-option", "1"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("no-such-option"), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "it is noticed at once"
    );
}

/// What the test below starts, kills, and finds cleaned up.
#[test]
#[ignore = "the child of another test"]
fn child_that_is_killed() {
    let mut server = Redis::start(&[]).unwrap();
    let program = server.program();
    println!("server {} {}", program.pid(), program.folder().display());
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    let _ = receiver.recv_timeout(Duration::from_secs(60));
}

#[test]
fn a_test_that_is_killed_leaves_no_server_behind() {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("server ")?.1.to_owned()))
        .unwrap();
    let (pid, folder) = line.split_once(' ').unwrap();
    let (pid, folder) = (pid.parse().unwrap(), PathBuf::from(folder));
    assert!(is_running(pid) && folder.exists());
    Signal::Kill.send(child.id()).unwrap();
    child.wait().unwrap();
    eventually("the server ends", || !is_running(pid));
    eventually("its folder is removed", || !folder.exists());
}

#[tokio::test]
async fn a_shared_server_is_started_once_and_ends_on_demand() {
    use mcp_adapter_conformance::server;
    if std::env::var_os("MCP_ADAPTER_TEST_REDIS_URL").is_some() {
        // Then it is that one, which is not ours to end.
        assert!(server::redis().await.is_ok());
        return;
    }
    let (one, two) = tokio::join!(server::redis(), server::redis());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one, two);
    let addr: SocketAddr = one.trim_start_matches("redis://").parse().unwrap();
    assert_eq!(redis(addr, "PING").as_deref(), Some("+PONG"));
    server::stop();
    assert_eq!(redis(addr, "PING"), None);
}
