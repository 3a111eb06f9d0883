//! Tiers and roles, idle workers, the end of an instance.

use std::time::Duration;

use mcp_adapter_core::Limits;
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::{Readiness, StreamableHttpTransport};
use serde_json::{Value, json};

use crate::{
    client::{Client, text},
    fleet::{Fleet, Instance, Kind, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn ours() -> (Fleet, Client) {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    (fleet, client)
}

/// An instance of its own making, and a session there.
async fn alone(transport: StreamableHttpTransport) -> (Instance, Client) {
    let instance = Instance::of("a", transport).await;
    let mut client = Client::new(PATIENCE);
    client.initialize(&instance.url).await.unwrap();
    (instance, client)
}

#[tokio::test]
async fn idle_workers_leave_memory_and_sessions_stay() {
    let transport = transport()
        .with_adapter(MemoryAdapter::new(limits()))
        .with_worker_idle_timeout(Duration::from_millis(40));
    let (instance, client) = alone(transport).await;
    let url = &instance.url;
    let mut running = client.call(url, 1, "count", json!({"n": 1})).await.unwrap();
    assert!(instance.probe.sees("counting", PATIENCE).await);
    let before = instance.probe.times("restored");
    // Far longer than the timeout, while a call runs.
    tokio::time::sleep(Duration::from_millis(400)).await;
    instance.probe.steps.add_permits(1);
    running.counted().await.unwrap();
    // Each request slides it, so it is asked until it was away for a moment.
    let mut pause = Duration::from_millis(100);
    while instance.probe.times("restored") == before {
        tokio::time::sleep(pause).await;
        pause *= 2;
        assert_eq!(client.text(url, "whoami", json!({})).await.unwrap(), "a");
    }
    assert_eq!(instance.probe.times("initialize"), 1);
}

#[tokio::test]
async fn a_client_request_has_a_deadline() {
    let transport = transport()
        .with_adapter(MemoryAdapter::new(limits()))
        .with_client_request_timeout(Duration::from_millis(50));
    let (instance, client) = alone(transport).await;
    let url = &instance.url;
    let mut call = client
        .call(url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = call.asked().await.unwrap();
    let response = call.response().await.unwrap();
    let told = text(&response).unwrap();
    assert!(told.contains("did not answer in time"), "{told}");
    client.answer(url, &question, "late").await.unwrap();
}

#[tokio::test]
async fn a_drained_instance_loses_nothing() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    fleet.a.probe.steps.add_permits(1);
    let mut call = client.call(url, 1, "count", json!({"n": 2})).await.unwrap();
    call.message().await.unwrap();
    let mut listening = client.resume(url, None).await.unwrap();
    let drain = {
        let handle = fleet.a.handle.clone();
        tokio::spawn(async move { handle.drain(PATIENCE).await })
    };
    // Listeners go first.
    listening.ends().await.unwrap();
    assert_eq!(fleet.a.handle.readiness(), Readiness::Draining);
    // Whoever comes back all the same is served.
    let mut listening = client.resume(url, None).await.unwrap();
    assert!(listening.next().await.unwrap().unwrap().id.is_some());
    assert_eq!(client.text(url, "whoami", json!({})).await.unwrap(), "a");
    let mut new = fleet.client();
    new.initialize(url).await.unwrap();
    assert_eq!(new.text(url, "whoami", json!({})).await.unwrap(), "a");
    fleet.a.probe.steps.add_permits(1);
    assert_eq!(call.counted().await.unwrap(), (vec![2], "counted 2".into()));
    assert_eq!(drain.await.unwrap().aborted, 0);
    listening.ends().await.unwrap();
    // Its listener is still open.
    let restored = fleet.a.probe.times("restored");
    assert_eq!(client.text(url, "whoami", json!({})).await.unwrap(), "a");
    assert_eq!(fleet.a.probe.times("restored"), restored + 1);
    new.session = None;
    new.initialize(url).await.unwrap();
    assert_eq!(
        client
            .text(&fleet.b.url, "whoami", json!({}))
            .await
            .unwrap(),
        "b"
    );
}

#[tokio::test]
async fn a_drain_ends_what_does_not_end_in_time() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    let mut counting = client.call(url, 1, "count", json!({"n": 2})).await.unwrap();
    let mut asking = client
        .call(url, 2, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    asking.asked().await.unwrap();
    assert!(fleet.a.probe.sees("counting", PATIENCE).await);
    let drained = fleet.a.handle.drain(Duration::ZERO).await;
    assert_eq!(drained.aborted, 1);
    let response = counting.response().await.unwrap();
    assert_eq!(response["error"]["message"], "the server is shutting down");
    let response = asking.response().await.unwrap();
    assert!(text(&response).unwrap().contains("shutting down"));
    assert!(fleet.a.probe.sees("cancelled", PATIENCE).await);
    // What began now would be cut off.
    let refused = client.text(url, "whoami", json!({})).await;
    assert_eq!(refused.unwrap_err(), "503");
    let refused = fleet.client().initialize(url).await;
    assert_eq!(refused.unwrap_err(), "503");
}

#[tokio::test]
async fn without_adapters_there_are_no_sessions() {
    let instance = Instance::of("a", StreamableHttpTransport::new()).await;
    let mut client = Client::new(PATIENCE);
    client.initialize_as(&instance.url, "raw").await.unwrap();
    assert_eq!(client.session, None);
    assert_eq!(
        client
            .text(&instance.url, "whoami", json!({}))
            .await
            .unwrap(),
        "a"
    );
    assert_eq!(client.get(&instance.url, None).await.unwrap().status(), 405);
    assert_eq!(client.delete(&instance.url).await.unwrap(), 405);
    assert_eq!(instance.handle.readiness(), Readiness::Ready);
    instance.handle.start_drain();
    assert_eq!(instance.handle.readiness(), Readiness::Draining);
}

#[tokio::test]
async fn roles_may_be_given_apart() {
    let sessions = MemoryAdapter::new(limits());
    let requests = MemoryAdapter::new(Limits::default());
    let [a, b] = ["a", "b"].map(|name| {
        let transport = transport()
            .with_session_adapter(sessions.instance())
            .with_client_request_adapter(requests.instance());
        Instance::of(name, transport)
    });
    let (a, b) = tokio::join!(a, b);
    let mut client = Client::new(PATIENCE);
    client.initialize(&a.url).await.unwrap();
    let mut call = client
        .call(&a.url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = call.asked().await.unwrap();
    client.answer(&b.url, &question, "apart").await.unwrap();
    let response = call.response().await.unwrap();
    assert_eq!(text(&response).unwrap(), "accept: \"apart\"");
    assert_eq!(client.delete(&b.url).await.unwrap(), 200);
    assert_eq!(
        client.text(&a.url, "whoami", json!({})).await.unwrap_err(),
        "404"
    );
}

#[tokio::test]
async fn without_a_client_request_adapter_asking_fails_at_once() {
    let sessions = MemoryAdapter::new(limits());
    let (instance, client) = alone(transport().with_session_adapter(sessions)).await;
    let told = client
        .text(&instance.url, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    assert!(told.contains("cannot ask its clients"), "{told}");
}

#[tokio::test]
async fn a_refused_initialize_makes_no_session() {
    let (instance, mut client) = alone(transport().with_adapter(MemoryAdapter::default())).await;
    client.session = None;
    let message = json!({"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "unwanted", "version": "1"},
    }});
    let response = client.post(&instance.url, &message).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("mcp-session-id"));
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(
        (&answer["id"], &answer["error"]["message"]),
        (&json!("i"), &json!("unwanted"))
    );
}

#[tokio::test]
async fn a_drain_waits_for_requests_without_a_session() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.client();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "count",
        "arguments": {"n": 2},
        "_meta": {
            "progressToken": "t",
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    fleet.a.probe.steps.add_permits(1);
    let mut running = client.modern(&fleet.a.url, &call).await.unwrap();
    running.message().await.unwrap();
    let drain = {
        let handle = fleet.a.handle.clone();
        tokio::spawn(async move { handle.drain(PATIENCE).await })
    };
    while fleet.a.handle.readiness() != Readiness::Draining {
        tokio::task::yield_now().await;
    }
    fleet.a.probe.steps.add_permits(1);
    assert_eq!(
        running.counted().await.unwrap(),
        (vec![2], "counted 2".into())
    );
    drop(running);
    assert_eq!(drain.await.unwrap().aborted, 0);
    // Its listener is still open.
    fleet.a.probe.steps.add_permits(2);
    let mut running = client.modern(&fleet.a.url, &call).await.unwrap();
    assert_eq!(running.counted().await.unwrap().0, [1, 2]);
}
