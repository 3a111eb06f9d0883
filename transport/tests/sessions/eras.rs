//! Clients that know versions with sessions, versions without, or both.

use std::time::Duration;

use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::StreamableHttpTransport;
use serde_json::{Value, json};

use crate::{
    client::{Client, text},
    fleet::{Instance, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn modern(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
    });
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// Status and answer to a request of 2026-07-28.
async fn post(client: &Client, url: &str, message: &Value) -> (u16, Value) {
    let request = client
        .http
        .post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", message["method"].as_str().unwrap())
        .header(
            "mcp-name",
            message["params"]["name"].as_str().unwrap_or("none"),
        )
        .body(message.to_string());
    let response = tokio::time::timeout(PATIENCE, request.send())
        .await
        .unwrap()
        .unwrap();
    let status = response.status().as_u16();
    let body = response.text().await.unwrap();
    let data = body.lines().find_map(|line| line.strip_prefix("data: {"));
    let json = data.map_or(body.clone(), |data| format!("{{{data}"));
    (status, serde_json::from_str(&json).unwrap_or_default())
}

#[tokio::test]
async fn with_sessions_only_clients_that_know_both_use_a_session() {
    let transport = transport()
        .with_adapter(MemoryAdapter::new(limits()))
        .with_sessions_only();
    let instance = Instance::of("a", transport).await;
    let url = &instance.url;
    let mut client = Client::new(PATIENCE);
    // Who asks first is answered as by a server that knows nothing else ...
    let (status, answer) = post(&client, url, &modern("server/discover", json!({}))).await;
    assert_eq!((status, &answer["id"]), (404, &json!(1)));
    assert_eq!(answer["error"]["code"], -32601);
    // ... and who does not ask is told what there is.
    let call = modern("tools/call", json!({"name": "whoami", "arguments": {}}));
    let (status, answer) = post(&client, url, &call).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!(-32022)));
    let supported = answer["error"]["data"]["supported"].as_array().unwrap();
    assert!(supported.contains(&json!("2025-11-25")), "{supported:?}");
    assert!(!supported.contains(&json!("2026-07-28")), "{supported:?}");
    assert_eq!(instance.probe.times("listened"), 0);

    client.initialize(url).await.unwrap();
    let mut asking = client
        .call(url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = asking.asked().await.unwrap();
    client.answer(url, &question, "yes").await.unwrap();
    let answer = text(&asking.response().await.unwrap()).unwrap();
    assert_eq!(answer, "accept: \"yes\"");
}

#[tokio::test]
async fn all_versions_are_served_unless_told_otherwise() {
    let adapter = MemoryAdapter::new(limits());
    for transport in [
        transport().with_adapter(adapter),
        // Without sessions there is nothing to choose.
        StreamableHttpTransport::new().with_sessions_only(),
    ] {
        let instance = Instance::of("a", transport).await;
        let client = Client::new(PATIENCE);
        let discover = modern("server/discover", json!({}));
        let (status, answer) = post(&client, &instance.url, &discover).await;
        assert_eq!(status, 200);
        let supported = answer["result"]["supportedVersions"].as_array().unwrap();
        assert!(supported.contains(&json!("2026-07-28")), "{supported:?}");
    }
}

/// The one that rmcp has: it probes, and falls back only where a server says
/// that it does not know the probe.
#[tokio::test]
async fn rmcps_own_client_that_knows_both_uses_a_session() {
    use rmcp::{
        ClientHandler,
        model::{ClientConfig, ProtocolVersion},
        service::ClientLifecycleMode,
        transport::StreamableHttpClientTransport,
    };
    #[derive(Clone)]
    struct Quiet;
    impl ClientHandler for Quiet {
        fn get_info(&self) -> ClientConfig {
            ClientConfig::default()
        }
    }

    let sessions = MemoryAdapter::new(limits());
    for (only, version) in [(false, "2026-07-28"), (true, "2025-11-25")] {
        let mut transport = transport().with_adapter(sessions.instance());
        if only {
            transport = transport.with_sessions_only();
        }
        let instance = Instance::of("a", transport).await;
        let http = StreamableHttpClientTransport::from_uri(&*instance.url);
        let mode = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        };
        let client = rmcp::service::serve_client_with_lifecycle(Quiet, http, mode);
        let client = tokio::time::timeout(PATIENCE, client)
            .await
            .unwrap()
            .unwrap();
        let server = client.peer_info().unwrap();
        assert_eq!(server.protocol_version.as_str(), version);
        client.cancel().await.unwrap();
    }
}
