use std::{net::Ipv4Addr, time::Duration};

use axum::{Router, body::Bytes, http::HeaderMap};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const REQUEST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#;
const NOTIFICATION: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

async fn listener() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An upstream that answers with its name, the length of the body and the names
/// of the headers.
async fn upstream(name: &'static str) -> SocketAddr {
    let (listener, addr) = listener().await;
    let answer = move |headers: HeaderMap, body: Bytes| async move {
        let headers: Vec<_> = headers.keys().map(ToString::to_string).collect();
        format!("{name} {} {}", body.len(), headers.join(","))
    };
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    addr
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    listener().await.1
}

fn start(policy: Policy, upstreams: Vec<SocketAddr>) -> String {
    let listener = crate::net::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, policy, upstreams, CancellationToken::new()));
    format!("http://{addr}/mcp")
}

async fn post(url: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
    let request = reqwest::Client::new().post(url).body(body);
    timeout(PATIENCE, request.send()).await.unwrap().unwrap()
}

fn label(response: &reqwest::Response) -> String {
    response.headers()[INSTANCE_HEADER]
        .to_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn anti_sends_requests_here_and_everything_else_there() {
    let (a, b) = (upstream("a").await, upstream("b").await);
    let url = start(Policy::Anti, vec![a, b]);
    for (body, wanted) in [
        (INITIALIZE, a),
        (REQUEST, a),
        (NOTIFICATION, b),
        (ANSWER, b),
    ] {
        let response = post(&url, body).await;
        assert_eq!(label(&response), wanted.to_string(), "{body}");
    }
    let client = reqwest::Client::new();
    for request in [client.get(&url), client.delete(&url)] {
        assert_eq!(label(&request.send().await.unwrap()), b.to_string());
    }
}

#[tokio::test]
async fn a_dead_upstream_is_skipped() {
    let (dead, live) = (nobody().await, upstream("live").await);
    let url = start(Policy::Anti, vec![dead, live]);
    let response = post(&url, REQUEST).await;
    assert_eq!(label(&response), live.to_string());
    assert!(response.text().await.unwrap().starts_with("live "));
}

#[tokio::test]
async fn without_a_live_upstream_clients_are_asked_to_come_back() {
    let url = start(Policy::RoundRobin, vec![nobody().await, nobody().await]);
    let response = post(&url, REQUEST).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
}

/// Accepts connections one after the other and hands them to the test.
async fn by_hand() -> (SocketAddr, tokio::sync::mpsc::Receiver<TcpStream>) {
    let (listener, addr) = listener().await;
    let (send, accepted) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if send.send(stream).await.is_err() {
                return;
            }
        }
    });
    (addr, accepted)
}

#[tokio::test]
async fn what_was_sent_is_not_sent_again() {
    let (dying, mut accepted) = by_hand().await;
    let other = upstream("other").await;
    let url = start(Policy::Anti, vec![dying, other]);
    let request = tokio::spawn(async move { post(&url, REQUEST).await });
    let mut stream = timeout(PATIENCE, accepted.recv()).await.unwrap().unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).await.unwrap();
    drop(stream);
    let response = request.await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(label(&response), dying.to_string());
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata:a\r\n";

#[tokio::test]
async fn a_stream_ends_with_its_upstream() {
    let (dying, mut accepted) = by_hand().await;
    let url = start(Policy::Anti, vec![dying]);
    let request = tokio::spawn(async move { post(&url, REQUEST).await });
    let mut stream = timeout(PATIENCE, accepted.recv()).await.unwrap().unwrap();
    stream.write_all(HEAD).await.unwrap();
    let mut response = request.await.unwrap();
    let first = timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
    assert_eq!(first.as_deref(), Some(&b"data:a"[..]));
    drop(stream);
    assert!(timeout(PATIENCE, response.chunk()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_for_the_upstream_too() {
    let (addr, mut accepted) = by_hand().await;
    let url = start(Policy::Anti, vec![addr]);
    let request = tokio::spawn(async move { post(&url, REQUEST).await });
    let mut stream = timeout(PATIENCE, accepted.recv()).await.unwrap().unwrap();
    stream.write_all(HEAD).await.unwrap();
    let mut response = request.await.unwrap();
    timeout(PATIENCE, response.chunk()).await.unwrap().unwrap();
    drop(response);
    let mut rest = Vec::new();
    // Ends, or is reset; either way it is over.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_long_body_passes_whole_and_to_the_right_upstream() {
    let (a, b) = (upstream("a").await, upstream("b").await);
    let url = start(Policy::Anti, vec![a, b]);
    let long = "x".repeat(1 << 20);
    let body = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"a":"{long}"}}}}"#);
    let length = body.len();
    let text = post(&url, body).await.text().await.unwrap();
    assert!(text.starts_with(&format!("b {length} ")), "{}", &text[..40]);
}

#[tokio::test]
async fn headers_of_the_connection_stay_behind() {
    let url = start(Policy::Anti, vec![upstream("a").await]);
    let request = reqwest::Client::new()
        .post(&url)
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("mcp-session-id", "s")
        .body(REQUEST);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("mcp-session-id"), "{text}");
    assert!(
        !text.contains("x-private") && !text.contains("connection"),
        "{text}"
    );
}
