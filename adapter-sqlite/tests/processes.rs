//! Real processes on one file: this program starts itself as its children, and
//! kills some of them.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use common::{session, shared, store};
use futures::StreamExt as _;
use mcp_adapter_core::{
    Adapter, Answer, ClientRequestAdapter, Delivery, EndReason, EventId, Limits, NewClientRequest,
    OutcomeKind, Position, RpcId, SessionAdapter, SessionId, SessionRecord, StreamId, TailEvent,
    TailFrom,
};
use mcp_adapter_sqlite::{SqliteAdapter, SqliteOptions, SqliteStorage};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);
const ROLE: &str = "MCP_TEST_ROLE";
const FILE: &str = "MCP_TEST_FILE";
const SESSION: &str = "MCP_TEST_SESSION";

fn limits() -> Limits {
    Limits::builder()
        .lease(Duration::from_millis(1500))
        .heartbeat(Duration::from_millis(250))
        .catch_up(Duration::from_millis(200))
        .stream_events(1 << 20)
        .stream_bytes(1 << 30)
        .session_bytes(1 << 30)
        .principal_bytes(1 << 34)
        .build()
        .unwrap()
}

/// One line to the parent.
fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "> {line}").unwrap();
    out.flush().unwrap();
}

struct Process {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(role: &str, file: &Path, session: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(FILE, file)
            .env(SESSION, session)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    /// The next line that the child says; `None` when it has ended.
    async fn hear(&mut self) -> Option<String> {
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await;
            let line = line.expect("a child says something in time").unwrap()?;
            // The test harness says something, too, on the same line at first.
            if let Some((_, said)) = line.split_once("> ") {
                return Some(said.to_owned());
            }
        }
    }

    async fn expect(&mut self, word: &str) -> String {
        let said = self.hear().await.expect("the child has not ended");
        let rest = said.strip_prefix(word);
        rest.unwrap_or_else(|| panic!("{word} was expected, not {said}"))
            .trim()
            .to_owned()
    }

    async fn go(&mut self) {
        self.input.write_all(b"go\n").await.unwrap();
        self.input.flush().await.unwrap();
    }

    async fn end(mut self) {
        drop(self.input);
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }

    async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Waits for a line from the parent; `false` at its end.
async fn told() -> bool {
    let mut line = String::new();
    let mut input = BufReader::new(tokio::io::stdin());
    input.read_line(&mut line).await.unwrap() > 0
}

/// What a child does; without a parent, nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let options = SqliteOptions::new(std::env::var_os(FILE).unwrap()).limits(limits());
    let session = std::env::var(SESSION).unwrap();
    match role.as_str() {
        "opener" => opener(options).await,
        "writer" => writer(options, &session).await,
        "reader" => reader(options, &session).await,
        "caller" => caller(options, &session).await,
        "asker" => asker(options, &session).await,
        "answerer" => answerer(options, &session).await,
        "hog" => hog(options).await,
        other => panic!("no role {other}"),
    }
}

async fn opener(options: SqliteOptions) {
    say("ready");
    told().await;
    match SqliteAdapter::open(options).await {
        Ok(adapter) => {
            let id = SessionId::generate();
            let created = SessionAdapter::create(&adapter, &id, SessionRecord::default()).await;
            say(format!("opened {:?}", created.map(drop)));
            told().await;
        }
        Err(error) => say(format!("failed {error:?}")),
    }
}

/// Eight processes open a file that is not there, at once.
#[tokio::test]
async fn a_fresh_file_is_opened_by_eight_processes_at_once() {
    for _ in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mcp");
        let mut processes: Vec<_> = (0..8)
            .map(|_| Process::start("opener", &file, ""))
            .collect();
        for process in &mut processes {
            process.expect("ready").await;
        }
        for process in &mut processes {
            process.go().await;
        }
        for process in &mut processes {
            assert_eq!(process.expect("opened").await, "Ok(())");
        }
        for process in processes {
            process.end().await;
        }
        let conn = rusqlite::Connection::open(&file).unwrap();
        let count = |sql: &str| -> i64 { conn.query_row(sql, [], |row| row.get(0)).unwrap() };
        assert_eq!(count("SELECT count(*) FROM mcp_file"), 1);
        assert_eq!(count("SELECT count(*) FROM mcp_session"), 8);
        assert_eq!(count("SELECT sessions FROM mcp_total"), 8);
    }
}

async fn writer(options: SqliteOptions, session: &str) {
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id: SessionId = session.parse().unwrap();
    let me = std::process::id();
    say("ready");
    told().await;
    for number in 0_u32.. {
        let event = Bytes::from(format!("{me}.{number}"));
        match adapter.append(&id, event).await {
            Ok(event) => say(format!("acked {me}.{number} {event}")),
            Err(error) => return say(format!("failed {error:?}")),
        }
    }
}

async fn reader(options: SqliteOptions, session: &str) {
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id: SessionId = session.parse().unwrap();
    let start = EventId::new(StreamId::standalone(), Position::START);
    let mut tail = adapter.tail(&id, TailFrom::After(start)).await.unwrap();
    say("ready");
    while let Some(event) = tail.next().await {
        match event {
            TailEvent::Event { id, data, .. } => {
                say(format!("event {} {id}", String::from_utf8_lossy(&data)));
            }
            TailEvent::Begins { .. } => {}
            TailEvent::End(why) => return say(format!("end {why:?}")),
            other => say(format!("other {other:?}")),
        }
    }
}

/// Writers in three processes, one of which is killed, and a reader in a
/// fourth: all that was acknowledged is read, once, in one order.
#[tokio::test]
async fn what_three_processes_write_a_fourth_reads_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp");
    let options = SqliteOptions::new(&file).limits(limits());
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id = SessionId::generate();
    SessionAdapter::create(&adapter, &id, SessionRecord::default())
        .await
        .unwrap();
    let mut reader = Process::start("reader", &file, id.as_str());
    reader.expect("ready").await;
    let reading = tokio::spawn(async move {
        let mut read = Vec::new();
        loop {
            let said = reader.hear().await.expect("a tail ends with a reason");
            match said.split_once(' ') {
                Some(("event", event)) => read.push(event.to_owned()),
                _ => return (read, said),
            }
        }
    });
    let mut writers: Vec<_> = (0..3)
        .map(|_| Process::start("writer", &file, id.as_str()))
        .collect();
    for writer in &mut writers {
        writer.expect("ready").await;
    }
    for writer in &mut writers {
        writer.go().await;
    }
    // Each is killed in the middle of what it does, after so many answers.
    let writing = writers
        .into_iter()
        .zip([150, 300, 450])
        .map(|(mut writer, count)| {
            tokio::spawn(async move {
                let mut acked = Vec::new();
                while acked.len() < count {
                    acked.push(writer.expect("acked").await);
                }
                writer.kill().await;
                while let Some(said) = writer.hear().await {
                    // A line may have been cut short.
                    if let Some(said) = said
                        .strip_prefix("acked ")
                        .filter(|said| said.contains(' '))
                    {
                        acked.push(said.to_owned());
                    }
                }
                acked
            })
        });
    let mut acked = Vec::new();
    for writing in writing.collect::<Vec<_>>() {
        let mut lines = writing.await.unwrap();
        // The last line of a killed process may end in the middle of an id.
        let last = lines.pop();
        drop(last);
        acked.extend(lines);
    }
    // A sentinel, after which the reader has seen everything.
    let last = adapter
        .append(&id, Bytes::from_static(b"last"))
        .await
        .unwrap();
    adapter.delete(&id, None).await.unwrap();
    let (read, end) = reading.await.unwrap();
    assert_eq!(end, format!("end {:?}", EndReason::SessionEnded));
    let set: BTreeSet<_> = read.iter().cloned().collect();
    assert_eq!(set.len(), read.len(), "nothing comes twice");
    // The reader may learn of the end before it has read the last ones.
    if read.last() == Some(&format!("last {last}")) {
        for event in &acked {
            assert!(set.contains(event), "{event} was acknowledged");
        }
    }
    let mut next = BTreeMap::new();
    let mut former: Option<Position> = None;
    for event in &read {
        let (text, place) = event.split_once(' ').unwrap();
        let position = place.parse::<EventId>().unwrap().position;
        assert!(
            former.is_none_or(|former| position.seq == former.seq + 1),
            "{event}"
        );
        former = Some(position);
        if let Some((writer, number)) = text.split_once('.') {
            let expected = next.entry(writer.to_owned()).or_insert(0);
            assert_eq!(number.parse::<u32>().unwrap(), *expected, "{event}");
            *expected += 1;
        }
    }
}

/// Opens a call, writes, and lives until it is killed.
async fn caller(options: SqliteOptions, session: &str) {
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id: SessionId = session.parse().unwrap();
    let call = RpcId::Number(1);
    let writer = adapter
        .enter(&id, None, Some(&call))
        .await
        .unwrap()
        .writer
        .unwrap();
    for number in 0..20 {
        writer
            .append(Bytes::from(format!("{number}")))
            .await
            .unwrap();
    }
    say(format!("stream {}", writer.stream().as_str()));
    told().await;
}

#[tokio::test]
async fn the_call_of_a_killed_process_ends_for_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp");
    let options = SqliteOptions::new(&file).limits(limits());
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id = SessionId::generate();
    SessionAdapter::create(&adapter, &id, SessionRecord::default())
        .await
        .unwrap();
    let mut caller = Process::start("caller", &file, id.as_str());
    let stream: StreamId = caller.expect("stream").await.parse().unwrap();
    let start = EventId::new(stream, Position::START);
    let mut tail = adapter.tail(&id, TailFrom::After(start)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 20 {
        match timeout(PATIENCE, tail.next()).await.unwrap() {
            Some(TailEvent::Event { data, .. }) => seen.push(data),
            other => panic!("{other:?}"),
        }
    }
    caller.kill().await;
    let killed = Instant::now();
    match timeout(PATIENCE, tail.next()).await.unwrap() {
        Some(TailEvent::End(EndReason::OwnerLost)) => {}
        other => panic!("{other:?}"),
    }
    assert!(killed.elapsed() >= limits().lease() - limits().heartbeat() * 2);
    adapter.close().await.unwrap();
}

async fn asker(options: SqliteOptions, session: &str) {
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id: SessionId = session.parse().unwrap();
    for number in 0..50 {
        let asked = NewClientRequest::new(RpcId::Number(number));
        let waiting = ClientRequestAdapter::create(&adapter, &id, asked)
            .await
            .unwrap();
        say(format!("asked {number}"));
        let outcome = waiting.await;
        assert_eq!(outcome.kind, OutcomeKind::Answered);
        assert_eq!(outcome.payload, Bytes::from(format!("answer {number}")));
    }
    say("answered");
}

async fn answerer(options: SqliteOptions, session: &str) {
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id: SessionId = session.parse().unwrap();
    say("ready");
    for number in 0..50 {
        told().await;
        let answer = Answer::Result(Bytes::from(format!("answer {number}")));
        let delivery = adapter.answer(&id, &RpcId::Number(number), answer).await;
        say(format!("delivery {:?}", delivery.unwrap()));
    }
}

/// One process asks, two others answer at once: one of them is told that it won.
#[tokio::test]
async fn an_answer_of_another_process_arrives_and_one_of_two_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp");
    let options = SqliteOptions::new(&file).limits(limits());
    let adapter = SqliteAdapter::open(options).await.unwrap();
    let id = SessionId::generate();
    SessionAdapter::create(&adapter, &id, SessionRecord::default())
        .await
        .unwrap();
    let start = |role| Process::start(role, &file, id.as_str());
    let mut answerers = [start("answerer"), start("answerer")];
    for answerer in &mut answerers {
        answerer.expect("ready").await;
    }
    let mut asker = start("asker");
    for number in 0..50 {
        assert_eq!(asker.expect("asked").await, number.to_string());
        for answerer in &mut answerers {
            answerer.go().await;
        }
        let mut delivered = 0;
        for answerer in &mut answerers {
            let delivery = answerer.expect("delivery").await;
            if delivery == format!("{:?}", Delivery::Delivered) {
                delivered += 1;
            } else {
                let ended = Delivery::AlreadyEnded(OutcomeKind::Answered);
                assert_eq!(delivery, format!("{ended:?}"));
            }
        }
        assert_eq!(delivered, 1);
    }
    asker.expect("answered").await;
    asker.end().await;
    for answerer in answerers {
        answerer.end().await;
    }
}

/// Writes without a pause.
async fn hog(options: SqliteOptions) {
    let storage = SqliteStorage::new(options).unwrap();
    let key = session(&storage).await;
    say("ready");
    told().await;
    let started = Instant::now();
    let (mut longest, mut count) = (Duration::ZERO, 0_u64);
    while started.elapsed() < Duration::from_secs(3) {
        count += 1;
        let asked = Instant::now();
        let batch: Vec<_> = (0..64)
            .map(|n| shared(key, 1, count * 64 + n, &[b'x'; 256]))
            .collect();
        let stored = mcp_adapter_core::storage::Storage::append(&storage, &batch).await;
        stored.unwrap();
        longest = longest.max(asked.elapsed());
    }
    say(format!("wrote {count} {}", longest.as_micros()));
}

/// Nobody starves: four processes write without a pause.
#[tokio::test]
async fn four_processes_that_write_without_a_pause_all_get_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp");
    let mut hogs: Vec<_> = (0..4).map(|_| Process::start("hog", &file, "")).collect();
    for hog in &mut hogs {
        hog.expect("ready").await;
    }
    for hog in &mut hogs {
        hog.go().await;
    }
    let mut shares = Vec::new();
    for hog in &mut hogs {
        let wrote = hog.expect("wrote").await;
        let (count, longest) = wrote.split_once(' ').unwrap();
        let longest = Duration::from_micros(longest.parse().unwrap());
        println!("{count} batches of 64, the longest wait {longest:?}");
        shares.push(count.parse::<u64>().unwrap());
        // Far below the deadline of a step, on a machine that others use, too.
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    }
    let all: u64 = shares.iter().sum();
    assert!(shares.iter().all(|share| share * 20 > all), "{shares:?}");
    for hog in hogs {
        hog.end().await;
    }
}

#[tokio::test]
async fn a_process_that_is_killed_in_a_commit_leaves_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp");
    let storage = SqliteStorage::new(SqliteOptions::new(&file).limits(limits())).unwrap();
    let key = session(&storage).await;
    for round in 0..5 {
        let mut hog = Process::start("hog", &file, "");
        hog.expect("ready").await;
        hog.go().await;
        tokio::time::sleep(Duration::from_millis(30 + 17 * round)).await;
        hog.kill().await;
        // The lock is free, and nothing of the half done is seen.
        store(&storage, &shared(key, 1, round + 1, b"x"))
            .await
            .unwrap();
    }
    let conn = rusqlite::Connection::open(&file).unwrap();
    let integrity: String = conn
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(integrity, "ok");
}
