//! H2c: `tools/call` as a user has it, by rmcp's own client on tokio's usual runtime,
//! which is what the reach of H2 was taken from. A bare client in the server's thread
//! is answered by stock rmcp in less than one round trip to a backend.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mcp_adapter_core::Limits;
use mcp_adapter_redis::RedisAdapter;
use rmcp::{
    RoleClient,
    model::CallToolRequestParams,
    service::{RunningService, serve_client},
    transport::streamable_http_client::{
        StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Map, Value};

use crate::{
    gate::{Better, Gate},
    http::both,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Client = RunningService<RoleClient, ()>;

/// Calls of a round, one after another.
const CALLS: usize = 400;

async fn client(address: SocketAddr) -> Result<Client, Failure> {
    let http = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let config = StreamableHttpClientTransportConfig::with_uri(format!("http://{address}/mcp"));
    let transport = StreamableHttpClientTransport::with_client(http, config);
    Ok(serve_client((), transport).await?)
}

/// Median latency in microseconds.
async fn latency(client: &Client) -> Result<f64, Failure> {
    let mut times = Vec::with_capacity(CALLS);
    for number in 0..CALLS {
        let text = Value::String(format!("message {number}"));
        let arguments = Map::from_iter([("message".to_owned(), text.clone())]);
        let params = CallToolRequestParams::new("echo").with_arguments(arguments);
        let start = Instant::now();
        let result = client.call_tool(params).await?;
        times.push(start.elapsed());
        let answer = serde_json::to_value(&result)?;
        if answer.pointer("/content/0/text") != Some(&text) {
            return Err(format!("a call was answered with {answer}").into());
        }
    }
    times.sort();
    Ok(times[CALLS / 2].as_secs_f64() * 1e6)
}

async fn measure(url: String, rounds: usize) -> Result<Gate, Failure> {
    let adapter = RedisAdapter::connect(&url, Limits::default()).await?;
    let (stock, ours) = both(adapter).await?;
    let (stock, ours) = (client(stock).await?, client(ours).await?);
    latency(&stock).await?;
    latency(&ours).await?;
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let raw = latency(&stock).await?;
        latencies.push((latency(&ours).await?, raw));
    }
    stock.cancel().await?;
    ours.cancel().await?;
    Ok(Gate {
        name: "H2c",
        what: "HTTP tools/call p50 of rmcp's client, Redis adapter, against stock rmcp",
        unit: "us",
        better: Better::Less,
        reach: 1.5,
        goal: 1.25,
        rounds: latencies,
    })
}

/// H2c, on a runtime of its own.
pub(crate) async fn h2c(url: String, rounds: usize) -> Result<Gate, Failure> {
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let gate = runtime.block_on(measure(url, rounds));
        runtime.shutdown_timeout(Duration::from_secs(5));
        gate
    })
    .await?
}
