//! `subscriptions/listen` of 2026-07-28: held at one instance, told at another.

use std::time::Duration;

use mcp_adapter_core::ErrorKind;
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::{ListChanged, Readiness, StreamableHttpTransport};
use serde_json::{Value, json};

use crate::{
    client::{Client, Events, Result},
    flaky::Flaky,
    fleet::{Fleet, Instance, Kind, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);
const TOOLS: &str = "notifications/tools/list_changed";
const UPDATED: &str = "notifications/resources/updated";

/// A subscription, past its acknowledgement.
async fn listen(client: &Client, url: &str, id: Value, filter: Value) -> Result<Events> {
    let message = json!({"jsonrpc": "2.0", "id": id, "method": "subscriptions/listen", "params": {
        "notifications": filter,
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    let mut events = client.modern(url, &message).await?;
    let acknowledged = events.message().await?;
    assert_eq!(
        acknowledged["method"], "notifications/subscriptions/acknowledged",
        "{acknowledged}"
    );
    Ok(events)
}

/// A filter of the tools and one resource.
fn filter(uri: &str) -> Value {
    json!({"toolsListChanged": true, "resourceSubscriptions": [uri]})
}

fn subscription(message: &Value) -> &Value {
    &message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"]
}

#[tokio::test]
async fn a_change_at_one_instance_reaches_listeners_at_all() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.client();
    let mut at_a = listen(&client, &fleet.a.url, json!("a"), filter("x://a"))
        .await
        .unwrap();
    let mut at_b = listen(&client, &fleet.b.url, json!(7), filter("x://b"))
        .await
        .unwrap();
    let c = &fleet.c.handle;
    for change in ["x://b", "x://nobody", "x://a"] {
        c.resource_updated(change).await.unwrap();
    }
    // Not in any filter.
    c.broadcast(ListChanged::Prompts).await.unwrap();
    c.broadcast(ListChanged::Tools).await.unwrap();
    for (events, id, uri) in [
        (&mut at_a, json!("a"), "x://a"),
        (&mut at_b, json!(7), "x://b"),
    ] {
        let updated = events.message().await.unwrap();
        assert_eq!(updated["method"], UPDATED);
        assert_eq!(updated["params"]["uri"], uri);
        assert_eq!(subscription(&updated), &id);
        let changed = events.message().await.unwrap();
        assert_eq!(changed["method"], TOOLS);
        assert_eq!(subscription(&changed), &id);
    }
}

#[tokio::test]
async fn a_listener_that_leaves_is_forgotten() {
    let fleet = Fleet::start(Kind::Ours).await;
    let events = listen(&fleet.client(), &fleet.a.url, json!(1), filter("x://y")).await;
    drop(events.unwrap());
    assert!(fleet.a.probe.sees("listened", PATIENCE).await);
}

#[tokio::test]
async fn sessions_and_listeners_are_told_by_one_call() {
    let fleet = Fleet::start(Kind::Ours).await;
    let session = fleet.session().await.unwrap();
    let mut get = session.resume(&fleet.b.url, None).await.unwrap();
    let mut listener = listen(&fleet.client(), &fleet.c.url, json!(1), filter("x://y"))
        .await
        .unwrap();
    fleet.a.handle.broadcast(ListChanged::Tools).await.unwrap();
    assert_eq!(get.message().await.unwrap()["method"], TOOLS);
    assert_eq!(listener.message().await.unwrap()["method"], TOOLS);
}

/// A client that does not read neither holds anybody up nor fills the memory;
/// what it reads then ends with the last change.
#[tokio::test]
async fn a_client_that_does_not_read_gets_the_last_change() {
    let fleet = Fleet::start(Kind::Ours).await;
    let uri = format!("x://{}", "y".repeat(2_000));
    let both = json!({"toolsListChanged": true, "resourceSubscriptions": [uri]});
    let mut events = listen(&fleet.client(), &fleet.a.url, json!(1), both)
        .await
        .unwrap();
    // More than the sockets' buffers and all queues on the way take.
    const CHANGES: usize = 10_000;
    for _ in 0..CHANGES {
        let told = fleet.a.handle.resource_updated(&uri);
        tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
        // The server, on the same thread, sends as much as it can.
        tokio::task::yield_now().await;
    }
    fleet.a.handle.broadcast(ListChanged::Tools).await.unwrap();
    let mut read = 0;
    while events.message().await.unwrap()["method"] != TOOLS {
        read += 1;
    }
    assert!((1..CHANGES).contains(&read), "{read}");
}

#[tokio::test]
async fn a_drain_sends_listeners_elsewhere() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.client();
    let url = &fleet.a.url;
    let mut events = listen(&client, url, json!(3), filter("x://y"))
        .await
        .unwrap();
    let drain = {
        let handle = fleet.a.handle.clone();
        tokio::spawn(async move { handle.drain(PATIENCE).await })
    };
    let result = events.message().await.unwrap();
    assert_eq!(result["id"], 3);
    assert!(result.get("result").is_some(), "{result}");
    events.ends().await.unwrap();
    assert_eq!(fleet.a.handle.readiness(), Readiness::Draining);
    assert_eq!(drain.await.unwrap().aborted, 0);
    // Its listener is still open.
    let mut back = listen(&client, url, json!(4), filter("x://y"))
        .await
        .unwrap();
    fleet.c.handle.resource_updated("x://y").await.unwrap();
    assert_eq!(back.message().await.unwrap()["method"], UPDATED);
    let mut events = listen(&client, &fleet.b.url, json!(4), filter("x://y"))
        .await
        .unwrap();
    fleet.c.handle.resource_updated("x://y").await.unwrap();
    assert_eq!(events.message().await.unwrap()["method"], UPDATED);
}

#[tokio::test]
async fn without_sessions_a_signal_adapter_is_enough() {
    let signals = MemoryAdapter::new(limits());
    let a = StreamableHttpTransport::new().with_signal_adapter(signals.instance());
    let b = StreamableHttpTransport::new().with_signal_adapter(signals.instance());
    let (a, b) = (Instance::of("a", a).await, Instance::of("b", b).await);
    let client = Client::new(PATIENCE);
    let mut events = listen(&client, &a.url, json!(1), filter("x://y"))
        .await
        .unwrap();
    b.handle.broadcast(ListChanged::Tools).await.unwrap();
    assert_eq!(events.message().await.unwrap()["method"], TOOLS);
}

#[tokio::test]
async fn without_adapters_an_instance_tells_its_own_listeners() {
    let instance = Instance::of("a", StreamableHttpTransport::new()).await;
    let client = Client::new(PATIENCE);
    let mut events = listen(&client, &instance.url, json!(1), filter("x://y"))
        .await
        .unwrap();
    instance.handle.resource_updated("x://y").await.unwrap();
    assert_eq!(events.message().await.unwrap()["method"], UPDATED);
    instance.handle.drain(Duration::ZERO).await;
    assert!(events.message().await.unwrap().get("result").is_some());
}

#[tokio::test]
async fn a_uri_that_cannot_travel_is_told_to_nobody() {
    let fleet = Fleet::start(Kind::Ours).await;
    let uri = format!("x://{}", "y".repeat(4_096));
    let both = json!({"toolsListChanged": true, "resourceSubscriptions": [uri]});
    let mut events = listen(&fleet.client(), &fleet.a.url, json!(1), both)
        .await
        .unwrap();
    let error = fleet.a.handle.resource_updated(uri).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    fleet.a.handle.broadcast(ListChanged::Tools).await.unwrap();
    assert_eq!(events.message().await.unwrap()["method"], TOOLS);
}

#[tokio::test]
async fn a_change_that_others_were_not_told_of_is_an_error() {
    let flaky = Flaky::new(MemoryAdapter::new(limits()));
    let instance = Instance::of("a", transport().with_adapter(flaky.clone())).await;
    let client = Client::new(PATIENCE);
    flaky.set_broken(true);
    let filter = filter("x://y");
    // It would miss what happens elsewhere.
    let refused = listen(&client, &instance.url, json!(1), filter.clone()).await;
    assert_eq!(refused.err().as_deref(), Some("503"));
    flaky.set_broken(false);
    let mut events = loop {
        match listen(&client, &instance.url, json!(1), filter.clone()).await {
            Ok(events) => break events,
            Err(status) => assert_eq!(status, "503"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    flaky.set_broken(true);
    let told = instance.handle.broadcast(ListChanged::Tools).await;
    assert_eq!(told.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(events.message().await.unwrap()["method"], TOOLS);
}
