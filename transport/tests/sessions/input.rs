//! What clients should not send.

use std::time::Duration;

use mcp_adapter_memory::MemoryAdapter;
use serde_json::json;

use crate::{
    client::Client,
    fleet::{Fleet, Instance, Kind, limits, transport},
    raw,
};

/// Sends bytes as they are; gives the status line.
async fn raw(url: &str, request: &[u8]) -> String {
    let answer = raw::send(url, request).await;
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn malformed_session_ids_are_404_and_never_reach_the_backend() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let good = client.session.clone().unwrap();
    for bad in [
        "x".repeat(10_000),
        "a b".into(),
        "x".repeat(129),
        "-".into(),
        format!("{good}="),
    ] {
        let client = Client {
            session: Some(bad.clone()),
            ..client.clone()
        };
        let post = client.text(&fleet.a.url, "whoami", json!({})).await;
        assert_eq!(post.unwrap_err(), "404", "{bad:.20}");
        assert_eq!(client.get(&fleet.a.url, None).await.unwrap().status(), 404);
        assert_eq!(client.delete(&fleet.a.url).await.unwrap(), 404);
        let answer = client.answer(&fleet.a.url, &json!({"id": "x"}), "").await;
        assert_eq!(answer.unwrap_err(), "404");
    }
    for (bytes, status) in [
        (&b"\x01"[..], "400"),
        (b"a\tb", "404"),
        (b"\xc3\xa9", "404"),
        (b"\xff", "404"),
    ] {
        let mut request = b"DELETE /mcp HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
            accept: text/event-stream\r\nmcp-session-id: "
            .to_vec();
        request.extend_from_slice(bytes);
        request.extend_from_slice(b"\r\n\r\n");
        let line = raw(&fleet.a.url, &request).await;
        assert!(line.contains(status), "{bytes:?}: {line}");
    }
    // Two ids are none.
    let request = format!(
        "DELETE /mcp HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         mcp-session-id: {good}\r\nmcp-session-id: {good}\r\n\r\n"
    );
    assert!(raw(&fleet.a.url, request.as_bytes()).await.contains("404"));
    assert_eq!(
        client
            .text(&fleet.a.url, "whoami", json!({}))
            .await
            .unwrap(),
        "a"
    );

    let none = Client {
        session: None,
        ..client.clone()
    };
    let post = none.text(&fleet.a.url, "whoami", json!({})).await;
    assert_eq!(post.unwrap_err(), "400");
    assert_eq!(none.delete(&fleet.a.url).await.unwrap(), 400);
}

#[tokio::test]
async fn forged_event_ids_reveal_nothing() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let other = fleet.session().await.unwrap();
    fleet.a.probe.steps.add_permits(1);
    let mut call = other
        .call(&fleet.a.url, 1, "count", json!({"n": 1}))
        .await
        .unwrap();
    let primed = call.next().await.unwrap().unwrap().id.unwrap();
    call.counted().await.unwrap();
    // Another session's stream: the same as one that never was.
    let never = primed.replace(&primed[..4], "AAAA");
    for id in [&primed, &never] {
        let mut resumed = client.resume(&fleet.b.url, Some(id)).await.unwrap();
        let response = resumed.response().await.unwrap();
        assert_eq!(response["error"]["message"], "this call is no longer known");
        resumed.ends().await.unwrap();
    }
    for id in [
        "0",
        "standalone",
        "a.1",
        "..",
        "%00",
        &"x".repeat(500),
        "x.9999999999999.1",
    ] {
        let response = client.get(&fleet.b.url, Some(id)).await.unwrap();
        assert_eq!(response.status(), 400, "{id:.20}");
    }
    // Beyond the end of what is there: valid, and silent.
    let ahead = client.resume(&fleet.b.url, Some("standalone.1.zz")).await;
    drop(ahead.unwrap());
    assert_eq!(
        other.text(&fleet.a.url, "whoami", json!({})).await.unwrap(),
        "a"
    );
}

#[tokio::test]
async fn bodies_over_the_limit_are_413() {
    let transport = transport()
        .with_adapter(MemoryAdapter::new(limits()))
        .with_body_limit(10_000);
    let instance = Instance::of("a", transport).await;
    let mut client = Client::new(Duration::from_secs(20));
    client.initialize(&instance.url).await.unwrap();
    let long = json!({"message": "x".repeat(10_000)});
    let refused = client.text(&instance.url, "echo", long).await;
    assert_eq!(refused.unwrap_err(), "413");
    let fits = json!({"message": "x".repeat(9_000)});
    client.text(&instance.url, "echo", fits).await.unwrap();

    // Without a length, and far more than the limit.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\naccept: application/json, text/event-stream\r\n\
         transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(3)
    );
    assert!(raw(&instance.url, request.as_bytes()).await.contains("413"));
}

#[tokio::test]
async fn messages_that_are_none_are_refused() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let url = &fleet.a.url;
    for (message, statuses) in [
        (json!({}), &[400, 415, 422][..]),
        (json!([]), &[400, 415, 422]),
        (
            json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}]),
            &[400, 415, 422],
        ),
        (
            json!({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}),
            &[400, 415, 422],
        ),
        (
            json!({"jsonrpc": "2.0", "id": "x".repeat(300), "method": "ping"}),
            &[400],
        ),
        (
            json!({"jsonrpc": "2.0", "id": null, "error": {"code": 1, "message": "?"}}),
            &[400],
        ),
        (json!({"jsonrpc": "2.0", "id": 1, "result": null}), &[400]),
    ] {
        let response = client.post(url, &message).await.unwrap();
        let status = response.status().as_u16();
        assert!(statuses.contains(&status), "{message}: {status}");
    }
    assert_eq!(client.text(url, "whoami", json!({})).await.unwrap(), "a");
}

#[tokio::test]
async fn hosts_and_origins_are_checked() {
    let transport = transport()
        .with_adapter(MemoryAdapter::new(limits()))
        .with_allowed_hosts(["mcp.example"])
        .with_allowed_origins(["https://app.example:443"]);
    let instance = Instance::of("a", transport).await;
    for (host, origin, status) in [
        ("localhost", None, "403"),
        ("mcp.example", Some("https://evil.example"), "403"),
        ("mcp.example", Some("https://app.example"), "404"),
        ("mcp.example", None, "404"),
    ] {
        let origin = origin.map_or(String::new(), |origin| format!("origin: {origin}\r\n"));
        let request = format!(
            "GET /mcp HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{origin}\
             accept: text/event-stream\r\nmcp-session-id: abc\r\n\r\n"
        );
        let line = raw(&instance.url, request.as_bytes()).await;
        assert!(line.contains(status), "{host} {origin}: {line}");
    }
}

#[tokio::test]
async fn limits_are_told_by_status() {
    let limits = limits()
        .to_builder()
        .open_streams(1)
        .event_bytes(4_000)
        .stream_bytes(4_000)
        .session_bytes(4_000)
        .principal_bytes(4_000)
        .build()
        .unwrap();
    let transport = transport().with_adapter(MemoryAdapter::new(limits));
    let instance = Instance::of("a", transport).await;
    let mut client = Client::new(Duration::from_secs(20));
    client.initialize(&instance.url).await.unwrap();
    let url = &instance.url;
    let mut running = client.call(url, 1, "count", json!({"n": 1})).await.unwrap();
    let request = json!({"jsonrpc": "2.0", "id": 2, "method": "ping"});
    let refused = client.post(url, &request).await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    instance.probe.steps.add_permits(1);
    running.counted().await.unwrap();
    // What is kept for its resume fills the principal's share.
    client.text(url, "big", json!({"n": 3_700})).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let mut other = client.clone();
        other.session = None;
        other.initialize_as(url, "raw").await.unwrap();
        statuses.push(other.text(url, "big", json!({"n": 3_700})).await.is_err());
        let refused = other.post(url, &request).await.unwrap();
        if refused.status() == 429 {
            assert_eq!(refused.headers()["retry-after"], "1");
            return;
        }
    }
    panic!("the principal's share is never used up: {statuses:?}");
}

#[tokio::test]
async fn what_a_client_says_of_itself_is_bounded() {
    let fleet = Fleet::start(Kind::Ours).await;
    let mut client = fleet.client();
    let refused = client
        .initialize_as(&fleet.a.url, &"x".repeat(70_000))
        .await;
    assert_eq!(refused.unwrap_err(), "413");
    client.initialize(&fleet.a.url).await.unwrap();
    let params = json!({"uri": format!("t://{}", "x".repeat(70_000))});
    let mut subscribe = client
        .request(&fleet.a.url, json!(1), "resources/subscribe", params)
        .await
        .unwrap();
    let response = subscribe.response().await.unwrap();
    let told = response["error"]["message"].as_str().unwrap();
    assert_eq!(told, "too many subscriptions in this session");
}
