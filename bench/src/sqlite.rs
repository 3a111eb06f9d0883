//! SL1, SL3 and SL4: the SQLite adapter.

use std::{
    ffi::OsStr,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    Adapter, Channel, Limits, RpcId, SessionAdapter, SessionId, SessionRecord, SignalAdapter,
    StreamWriter,
};
use mcp_adapter_sqlite::{SqliteAdapter, SqliteOptions, Synchronous};
use rusqlite::{Connection, params};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::gate::{Better, Gate};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const EVENT: &[u8] = &[b'x'; 256];
const WAITERS: usize = 256;
/// Rows per transaction of the raw engine.
const ROWS: usize = 128;

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// The raw engine: an append-only table without an index, written by one
/// connection with the pragmas of the adapter.
struct Raw {
    connection: Connection,
    id: i64,
}

impl Raw {
    fn open(path: &Path, synchronous: Synchronous) -> Result<Self, Failure> {
        let connection = Connection::open(path)?;
        let level = if synchronous == Synchronous::Full {
            2
        } else {
            1
        };
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {level};
             PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 4000;
             CREATE TABLE raw(id INTEGER PRIMARY KEY, session INTEGER NOT NULL,
                epoch INTEGER NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL) STRICT;"
        ))?;
        Ok(Self { connection, id: 0 })
    }

    fn run(&mut self, rows: usize) -> Result<f64, Failure> {
        let start = Instant::now();
        let sql = "INSERT INTO raw(id, session, epoch, seq, data) VALUES (?, ?, ?, ?, ?)";
        let mut insert = self.connection.prepare(sql)?;
        for _ in 0..rows / ROWS {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            for _ in 0..ROWS {
                self.id += 1;
                insert.execute(params![self.id, self.id % 256, 1, self.id / 256, EVENT])?;
            }
            self.connection.execute_batch("COMMIT")?;
        }
        Ok(per_second(rows, start.elapsed()))
    }
}

struct Ours {
    adapter: SqliteAdapter,
    ids: Arc<[SessionId]>,
}

impl Ours {
    async fn open(path: &Path, synchronous: Synchronous) -> Result<Self, Failure> {
        let options = SqliteOptions::new(path)
            .limits(Limits::default())
            .synchronous(synchronous);
        Ok(Self {
            adapter: SqliteAdapter::open(options).await?,
            ids: Arc::from([]),
        })
    }

    /// So many more sessions.
    async fn sessions(&mut self, count: usize) -> Result<(), Failure> {
        let ids: Vec<_> = (0..count).map(|_| SessionId::generate()).collect();
        let adapter = &self.adapter;
        let create = |id: SessionId| async move {
            adapter.create(&id, SessionRecord::default()).await?;
            Ok::<_, mcp_adapter_core::Error>(id)
        };
        let made: Vec<_> = futures::stream::iter(ids)
            .map(create)
            .buffer_unordered(WAITERS)
            .collect()
            .await;
        let made: Result<Vec<_>, _> = made.into_iter().collect();
        self.ids = made?.into();
        Ok(())
    }

    /// Calls that run, one in each of the first sessions.
    async fn writers(&self) -> Result<Vec<Box<dyn StreamWriter>>, Failure> {
        let mut writers = Vec::new();
        for id in self.ids.iter().take(WAITERS) {
            let entered = self
                .adapter
                .enter(id, None, Some(&RpcId::Number(1)))
                .await?;
            writers.push(entered.writer.ok_or("a writer was asked for")?);
        }
        Ok(writers)
    }

    /// Each waiter appends to its own call and waits, again and again. The calls
    /// are new in every round: none has reached what a stream may keep.
    async fn calls(&self, each: usize) -> Result<f64, Failure> {
        let writers = self.writers().await?;
        let start = Instant::now();
        let tasks: Vec<_> = writers
            .into_iter()
            .map(|writer| {
                tokio::spawn(async move {
                    for _ in 0..each {
                        writer.append(Bytes::from_static(EVENT)).await?;
                    }
                    Ok::<_, mcp_adapter_core::Error>(writer)
                })
            })
            .collect();
        let mut writers = Vec::new();
        for task in tasks {
            writers.push(task.await??);
        }
        let took = start.elapsed();
        for writer in writers {
            writer.finish(None).await?;
        }
        Ok(per_second(WAITERS * each, took))
    }

    /// Each waiter appends to the standalone stream of one session after the
    /// other, in an order that has nothing to do with where they are stored.
    async fn spread(&self, each: usize) -> Result<f64, Failure> {
        let start = Instant::now();
        let tasks: Vec<_> = (0..WAITERS)
            .map(|_| {
                let (adapter, ids) = (self.adapter.clone(), Arc::clone(&self.ids));
                let mut random = fastrand::Rng::new();
                tokio::spawn(async move {
                    for _ in 0..each {
                        let id = &ids[random.usize(..ids.len())];
                        adapter.append(id, Bytes::from_static(EVENT)).await?;
                    }
                    Ok::<_, mcp_adapter_core::Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(per_second(WAITERS * each, start.elapsed()))
    }
}

/// SL1: acknowledged appends of 256 waiters.
async fn sl1(rounds: usize, synchronous: Synchronous) -> Result<Gate, Failure> {
    const EACH: usize = 400;
    let folder = tempfile::tempdir()?;
    let mut raw = Raw::open(&folder.path().join("raw"), synchronous)?;
    let mut ours = Ours::open(&folder.path().join("ours"), synchronous).await?;
    ours.sessions(WAITERS).await?;
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let raw = raw.run(WAITERS * EACH)?;
        figures.push((ours.calls(EACH).await?, raw));
    }
    ours.adapter.close().await?;
    let (name, what, reach, goal) = match synchronous {
        Synchronous::Full => (
            "SL1 FULL",
            "the same, each commit on the disk (no gate)",
            0.0,
            0.7,
        ),
        Synchronous::Normal => ("SL1", "SQLite acknowledged append, 256 waiters", 0.5, 0.7),
    };
    Ok(Gate {
        name,
        what,
        unit: "events/s",
        better: Better::More,
        reach,
        goal,
        rounds: figures,
    })
}

/// SL4: appends all over many sessions.
async fn sl4(rounds: usize) -> Result<Gate, Failure> {
    const EACH: usize = 400;
    let folder = tempfile::tempdir()?;
    let mut few = Ours::open(&folder.path().join("few"), Synchronous::Normal).await?;
    few.sessions(1000).await?;
    let mut many = Ours::open(&folder.path().join("many"), Synchronous::Normal).await?;
    many.sessions(100_000).await?;
    // Each stream is made by its first append: that is not what is measured.
    for _ in 0..3 {
        many.spread(EACH).await?;
        few.spread(EACH).await?;
    }
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let few = few.spread(EACH).await?;
        figures.push((many.spread(EACH).await?, few));
    }
    few.adapter.close().await?;
    many.adapter.close().await?;
    Ok(Gate {
        name: "SL4",
        what: "SQLite appends over 100k sessions, to over 1k",
        unit: "events/s",
        better: Better::More,
        reach: 0.5,
        goal: 0.8,
        rounds: figures,
    })
}

/// Names the file for the second process of SL3, which this program is then.
pub(crate) const LISTENER: &str = "MCP_ADAPTERS_BENCH_LISTENER";
const TOPIC: &str = "wake";

/// Nanoseconds since 1970: the one clock that two processes share.
fn nanos() -> Result<u128, Failure> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a measurement, no deadline of the contract"
    )]
    let now = SystemTime::now();
    Ok(now.duration_since(UNIX_EPOCH)?.as_nanos())
}

/// The second process: prints how long each signal was under way.
pub(crate) async fn listen(file: &OsStr) -> Result<(), Failure> {
    let adapter = SqliteAdapter::open(SqliteOptions::new(file)).await?;
    let mut signals = adapter.listen(&Channel::Topic(TOPIC.into())).await?;
    println!("ready");
    while let Some(signal) = signals.next().await {
        let arrived = nanos()?;
        let sent = u128::from_be_bytes(signal.payload[..].try_into()?);
        if sent == 0 {
            break;
        }
        println!("{}", arrived.saturating_sub(sent));
    }
    adapter.close().await?;
    Ok(())
}

/// SL3: from before a write until another process has been told of it.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
async fn sl3(rounds: usize) -> Result<Gate, Failure> {
    const SIGNALS: usize = 200;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("wake");
    let adapter = SqliteAdapter::open(SqliteOptions::new(&file)).await?;
    let mut second = tokio::process::Command::new(std::env::current_exe()?)
        .arg("sqlite")
        .env(LISTENER, &file)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = second.stdout.take().ok_or("no output")?;
    let mut lines = BufReader::new(output).lines();
    if lines.next_line().await?.as_deref() != Some("ready") {
        return Err("the second process did not start".into());
    }
    let channel = Channel::Topic(TOPIC.into());
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let mut times = Vec::new();
        for _ in 0..SIGNALS {
            let sent = nanos()?.to_be_bytes();
            adapter
                .signal(&channel, Bytes::copy_from_slice(&sent))
                .await?;
            let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line());
            let line = line.await??.ok_or("the second process has ended")?;
            times.push(line.parse::<u64>()?);
            // Idle, as between two messages: no poll of the last one is under way.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.sort_unstable();
        figures.push((times[times.len() / 2] as f64 / 1000.0, 1000.0));
    }
    let end = Bytes::copy_from_slice(&0_u128.to_be_bytes());
    adapter.signal(&channel, end).await?;
    second.wait().await?;
    adapter.close().await?;
    Ok(Gate {
        name: "SL3",
        what: "SQLite cross-process wake p50, of a millisecond",
        unit: "us",
        better: Better::Less,
        reach: 1.0,
        goal: 0.3,
        rounds: figures,
    })
}

/// All gates of the adapter.
pub(crate) async fn gates(rounds: usize) -> Result<[Gate; 4], Failure> {
    Ok([
        sl1(rounds, Synchronous::Normal).await?,
        sl1(rounds, Synchronous::Full).await?,
        sl3(rounds).await?,
        sl4(rounds).await?,
    ])
}
