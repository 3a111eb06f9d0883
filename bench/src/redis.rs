//! RD1 to RD4, H2 and H2c: the Redis adapter against a server of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, future::try_join_all};
use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{
    Answer, ClientRequestAdapter, Delivery, EngineAdapter, InstanceId, Limits, NewClientRequest,
    OutcomeKind, RpcId, SessionAdapter, SessionId, SessionRecord, StreamWriter,
    storage::{Hold, Storage},
};
use mcp_adapter_redis::RedisAdapter;
use redis::aio::MultiplexedConnection;

use crate::{
    gate::{Better, Gate},
    http, sdk,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const EVENT: &[u8] = &[b'x'; 256];
const WAITERS: usize = 256;
/// Events of each waiter in a round.
const EVENTS: usize = 200;
/// Events that a waiter sends before it waits.
const BURST: usize = 8;
/// Raw pipelines: commands in each, and pipelines in flight.
const PIPELINE: usize = 128;
const IN_FLIGHT: usize = 3;
/// Round trips of a round.
const SEQUENTIAL: usize = 1000;

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median_us(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// A server, a raw connection and two instances.
pub(crate) struct Bench {
    _server: Redis,
    raw: MultiplexedConnection,
    url: String,
    a: RedisAdapter,
    b: RedisAdapter,
}

impl Bench {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let server = Redis::start(&[])?;
        let url = format!("{}?protocol=resp3", server.url());
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(Duration::from_secs(10)))
            .set_pipeline_buffer_size(1024)
            .set_write_backpressure_boundary(256 << 10);
        let raw = redis::Client::open(url.as_str())?
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let a = RedisAdapter::connect(&url, Limits::default()).await?;
        let b = RedisAdapter::connect(&url, Limits::default()).await?;
        Ok(Self {
            _server: server,
            raw,
            url,
            a,
            b,
        })
    }

    /// `XADD` as fast as the client library and the server allow.
    async fn raw_xadd(&self, events: usize) -> Result<f64, Failure> {
        let start = Instant::now();
        let batches = events / PIPELINE;
        let lanes = (0..IN_FLIGHT).map(|lane| {
            let mut raw = self.raw.clone();
            async move {
                for batch in (lane..batches).step_by(IN_FLIGHT) {
                    let mut pipeline = redis::Pipeline::with_capacity(PIPELINE);
                    for number in 0..PIPELINE {
                        let key = format!("raw:{}", (batch * PIPELINE + number) % WAITERS);
                        pipeline.cmd("XADD").arg(key).arg("*").arg("d").arg(EVENT);
                    }
                    pipeline.query_async::<Vec<String>>(&mut raw).await?;
                }
                Ok::<_, redis::RedisError>(())
            }
        });
        try_join_all(lanes).await?;
        let rate = per_second(batches * PIPELINE, start.elapsed());
        let mut forget = redis::cmd("UNLINK");
        for waiter in 0..WAITERS {
            forget.arg(format!("raw:{waiter}"));
        }
        forget.query_async::<i64>(&mut self.raw.clone()).await?;
        Ok(rate)
    }

    async fn ping(&self) -> Result<f64, Failure> {
        let mut raw = self.raw.clone();
        let mut times = Vec::with_capacity(SEQUENTIAL);
        for _ in 0..SEQUENTIAL {
            let start = Instant::now();
            redis::cmd("PING").query_async::<String>(&mut raw).await?;
            times.push(start.elapsed());
        }
        Ok(median_us(times))
    }

    async fn writer(&self) -> Result<(SessionId, Box<dyn StreamWriter>), Failure> {
        let id = SessionId::generate();
        SessionAdapter::create(&self.a, &id, SessionRecord::default()).await?;
        let entered = self.a.enter(&id, None, Some(&RpcId::Number(1))).await?;
        let writer = entered.writer.ok_or("a writer was asked for")?;
        writer.append(Bytes::from_static(EVENT)).await?;
        Ok((id, writer))
    }

    /// RD1 and RD2: acknowledged appends to streams that another instance holds
    /// and is woken for.
    pub(crate) async fn appends(&self, rounds: usize) -> Result<[Gate; 2], Failure> {
        let follower = InstanceId::generate();
        let elsewhere = self.b.engine().storage();
        let mut bell = elsewhere.doorbell(follower).await?;
        let listener = tokio::spawn(async move {
            let mut knocks = 0_usize;
            while let Some(Ok(_)) = bell.next().await {
                knocks += 1;
                if knocks.is_multiple_of(1 << 20) {
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut writers: Vec<Arc<dyn StreamWriter>> = Vec::new();
        for _ in 0..WAITERS {
            let (id, writer) = self.writer().await?;
            let stream = writer.stream();
            elsewhere
                .hold(&id.key(), stream, follower, Hold::Take)
                .await?;
            writers.push(writer.into());
        }
        let events = WAITERS * EVENTS;
        let (mut single, mut bursts) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let raw = self.raw_xadd(events).await?;
            single.push((acknowledged(&writers, 1).await?, raw));
            let raw = self.raw_xadd(events).await?;
            bursts.push((acknowledged(&writers, BURST).await?, raw));
        }
        listener.abort();
        for writer in writers {
            writer.finish(None).await?;
        }
        let gate = |name, what, reach, goal, rounds| Gate {
            name,
            what,
            unit: "events/s",
            better: Better::More,
            reach,
            goal,
            rounds,
        };
        Ok([
            gate(
                "RD1",
                "acknowledged append and wake, 256 waiters, against raw pipelined XADD",
                0.60,
                0.85,
                single,
            ),
            gate(
                "RD2",
                "the same in bursts of 8 per session",
                1.0,
                2.0,
                bursts,
            ),
        ])
    }

    /// RD3 and RD4: latencies against that of PING.
    pub(crate) async fn latencies(&self, rounds: usize) -> Result<[Gate; 2], Failure> {
        let (id, writer) = self.writer().await?;
        self.b.enter(&id, None, None).await?;
        let (mut appends, mut requests) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let ping = self.ping().await?;
            let mut times = Vec::with_capacity(SEQUENTIAL);
            for _ in 0..SEQUENTIAL {
                let start = Instant::now();
                writer.append(Bytes::from_static(EVENT)).await?;
                times.push(start.elapsed());
            }
            appends.push((median_us(times), ping));
            let ping = self.ping().await?;
            let mut times = Vec::with_capacity(SEQUENTIAL / 4);
            for number in 0..SEQUENTIAL / 4 {
                let name = RpcId::String(format!("{round}.{number}").into());
                let start = Instant::now();
                let asked = NewClientRequest::new(name.clone());
                let waiting = ClientRequestAdapter::create(&self.a, &id, asked).await?;
                let answer = Answer::Result(Bytes::from_static(EVENT));
                let delivery = self.b.answer(&id, &name, answer).await?;
                let outcome = waiting.await;
                times.push(start.elapsed());
                if delivery != Delivery::Delivered || outcome.kind != OutcomeKind::Answered {
                    return Err(format!("{delivery:?}, {:?}", outcome.kind).into());
                }
            }
            requests.push((median_us(times), ping));
        }
        writer.finish(None).await?;
        let gate = |name, what, reach, goal, rounds| Gate {
            name,
            what,
            unit: "us",
            better: Better::Less,
            reach,
            goal,
            rounds,
        };
        Ok([
            gate(
                "RD3",
                "sequential append p50 against PING p50",
                1.5,
                1.2,
                appends,
            ),
            gate(
                "RD4",
                "cross-instance request and answer p50 against PING p50",
                4.0,
                2.5,
                requests,
            ),
        ])
    }

    /// H2: `tools/call` over HTTP against stock rmcp, by a bare client and by rmcp's.
    pub(crate) async fn h2(&self, rounds: usize) -> Result<[Gate; 2], Failure> {
        let adapter = RedisAdapter::connect(&self.url, Limits::default()).await?;
        let bare = http::h2(adapter, rounds).await?;
        Ok([bare, sdk::h2c(self.url.clone(), rounds).await?])
    }
}

/// Appends per second of all writers at once, each waiting for `burst` at a time.
async fn acknowledged(writers: &[Arc<dyn StreamWriter>], burst: usize) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in writers {
        let writer = Arc::clone(writer);
        tasks.spawn(async move {
            for _ in 0..EVENTS / burst {
                let appends = (0..burst).map(|_| writer.append(Bytes::from_static(EVENT)));
                let appends: Vec<_> = appends.collect();
                for append in appends {
                    append.await?;
                }
            }
            Ok::<_, mcp_adapter_core::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let events = writers.len() * (EVENTS / burst) * burst;
    Ok(per_second(events, start.elapsed()))
}
