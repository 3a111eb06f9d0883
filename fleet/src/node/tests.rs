use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    backend::{Backend, Place, Store},
    proxy::{self, Policy},
};

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENTS: usize = 8;

/// Instances of one process over one store.
async fn nodes(count: usize) -> Vec<Node> {
    let place = Place::prepare(Backend::Memory, None).unwrap();
    let fleet = Arc::new(Fleet {
        store: Some(Store::open(Backend::Memory, None, None).await.unwrap()),
        place,
        key: StateKey::generate().unwrap(),
        ttl: None,
    });
    let mut rng = fastrand::Rng::new();
    let mut nodes = Vec::new();
    for index in 0..count {
        let node = Node::start(format!("n{index}"), Arc::clone(&fleet), &mut rng);
        nodes.push(node.await.unwrap());
    }
    nodes
}

/// A whole session, as short as they come; what did not go well.
async fn session(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let mut id = None;
    for (message, wanted) in [
        (
            json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-11-25", "capabilities": {},
                "clientInfo": {"name": "short", "version": "1"}}}),
            200,
        ),
        (
            json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            202,
        ),
        (
            json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}),
            200,
        ),
        (
            json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call",
                "params": {"name": "echo", "arguments": {"message": "here"}}}),
            200,
        ),
    ] {
        let mut request = client
            .post(url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(message.to_string());
        if let Some(id) = &id {
            request = request.header("mcp-session-id", id);
        }
        let method = message["method"].as_str().unwrap();
        let response = request
            .send()
            .await
            .map_err(|error| format!("{method}: {error:?}"))?;
        if response.status().as_u16() != wanted {
            return Err(format!("{method}: {}", response.status()));
        }
        if let Some(session) = response.headers().get("mcp-session-id") {
            id = Some(session.clone());
        }
        let text = response
            .text()
            .await
            .map_err(|error| format!("{method}: {error:?}"))?;
        let answer: Option<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
            .next_back();
        if wanted == 200 && answer.is_none_or(|answer| answer.get("result").is_none()) {
            return Err(format!("{method}: {text}"));
        }
    }
    Ok(())
}

/// The proxy knows nothing of readiness: it goes on to the next instance where
/// it cannot connect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_refuses_nobody() {
    let mut nodes = nodes(3).await;
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let upstreams = nodes.iter().map(Node::addr).collect();
    let stop = CancellationToken::new();
    tokio::spawn(proxy::serve_each_by_itself(
        listener,
        Policy::RoundRobin,
        upstreams,
        stop.clone(),
    ));

    let done = CancellationToken::new();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (url, done) = (url.clone(), done.clone());
        clients.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let (mut sessions, mut failed) = (0, Vec::new());
            while !done.is_cancelled() {
                sessions += 1;
                failed.extend(session(&client, &url).await.err());
                // A new client is another connection to the proxy.
            }
            (sessions, failed)
        });
    }
    for _ in 0..2 {
        for node in &mut nodes {
            node.stop().await.unwrap();
            node.restart().await.unwrap();
        }
    }
    done.cancel();
    let (mut sessions, mut failed) = (0, Vec::new());
    while let Some(client) = clients.join_next().await {
        let client = client.unwrap();
        sessions += client.0;
        failed.extend(client.1);
    }
    assert!(sessions > CLIENTS, "{sessions}");
    assert_eq!(failed, Vec::<String>::new(), "of {sessions} sessions");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_does_not_keep_an_instance() {
    let mut nodes = nodes(1).await;
    let addr = nodes[0].addr();
    let mut held = Vec::new();
    for half in [
        "POST /mcp HTTP/1.1\r\nhost: loc",
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"json",
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        held.push(stream);
    }
    // It is served after them, so it has what there is of them.
    let mut whole = TcpStream::connect(addr).await.unwrap();
    let request = b"GET /mcp HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    whole.write_all(request).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, whole.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let begun = Instant::now();
    nodes[0].stop().await.unwrap();
    let bound = SETTLE + LINGER + Duration::from_secs(5);
    assert!(begun.elapsed() < bound, "{:?}", begun.elapsed());
}
