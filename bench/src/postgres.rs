//! PG1 to PG4: the Postgres adapter, on a server of its own that waits for the
//! disk.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, future::try_join_all};
use mcp_adapter_conformance::server::Postgres;
use mcp_adapter_core::{
    Answer, ClientRequestAdapter, Delivery, EventId, Limits, NewClientRequest, OutcomeKind,
    Position, RpcId, SessionAdapter, SessionId, SessionRecord, StreamWriter, Tail, TailFrom,
};
use mcp_adapter_postgres::{
    PostgresAdapter,
    sqlx::{self, Connection, Executor, PgConnection},
};

use crate::gate::{Better, Gate};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const EVENT: &[u8] = &[b'x'; 256];
const WAITERS: usize = 256;
/// Appends of each waiter in a round: fewer than a stream keeps, so that nothing is
/// trimmed.
const APPENDS: usize = 150;
/// Rows per statement of the raw engine, and its connections.
const ROWS: usize = 128;
const CONNECTIONS: usize = 2;
/// Connections that write a row per commit, and the rows of each.
const SINGLES: (usize, usize) = (16, 150);
/// Listeners of channels that nobody uses.
const LISTENERS: usize = 50;
/// Streams that are followed at another instance in PG3: their appends notify.
const FOLLOWED: usize = 8;
/// Requests per round of PG4.
const REQUESTS: usize = 100;

const RAW: &str = "INSERT INTO mcp_adapter.raw (stream, epoch, seq, data) \
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[])";
const SINGLE: &str =
    "INSERT INTO mcp_adapter.raw (stream, epoch, seq, data) VALUES ($1, 1, $2, $3)";

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median_micros(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let middle = times.get(times.len() / 2);
    middle.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// A server, our adapter on it, and a table like the adapter's own for the raw
/// engine.
pub(crate) struct Bench {
    adapter: PostgresAdapter,
    other: PostgresAdapter,
    url: String,
    next: i64,
    // Ends the server.
    _server: Postgres,
}

impl Bench {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let start = || {
            Postgres::start(&[
                "fsync=on",
                "synchronous_commit=on",
                "full_page_writes=on",
                "shared_buffers=256MB",
                "max_wal_size=4GB",
            ])
        };
        let server = tokio::task::spawn_blocking(start).await??;
        let url = server.url();
        let adapter = PostgresAdapter::connect(&url, Limits::default()).await?;
        let other = adapter.instance();
        let mut connection = PgConnection::connect(&url).await?;
        connection
            .execute("CREATE TABLE mcp_adapter.raw (LIKE mcp_adapter.event INCLUDING ALL)")
            .await?;
        Ok(Self {
            adapter,
            other,
            url,
            next: 0,
            _server: server,
        })
    }

    /// Numbers of streams that no earlier round has used.
    fn fresh(&mut self, count: usize) -> Result<i64, Failure> {
        let first = self.next;
        self.next += i64::try_from(count)?;
        Ok(first)
    }

    async fn connections(&self, count: usize) -> Result<Vec<PgConnection>, Failure> {
        Ok(try_join_all((0..count).map(|_| PgConnection::connect(&self.url))).await?)
    }

    async fn raw(&mut self) -> Result<f64, Failure> {
        let batches = WAITERS * APPENDS / ROWS / CONNECTIONS;
        let first = self.fresh(ROWS * CONNECTIONS)?;
        let mut writers = Vec::new();
        for (number, mut connection) in (0..).zip(self.connections(CONNECTIONS).await?) {
            let streams: Vec<i64> = (first + number * 128..).take(ROWS).collect();
            let epochs = vec![1_i64; ROWS];
            let write = async move |mut connection: PgConnection, from: i64, count: usize| {
                for seq in (from..).take(count) {
                    sqlx::query(RAW)
                        .bind(&streams)
                        .bind(&epochs)
                        .bind(vec![seq; ROWS])
                        .bind(vec![EVENT; ROWS])
                        .execute(&mut connection)
                        .await?;
                }
                Ok::<_, sqlx::Error>(connection)
            };
            // Prepared before the clock starts.
            connection.ping().await?;
            let connection = write(connection, 0, 1).await?;
            writers.push((write, connection));
        }
        let start = Instant::now();
        try_join_all(
            writers
                .into_iter()
                .map(|(write, connection)| async move { write(connection, 1, batches).await }),
        )
        .await?;
        Ok(per_second(batches * ROWS * CONNECTIONS, start.elapsed()))
    }

    async fn single(&mut self) -> Result<f64, Failure> {
        let (connections, rows) = SINGLES;
        let first = self.fresh(connections)?;
        let mut writers = Vec::new();
        for (stream, mut connection) in (first..).zip(self.connections(connections).await?) {
            commits(&mut connection, stream, 0, 1).await?;
            writers.push(async move { commits(&mut connection, stream, 1, rows).await });
        }
        let start = Instant::now();
        try_join_all(writers).await?;
        Ok(per_second(connections * rows, start.elapsed()))
    }

    async fn writers(&self) -> Result<Vec<(SessionId, Box<dyn StreamWriter>)>, Failure> {
        let open = |_| async {
            let id = SessionId::generate();
            SessionAdapter::create(&self.adapter, &id, SessionRecord::default()).await?;
            let entered = self.adapter.enter(&id, None, Some(&RpcId::Number(1)));
            let writer = entered.await?.writer.ok_or("a writer was asked for")?;
            Ok::<_, Failure>((id, writer))
        };
        try_join_all((0..WAITERS).map(open)).await
    }

    /// Acknowledged appends per second, of which some are followed elsewhere.
    async fn ours(&self, followed: usize) -> Result<f64, Failure> {
        let writers = self.writers().await?;
        let mut tails: Vec<Tail> = Vec::new();
        for (id, writer) in writers.iter().take(followed) {
            let start = EventId::new(writer.stream().clone(), Position::START);
            tails.push(self.other.tail(id, TailFrom::After(start)).await?);
        }
        let readers = tails
            .into_iter()
            .map(|tail| tokio::spawn(tail.take(APPENDS + 1).count()));
        let readers: Vec<_> = readers.collect();
        let event = Bytes::from_static(EVENT);
        // Their first appends look at everything, the others need not.
        try_join_all(
            writers
                .iter()
                .map(|(_, writer)| writer.append(event.clone())),
        )
        .await?;
        let start = Instant::now();
        let tasks = writers.into_iter().map(|(_, writer)| {
            let event = event.clone();
            tokio::spawn(async move {
                for _ in 0..APPENDS {
                    writer.append(event.clone()).await?;
                }
                Ok::<_, mcp_adapter_core::Error>(writer)
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let mut done = Vec::new();
        for task in tasks {
            done.push(task.await??);
        }
        let figure = per_second(WAITERS * APPENDS, start.elapsed());
        for reader in readers {
            reader.await?;
        }
        try_join_all(done.iter().map(|writer| writer.finish(None))).await?;
        Ok(figure)
    }

    async fn listeners(&self) -> Result<Vec<PgConnection>, Failure> {
        let mut listeners = self.connections(LISTENERS).await?;
        for listener in &mut listeners {
            listener.execute("LISTEN nobody_uses_this").await?;
        }
        Ok(listeners)
    }

    /// A client request at one instance and its answer at another, until the asking
    /// one has it.
    async fn requests(&self, id: &SessionId) -> Result<f64, Failure> {
        let yes = Answer::Result(Bytes::from_static(b"{\"action\":\"accept\"}"));
        let mut times = Vec::new();
        for number in 0..REQUESTS {
            let request = RpcId::String(format!("{number}-{}", self.next).into());
            let start = Instant::now();
            let asked = NewClientRequest::new(request.clone());
            let waiting = ClientRequestAdapter::create(&self.adapter, id, asked).await?;
            let delivery = self.other.answer(id, &request, yes.clone()).await?;
            let outcome = waiting.await;
            times.push(start.elapsed());
            if delivery != Delivery::Delivered || outcome.kind != OutcomeKind::Answered {
                return Err(format!("{delivery:?}, {outcome:?}").into());
            }
        }
        Ok(median_micros(times))
    }

    async fn commit(&mut self) -> Result<f64, Failure> {
        let stream = self.fresh(1)?;
        let mut connection = PgConnection::connect(&self.url).await?;
        commits(&mut connection, stream, 0, 1).await?;
        let mut times = Vec::new();
        for seq in (1..).take(REQUESTS) {
            let start = Instant::now();
            commits(&mut connection, stream, seq, 1).await?;
            times.push(start.elapsed());
        }
        Ok(median_micros(times))
    }

    /// PG1 and PG2: acknowledged appends against the raw engine, in batches and row by
    /// row.
    pub(crate) async fn appends(&mut self, rounds: usize) -> Result<Vec<Gate>, Failure> {
        let (mut pg1, mut pg2) = (vec![], vec![]);
        // The first of each fills caches.
        self.raw().await?;
        self.ours(0).await?;
        for round in 0..rounds {
            let raw = self.raw().await?;
            let ours = self.ours(0).await?;
            let single = self.single().await?;
            eprintln!("round {round}: raw {raw:.0}, ours {ours:.0}, single {single:.0}");
            pg1.push((ours, raw));
            pg2.push((ours, single));
        }
        Ok(vec![
            Gate {
                name: "PG1",
                what: "acknowledged append, 256 waiters, against UNNEST of 128 rows on 2 \
                       connections",
                unit: "events/s",
                better: Better::More,
                reach: 0.70,
                goal: 0.9,
                rounds: pg1,
            },
            Gate {
                name: "PG2",
                what: "acknowledged append, 256 waiters, against a row per commit on 16 \
                       connections",
                unit: "events/s",
                better: Better::More,
                reach: 10.0,
                goal: 18.0,
                rounds: pg2,
            },
        ])
    }

    /// PG3: appends that notify, with and without idle listeners in the database.
    pub(crate) async fn crowded(&mut self, rounds: usize) -> Result<Gate, Failure> {
        let mut pg3 = vec![];
        self.ours(FOLLOWED).await?;
        for round in 0..rounds {
            // Which comes first alternates: the table grows meanwhile.
            let mut quiet = 0.0;
            if round % 2 == 0 {
                quiet = self.ours(FOLLOWED).await?;
            }
            let listeners = self.listeners().await?;
            let crowded = self.ours(FOLLOWED).await?;
            drop(listeners);
            if round % 2 == 1 {
                quiet = self.ours(FOLLOWED).await?;
            }
            eprintln!("round {round}: crowded {crowded:.0} of {quiet:.0}");
            pg3.push((crowded, quiet));
        }
        Ok(Gate {
            name: "PG3",
            what: "append with notifications beside 50 idle listeners, against without them",
            unit: "events/s",
            better: Better::More,
            reach: 0.8,
            goal: 0.95,
            rounds: pg3,
        })
    }

    /// PG4: a client request and its answer at another instance.
    pub(crate) async fn latencies(&mut self, rounds: usize) -> Result<Gate, Failure> {
        let id = SessionId::generate();
        let record = SessionRecord::default();
        SessionAdapter::create(&self.adapter, &id, record).await?;
        let mut pg4 = vec![];
        self.requests(&id).await?;
        for round in 0..rounds {
            self.next += 1;
            let commit = self.commit().await?;
            let ours = self.requests(&id).await?;
            eprintln!("round {round}: request and answer {ours:.0} us, commit {commit:.0} us");
            pg4.push((ours, commit));
        }
        Ok(Gate {
            name: "PG4",
            what: "request and answer across instances, against a single-row commit",
            unit: "us",
            better: Better::Less,
            reach: 3.0,
            goal: 2.0,
            rounds: pg4,
        })
    }
}

async fn commits(
    connection: &mut PgConnection,
    stream: i64,
    from: i64,
    count: usize,
) -> Result<(), sqlx::Error> {
    for seq in (from..).take(count) {
        sqlx::query(SINGLE)
            .bind(stream)
            .bind(seq)
            .bind(EVENT)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
