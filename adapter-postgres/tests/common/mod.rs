//! A server of one's own, calls that run on it while something goes wrong, and
//! what their history must look like.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_conformance::{
    faults::{Link, Proxy, Signal},
    server::Postgres,
};
use mcp_adapter_core::{
    Answer, ClientRequestAdapter, Delivery, EndReason, EventId, Health, Limits, NewClientRequest,
    OutcomeKind, Position, Role, RpcId, SessionAdapter, SessionId, SessionRecord, TailEvent,
    TailFrom,
};
use mcp_adapter_postgres::{
    PostgresAdapter, PostgresOptions, Wake,
    sqlx::{self, AssertSqlSafe, Connection, Executor, PgConnection},
};
use tokio::time::{Instant, sleep, timeout};

/// What is noticed at all is noticed within this time (clause F2).
pub(crate) const NOTICED: Duration = Duration::from_secs(7);
const PATIENCE: Duration = Duration::from_secs(40);

pub(crate) fn limits() -> Limits {
    Limits::builder()
        .heartbeat(Duration::from_millis(500))
        .build()
        .unwrap()
}

/// A server with a schema of its own and two instances on it.
pub(crate) struct Setting {
    pub(crate) server: Postgres,
    pub(crate) url: String,
    pub(crate) a: PostgresAdapter,
    pub(crate) b: PostgresAdapter,
}

impl Setting {
    pub(crate) async fn start(settings: &'static [&'static str]) -> Self {
        Self::start_with(settings, Wake::Auto).await
    }

    pub(crate) async fn start_with(settings: &'static [&'static str], wake: Wake) -> Self {
        let server = tokio::task::spawn_blocking(move || Postgres::start(settings));
        let server = server.await.unwrap().unwrap();
        let url = server.url();
        let options: PostgresOptions = url.parse().unwrap();
        let a = PostgresAdapter::connect_with(options.wake(wake), limits());
        let a = a.await.unwrap();
        let b = a.instance();
        // Both listen.
        a.stats().await.unwrap();
        b.stats().await.unwrap();
        Self { server, url, a, b }
    }

    /// A connection beside the adapters.
    pub(crate) async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// The server's `server_version_num`.
    pub(crate) async fn version(&self) -> i64 {
        let version = "SELECT current_setting('server_version_num')::bigint";
        number(&mut self.admin().await, version).await
    }

    /// Both are healthy again in time.
    pub(crate) async fn recovers(&self) {
        let until = Instant::now() + NOTICED + Duration::from_secs(5);
        for adapter in [&self.a, &self.b] {
            while adapter.health() != Health::Ok {
                assert!(Instant::now() < until, "{:?}", adapter.health());
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// An instance behind a proxy, and one beside it.
pub(crate) async fn behind_a_proxy(
    setting: &mut Setting,
    limits: Limits,
) -> (Link, Proxy, PostgresAdapter) {
    let link = Link::new();
    let proxy = Proxy::start(setting.server.program().addr(), &link).unwrap();
    let url = format!("postgres://postgres@{}/postgres", proxy.addr());
    let far = PostgresAdapter::connect(&url, limits).await.unwrap();
    far.stats().await.unwrap();
    (link, proxy, far)
}

pub(crate) async fn sql(connection: &mut PgConnection, text: impl Into<String>) {
    let text = sqlx::raw_sql(AssertSqlSafe(text.into()));
    connection.execute(text).await.unwrap();
}

pub(crate) async fn number(connection: &mut PgConnection, text: &str) -> i64 {
    let query = sqlx::query_scalar(AssertSqlSafe(text.to_owned()));
    query.fetch_one(connection).await.unwrap()
}

/// What became of one call.
#[derive(Debug, Default)]
struct History {
    sent: u64,
    acknowledged: Vec<u64>,
    seen: Vec<u64>,
    gaps: usize,
    end: Option<EndReason>,
}

impl History {
    fn check(&self, gaps_may_be: bool) {
        let rising = self.seen.windows(2).all(|two| two[0] < two[1]);
        assert!(rising, "each once and in order: {:?}", self.seen);
        assert!(self.seen.iter().all(|n| *n <= self.sent), "{:?}", self.seen);
        let missing = self.acknowledged.iter().filter(|n| !self.seen.contains(n));
        let missing: Vec<_> = missing.collect();
        assert!(missing.is_empty(), "acknowledged and not seen: {missing:?}");
        // An event that was given up shows as a gap, and nothing else does.
        let lost = self.sent - u64::try_from(self.seen.len()).unwrap();
        assert!(
            self.gaps == 0 || (gaps_may_be && lost > 0),
            "{} gaps, {lost} lost",
            self.gaps
        );
        assert_eq!(self.end, Some(EndReason::Finished), "no live call ends");
    }
}

/// Calls that run at `a` and are followed at `b`, and client requests from `a` that
/// `b` answers.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    calls: Vec<tokio::task::JoinHandle<History>>,
    asks: tokio::task::JoinHandle<usize>,
}

impl Load {
    pub(crate) async fn start(a: &PostgresAdapter, b: &PostgresAdapter, calls: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Vec::new();
        for _ in 0..calls {
            running.push(call(a, b, &stop).await);
        }
        let id = SessionId::generate();
        SessionAdapter::create(a, &id, SessionRecord::default())
            .await
            .unwrap();
        let asks = tokio::spawn(ask(a.clone(), b.clone(), id, Arc::clone(&stop)));
        Self {
            stop,
            calls: running,
            asks,
        }
    }

    /// Ends all of it and checks what happened; returns the events that were
    /// acknowledged.
    pub(crate) async fn end(self, gaps_may_be: bool) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = 0;
        for call in self.calls {
            let history = timeout(PATIENCE, call)
                .await
                .expect("a call hangs")
                .unwrap();
            history.check(gaps_may_be);
            acknowledged += history.acknowledged.len();
        }
        let asked = timeout(PATIENCE, self.asks).await.expect("a request hangs");
        assert!(asked.unwrap() > 0, "requests were answered");
        assert!(acknowledged > 0, "events were stored");
        acknowledged
    }
}

async fn call(
    a: &PostgresAdapter,
    b: &PostgresAdapter,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<History> {
    let id = SessionId::generate();
    SessionAdapter::create(a, &id, SessionRecord::default())
        .await
        .unwrap();
    let entered = a.enter(&id, None, Some(&RpcId::Number(1))).await.unwrap();
    let writer = entered.writer.unwrap();
    let from = EventId::new(writer.stream().clone(), Position::START);
    let mut tail = b.tail(&id, TailFrom::After(from)).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut history = History::default();
        while let Some(event) = tail.next().await {
            match event {
                TailEvent::Event { data, .. } => {
                    let text = std::str::from_utf8(&data).unwrap();
                    history.seen.push(text.parse().unwrap());
                }
                TailEvent::Gap { .. } => history.gaps += 1,
                TailEvent::End(reason) => history.end = Some(reason),
                TailEvent::Begins { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        history
    });
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let (mut sent, mut acknowledged) = (0, Vec::new());
        let text = |n: u64| Bytes::from(n.to_string());
        while !stop.load(Ordering::Relaxed) {
            sent += 1;
            match writer.append(text(sent)).await {
                Ok(_) => acknowledged.push(sent),
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
        sent += 1;
        writer.finish(Some(text(sent))).await.unwrap();
        acknowledged.push(sent);
        let history = timeout(PATIENCE, reader).await.expect("a tail hangs");
        History {
            sent,
            acknowledged,
            ..history.unwrap()
        }
    })
}

/// One request after the other; each has one outcome, which both sides know.
async fn ask(
    a: PostgresAdapter,
    b: PostgresAdapter,
    id: SessionId,
    stop: Arc<AtomicBool>,
) -> usize {
    let mut answered = 0;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) && answered > 0 {
            break;
        }
        let request = RpcId::Number(number);
        let asked = NewClientRequest::new(request.clone()).with_timeout(Duration::from_secs(20));
        let waiting = match ClientRequestAdapter::create(&a, &id, asked).await {
            Ok(waiting) => waiting,
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                continue;
            }
        };
        let answer = Answer::Result(Bytes::from(number.to_string()));
        let delivery = loop {
            match b.answer(&id, &request, answer.clone()).await {
                Ok(delivery) => break delivery,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        };
        let outcome = waiting.await;
        // A try whose reply was lost may have been the one that won.
        match (delivery, outcome.kind) {
            (
                Delivery::Delivered | Delivery::AlreadyEnded(OutcomeKind::Answered),
                OutcomeKind::Answered,
            ) => {
                assert_eq!(outcome.payload, Bytes::from(number.to_string()));
                answered += 1;
            }
            (Delivery::AlreadyEnded(told), known) => assert_eq!(told, known),
            other => panic!("{other:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
    answered
}

/// How long an event that is written at `a` takes to a follower at `b`.
pub(crate) async fn hop(a: &PostgresAdapter, b: &PostgresAdapter) -> Duration {
    let id = SessionId::generate();
    SessionAdapter::create(a, &id, SessionRecord::default())
        .await
        .unwrap();
    let entered = a.enter(&id, None, Some(&RpcId::Number(1))).await.unwrap();
    let writer = entered.writer.unwrap();
    let from = EventId::new(writer.stream().clone(), Position::START);
    let mut tail = b.tail(&id, TailFrom::After(from)).await.unwrap();
    writer.append(Bytes::from_static(b"1")).await.unwrap();
    assert!(matches!(tail.next().await, Some(TailEvent::Event { .. })));
    let start = Instant::now();
    writer.append(Bytes::from_static(b"2")).await.unwrap();
    assert!(matches!(tail.next().await, Some(TailEvent::Event { .. })));
    let took = start.elapsed();
    writer.finish(None).await.unwrap();
    took
}

/// Wake-ups come again: what is written is seen long before the catch-up.
pub(crate) async fn is_pushed(a: &PostgresAdapter, b: &PostgresAdapter) {
    let until = Instant::now() + NOTICED + Duration::from_secs(3);
    while hop(a, b).await > limits().catch_up() / 2 {
        assert!(Instant::now() < until, "wake-ups do not come");
    }
}

/// A process and its children: a server forks one for each connection.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_whitespace().nth(1) == Some(&pid.to_string()) {
            family.push(child);
        }
    }
    family
}

/// The whole server stands still for so long.
pub(crate) async fn stand_still(setting: &mut Setting, time: Duration) {
    let pid = setting.server.program().pid();
    let family = family(pid);
    for process in &family {
        // A connection may have ended meanwhile.
        let _ = Signal::Stop.send(*process);
    }
    sleep(time).await;
    for process in &family {
        let _ = Signal::Continue.send(*process);
    }
}
