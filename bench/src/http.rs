//! H1 and H2: `tools/call` over HTTP, the memory and the Redis adapter against stock
//! rmcp with the same server, by a bare HTTP client in the same thread.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::serve::ListenerExt;
use mcp_adapter_core::{Adapter, Limits};
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::StreamableHttpTransport;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ServerCapabilities,
        ServerConfig,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};

use crate::gate::{Better, Gate};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Sessions that call at once for the throughput.
const SESSIONS: usize = 16;
/// Calls of each in a round.
const CALLS: usize = 100;
/// Calls one after another for the latency.
const SEQUENTIAL: usize = 400;

#[derive(Clone)]
struct Echo;

impl ServerHandler for Echo {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let message = request
            .arguments
            .as_ref()
            .and_then(|arguments| arguments.get("message"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        let content = vec![ContentBlock::text(message.to_owned())];
        Ok(CallToolResult::success(content).into())
    }
}

/// Serves on a free port of loopback, with `TCP_NODELAY` as every server of
/// small events needs it.
async fn serve(router: axum::Router) -> Result<SocketAddr, Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
    session: Option<String>,
}

impl Client {
    async fn initialize(http: &reqwest::Client, address: SocketAddr) -> Result<Self, Failure> {
        let mut client = Self {
            http: http.clone(),
            url: format!("http://{address}/mcp"),
            session: None,
        };
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"}});
        let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let response = client.post(&body).await?;
        let session = response
            .headers()
            .get("mcp-session-id")
            .ok_or("no session id")?;
        client.session = Some(session.to_str()?.to_owned());
        response.bytes().await?;
        let body = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        client.post(&body).await?.bytes().await?;
        Ok(client)
    }

    async fn post(&self, body: &Value) -> Result<reqwest::Response, Failure> {
        let mut request = self
            .http
            .post(&self.url)
            .header("accept", "application/json, text/event-stream")
            .header("content-type", "application/json")
            .body(body.to_string());
        if let Some(session) = &self.session {
            request = request
                .header("mcp-session-id", session)
                .header("mcp-protocol-version", "2025-11-25");
        }
        Ok(request.send().await?.error_for_status()?)
    }

    async fn call(&self, number: usize) -> Result<Duration, Failure> {
        let text = format!("message {number}");
        let body = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call",
            "params": {"name": "echo", "arguments": {"message": text}}});
        let start = Instant::now();
        let answer = self.post(&body).await?.text().await?;
        let took = start.elapsed();
        if answer.contains(&text) && answer.contains("\"result\"") {
            Ok(took)
        } else {
            Err(format!("a call was answered with {answer:?}").into())
        }
    }
}

/// Median latency in microseconds of calls one after another.
async fn latency(client: &Client) -> Result<f64, Failure> {
    let mut times = Vec::with_capacity(SEQUENTIAL);
    for number in 0..SEQUENTIAL {
        times.push(client.call(number).await?);
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}

/// Calls per second of many sessions at once.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
async fn throughput(clients: &[Client]) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients {
        let client = client.clone();
        tasks.spawn(async move {
            for number in 0..CALLS {
                client.call(number).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok((clients.len() * CALLS) as f64 / start.elapsed().as_secs_f64())
}

async fn clients(address: SocketAddr) -> Result<Vec<Client>, Failure> {
    let http = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(Client::initialize(&http, address).await?);
    }
    Ok(clients)
}

/// The same server with stock rmcp, and with an adapter.
pub(crate) async fn both(adapter: impl Adapter) -> Result<(SocketAddr, SocketAddr), Failure> {
    let stock = StreamableHttpService::new(
        || Ok(Echo),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let stock = serve(axum::Router::new().nest_service("/mcp", stock)).await?;
    let ours = StreamableHttpTransport::new()
        .with_adapter(adapter)
        .bind(|| Ok(Echo));
    let ours = serve(axum::Router::new().nest_service("/mcp", ours)).await?;
    Ok((stock, ours))
}

/// H2: latency with an adapter that is far away.
pub(crate) async fn h2(adapter: impl Adapter, rounds: usize) -> Result<Gate, Failure> {
    let (stock, ours) = both(adapter).await?;
    let (stock, ours) = (clients(stock).await?, clients(ours).await?);
    latency(&stock[0]).await?;
    latency(&ours[0]).await?;
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let raw = latency(&stock[0]).await?;
        latencies.push((latency(&ours[0]).await?, raw));
    }
    Ok(Gate {
        name: "H2",
        what: "HTTP tools/call p50, Redis adapter, against stock rmcp",
        unit: "us",
        better: Better::Less,
        reach: 1.5,
        goal: 1.25,
        rounds: latencies,
    })
}

/// H1: latency and throughput.
pub(crate) async fn h1(rounds: usize) -> Result<[Gate; 2], Failure> {
    let (stock, ours) = both(MemoryAdapter::new(Limits::default())).await?;
    let (stock, ours) = (clients(stock).await?, clients(ours).await?);
    // Warm connections and allocators before the first round counts.
    latency(&stock[0]).await?;
    latency(&ours[0]).await?;
    let mut latencies = Vec::new();
    let mut throughputs = Vec::new();
    for _ in 0..rounds {
        let raw = latency(&stock[0]).await?;
        latencies.push((latency(&ours[0]).await?, raw));
        let raw = throughput(&stock).await?;
        throughputs.push((throughput(&ours).await?, raw));
    }
    let gate = |name, what, unit, better, reach, rounds| Gate {
        name,
        what,
        unit,
        better,
        reach,
        goal: 1.0,
        rounds,
    };
    Ok([
        gate(
            "H1",
            "HTTP tools/call p50 against stock rmcp",
            "us",
            Better::Less,
            1.15,
            latencies,
        ),
        gate(
            "H1b",
            "HTTP tools/call throughput against stock rmcp",
            "calls/s",
            Better::More,
            0.9,
            throughputs,
        ),
    ])
}
