//! M1 and M2: the memory adapter.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    Limits, RpcId, SessionAdapter, SessionId, SessionKey, SessionRecord, StreamWriter, Tail,
    TailEvent,
};
use mcp_adapter_memory::MemoryAdapter;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::gate::{Better, Gate};

const EVENT: &[u8] = &[b'x'; 256];
const WAITERS: usize = 256;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A map of waiters, as one would write it by hand: the floor under M1.
struct Waiters {
    shards: Vec<Mutex<HashMap<SessionKey, oneshot::Sender<Bytes>>>>,
}

impl Waiters {
    fn new() -> Self {
        Self {
            shards: (0..64).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, key: &SessionKey) -> &Mutex<HashMap<SessionKey, oneshot::Sender<Bytes>>> {
        &self.shards[usize::from(key.0[0]) % self.shards.len()]
    }
}

/// Lets the producer wait until all waiters wait again: the same in both
/// measurements, and without spinning, which a busy machine would punish.
#[derive(Default)]
struct Turnstile {
    passed: AtomicUsize,
    all: Notify,
}

impl Turnstile {
    fn pass(&self, of: usize) {
        if self.passed.fetch_add(1, Ordering::AcqRel) + 1 == of {
            self.passed.store(0, Ordering::Release);
            self.all.notify_one();
        }
    }
}

/// Runs rounds of one delivery to each of the waiters, and returns deliveries
/// per second.
async fn raw(keys: &[SessionKey], rounds: usize) -> Result<f64, Failure> {
    let waiters = Arc::new(Waiters::new());
    let turnstile = Arc::new(Turnstile::default());
    let event = Bytes::from_static(EVENT);
    let of = keys.len();
    let mut tasks = Vec::new();
    for key in keys {
        let (waiters, turnstile, key) = (Arc::clone(&waiters), Arc::clone(&turnstile), *key);
        tasks.push(tokio::spawn(async move {
            for _ in 0..rounds {
                let (sender, receiver) = oneshot::channel();
                waiters.shard(&key).lock().insert(key, sender);
                turnstile.pass(of);
                receiver.await.map(drop)?;
            }
            Ok::<_, oneshot::error::RecvError>(())
        }));
    }
    turnstile.all.notified().await;
    let start = Instant::now();
    for round in 0..rounds {
        for key in keys {
            let waiter = waiters.shard(key).lock().remove(key);
            let waiter = waiter.ok_or("a waiter is missing")?;
            waiter.send(event.clone()).map_err(|_| "a waiter is gone")?;
        }
        if round + 1 < rounds {
            turnstile.all.notified().await;
        }
    }
    for task in tasks {
        task.await??;
    }
    Ok(per_second(keys.len() * rounds, start.elapsed()))
}

async fn follow(mut tail: Tail, turnstile: Arc<Turnstile>, rounds: usize) -> Result<Tail, Failure> {
    for _ in 0..rounds {
        turnstile.pass(WAITERS);
        match tail.next().await {
            Some(TailEvent::Event { data, .. }) if data.len() == EVENT.len() => {}
            other => return Err(format!("an event was expected, not {other:?}").into()),
        }
    }
    Ok(tail)
}

async fn ours(
    writers: &[Box<dyn StreamWriter>],
    tails: Vec<Tail>,
    rounds: usize,
) -> Result<(f64, Vec<Tail>), Failure> {
    let turnstile = Arc::new(Turnstile::default());
    let event = Bytes::from_static(EVENT);
    let tasks: Vec<_> = tails
        .into_iter()
        .map(|tail| tokio::spawn(follow(tail, Arc::clone(&turnstile), rounds)))
        .collect();
    turnstile.all.notified().await;
    let start = Instant::now();
    for round in 0..rounds {
        for writer in writers {
            writer.append(event.clone()).await?;
        }
        if round + 1 < rounds {
            turnstile.all.notified().await;
        }
    }
    let mut tails = Vec::new();
    for task in tasks {
        tails.push(task.await??);
    }
    Ok((per_second(writers.len() * rounds, start.elapsed()), tails))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// M1: acknowledged append and delivery to a waiting task.
pub(crate) async fn m1(rounds: usize) -> Result<Gate, Failure> {
    let adapter = MemoryAdapter::new(Limits::default());
    let mut keys = Vec::new();
    let mut writers = Vec::new();
    let mut tails = Vec::new();
    for _ in 0..WAITERS {
        let id = SessionId::generate();
        adapter.create(&id, SessionRecord::default()).await?;
        let entered = adapter.enter(&id, None, Some(&RpcId::Number(1))).await?;
        let writer = entered.writer.ok_or("a writer was asked for")?;
        tails.push(writer.attach());
        writers.push(writer);
        keys.push(id.key());
    }
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let raw = raw(&keys, 400).await?;
        let (ours, back) = ours(&writers, tails, 400).await?;
        tails = back;
        figures.push((ours, raw));
    }
    Ok(Gate {
        name: "M1",
        what: "memory append and delivery to a local waiter",
        unit: "events/s",
        better: Better::More,
        reach: 0.5,
        goal: 0.8,
        rounds: figures,
    })
}

/// The resident memory of this process, in bytes.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn resident() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("this system does not tell its resident memory")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok((kib * 1024) as f64)
}

/// A record of about 150 bytes.
fn record() -> SessionRecord {
    SessionRecord {
        protocol: "2025-11-25".into(),
        client: serde_json::json!({"name": "bench-client", "version": "1.0.0"}),
        capabilities: serde_json::json!({"elicitation": {"form": {}}, "roots": {"listChanged": true}}),
        ..SessionRecord::default()
    }
}

/// M2: bytes per idle session, and what churn leaves behind.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) async fn m2(sessions: usize) -> Result<[Gate; 2], Failure> {
    let adapter = MemoryAdapter::new(Limits::default());
    let before = resident()?;
    let mut ids = Vec::with_capacity(sessions);
    // The ids are the clients' memory, not ours: take them out of the figure.
    for _ in 0..sessions {
        ids.push(SessionId::generate());
    }
    let with_ids = resident()?;
    for id in &ids {
        adapter.create(id, record()).await?;
    }
    let full = resident()?;
    let stored = record().encode()?.len();
    eprintln!(
        "M2: {stored} bytes of record, {} MiB before",
        before / f64::from(1 << 20)
    );
    // Churn: each session is deleted and another comes, ten times over a tenth.
    for _ in 0..10 {
        for id in ids.iter_mut().take(sessions / 10) {
            adapter.delete(id, None).await?;
            *id = SessionId::generate();
            adapter.create(id, record()).await?;
        }
    }
    let churned = resident()?;
    let gate = |name, what, unit, reach, goal, rounds| Gate {
        name,
        what,
        unit,
        better: Better::Less,
        reach,
        goal,
        rounds,
    };
    Ok([
        gate(
            "M2",
            "bytes per idle session",
            "bytes",
            600.0,
            400.0,
            vec![((full - with_ids) / sessions as f64, 1.0)],
        ),
        gate(
            "M2b",
            "resident memory after churn of as many sessions again, to before",
            "bytes",
            1.02,
            1.0,
            vec![(churned - with_ids, full - with_ids)],
        ),
    ])
}
