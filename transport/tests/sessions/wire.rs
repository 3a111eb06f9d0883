//! What goes over the wire, byte by byte, for clients that forgive nothing.

use std::time::Duration;

use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::StreamableHttpTransport;
use serde_json::{Value, json};

use crate::{
    client::Client,
    fleet::{Fleet, Instance, Kind, limits, transport},
    raw::ask,
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn ours() -> (Fleet, Client) {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    (fleet, client)
}

/// Without a session, and one of a transport that has none.
async fn stateless() -> (Instance, Client) {
    let instance = Instance::of("s", StreamableHttpTransport::new()).await;
    (instance, Client::new(PATIENCE))
}

fn initialize(id: &str, version: &str) -> String {
    let params = json!({
        "protocolVersion": version,
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    });
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{params}}}"#)
}

fn tool(id: &str, name: &str, arguments: &Value, meta: &Value) -> String {
    let params = json!({"name": name, "arguments": arguments, "_meta": meta});
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}"#)
}

const MODERN: [(&str, &str); 3] = [
    ("mcp-protocol-version", "2026-07-28"),
    ("mcp-method", "tools/call"),
    ("mcp-name", "whoami"),
];

fn modern_meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    })
}

#[tokio::test]
async fn every_message_names_its_event() {
    let (fleet, client) = ours().await;
    let (alone, stranger) = stateless().await;
    let url = &fleet.a.url;
    let none = json!({});
    let whoami = tool("1", "whoami", &none, &none);
    let modern = tool("1", "whoami", &none, &modern_meta());
    for (client, url, headers, body) in [
        (&stranger, url, &[][..], &initialize("0", "2025-11-25")),
        (&client, url, &[], &whoami),
        (&stranger, url, &MODERN, &modern),
        (&stranger, &alone.url, &[], &initialize("0", "2025-06-18")),
        (&stranger, &alone.url, &[], &whoami),
        (&stranger, &alone.url, &MODERN, &modern),
    ] {
        let answer = ask(client, "POST", url, headers, body).await;
        let messages = answer.messages();
        assert_eq!(messages.len(), 1, "{answer:?}");
    }
    // What a listener gets, up to where it is sent away.
    let listening = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { ask(&client, "GET", &url, &[], "").await })
    };
    let first = client.text(url, "log", json!({"n": 1})).await;
    assert_eq!(first.unwrap(), "logged 1");
    fleet.a.handle.drain(PATIENCE).await;
    let mut answer = listening.await.unwrap();
    // It is told when to come back by the last event, and by no other.
    let (before, last) = answer.body.trim_end().rsplit_once("\n\n").unwrap();
    assert_eq!(last, "retry: 1000\ndata:");
    answer.body = format!("{before}\n\n");
    for message in answer.messages() {
        assert!(message.contains("notifications/message"), "{message}");
    }
}

#[tokio::test]
async fn a_message_is_one_line_whatever_is_in_it() {
    let (fleet, client) = ours().await;
    let odd = "a\u{2028}b\u{2029}c\u{85}d\re\nf\u{feff}";
    let echo = tool("1", "echo", &json!({"message": odd}), &json!({}));
    let answer = ask(&client, "POST", &fleet.a.url, &[], &echo).await;
    let [message] = answer.messages()[..] else {
        panic!("{answer:?}");
    };
    let ends = ['\r', '\u{85}', '\u{2028}', '\u{2029}'];
    assert!(!answer.body.contains(ends), "{answer:?}");
    let message: Value = serde_json::from_str(message).unwrap();
    assert_eq!(message["result"]["content"][0]["text"], odd);
}

#[tokio::test]
async fn initialize_in_a_session_is_refused() {
    let (fleet, client) = ours().await;
    let instances = [&fleet.a, &fleet.b];
    let seen = || instances.map(|instance| instance.probe.times("initialize"));
    let before = seen();
    for instance in instances {
        let again = initialize("5", "2025-06-18");
        let answer = ask(
            &client,
            "POST",
            &instance.url,
            &[("mcp-protocol-version", "-")],
            &again,
        )
        .await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.rpc_error(), (-32600, json!(5)));
        assert_eq!(answer.header("mcp-session-id"), None);
    }
    assert_eq!(seen(), before);
    assert_eq!(instances.map(|i| i.probe.times("restored")), [0, 0]);
    let who = client.text(&fleet.b.url, "whoami", json!({})).await;
    assert_eq!(who.unwrap(), "b");
    // Of no session, and of somebody else's: as any other request.
    let unknown = Client {
        session: Some("unknown".into()),
        ..client.clone()
    };
    for client in [unknown, client.as_user("mallory")] {
        let header = if client.user.is_some() {
            ("x-user", "mallory")
        } else {
            ("x-user", "-")
        };
        let answer = ask(
            &client,
            "POST",
            &fleet.a.url,
            &[header, ("mcp-protocol-version", "-")],
            &initialize("5", "2025-11-25"),
        )
        .await;
        assert_eq!(answer.status, 404, "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_message_gets_a_json_rpc_error() {
    let (fleet, client) = ours().await;
    let (alone, stranger) = stateless().await;
    for (body, code, id) in [
        ("{bad", -32700, Value::Null),
        ("", -32700, Value::Null),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\ud800"}}"#,
            -32700,
            Value::Null,
        ),
        ("\u{feff}", -32700, Value::Null),
        (r#"{"id":1,"method":"ping"}"#, -32600, json!(1)),
        (
            r#"{"method":"notifications/initialized"}"#,
            -32600,
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"1.0","id":"x","method":"ping"}"#,
            -32600,
            json!("x"),
        ),
        ("{}", -32600, Value::Null),
        ("7", -32600, Value::Null),
        (
            r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
            -32600,
            json!(1.5),
        ),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            -32600,
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#,
            -32600,
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}"#,
            -32600,
            json!(9_223_372_036_854_775_808_u64),
        ),
    ] {
        for (client, url) in [
            (&client, &fleet.a.url),
            (&stranger, &fleet.a.url),
            (&stranger, &alone.url),
        ] {
            let answer = ask(client, "POST", url, &[], body).await;
            assert_eq!(answer.status, 400, "{body}: {answer:?}");
            assert_eq!(answer.rpc_error(), (code, id.clone()), "{body}");
            let text = if code == -32700 {
                "Parse error"
            } else {
                "Invalid Request"
            };
            assert!(
                answer.body.contains(&format!(r#""message":"{text}""#)),
                "{answer:?}"
            );
        }
    }
    let who = client.text(&fleet.a.url, "whoami", json!({})).await;
    assert_eq!(who.unwrap(), "a");
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_a_message() {
    let (fleet, client) = ours().await;
    let body = format!("\u{feff}{}", tool("1", "whoami", &json!({}), &json!({})));
    let answer = ask(&client, "POST", &fleet.a.url, &[], &body).await;
    assert_eq!(answer.messages().len(), 1);
}

#[tokio::test]
async fn accept_is_read_as_http_says() {
    let (fleet, client) = ours().await;
    let (alone, stranger) = stateless().await;
    let url = &fleet.a.url;
    let whoami = tool("1", "whoami", &json!({}), &json!({}));
    let send = async |accept: &str, client, url| {
        ask(client, "POST", url, &[("accept", accept)], &whoami).await
    };
    for accept in [
        "*/*",
        "application/*, text/*",
        "application/*;q=0.1, text/event-stream",
        "-",
    ] {
        for (client, url) in [(&client, url), (&stranger, &alone.url)] {
            assert_eq!(
                send(accept, client, url).await.messages().len(),
                1,
                "{accept}"
            );
        }
        let mut get = client
            .http
            .get(url)
            .header("mcp-session-id", client.session.as_ref().unwrap());
        if accept != "-" {
            get = get.header("accept", accept);
        }
        assert_eq!(get.send().await.unwrap().status(), 200, "{accept}");
    }
    for accept in [
        "application/json",
        "text/event-stream",
        "*/*, text/event-stream;q=0",
        "text/html",
    ] {
        let answer = send(accept, &client, url).await;
        assert_eq!((answer.status, answer.kind()), (406, TEXT), "{accept}");
        assert_eq!(
            answer.body,
            "Not Acceptable: the client must accept application/json and text/event-stream"
        );
    }
    let answer = ask(&client, "GET", url, &[("accept", "application/json")], "").await;
    assert_eq!((answer.status, answer.kind()), (406, TEXT));
    assert_eq!(
        answer.body,
        "Not Acceptable: the client must accept text/event-stream"
    );
}

const TEXT: &str = "text/plain; charset=utf-8";

#[tokio::test]
async fn errors_are_fixed_texts_of_a_kind() {
    let (fleet, client) = ours().await;
    let (alone, stranger) = stateless().await;
    let url = &fleet.a.url;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let not_json = "Unsupported Media Type: Content-Type must be application/json";
    let forbidden = "Forbidden: Host or Origin is not allowed";
    for (client, url, method, header, status, text) in [
        (
            &client,
            url,
            "POST",
            ("host", "evil.example"),
            403,
            forbidden,
        ),
        (
            &client,
            url,
            "GET",
            ("host", "evil.example"),
            403,
            forbidden,
        ),
        (&client, url, "PUT", ("x", "y"), 405, "Method Not Allowed"),
        (
            &client,
            url,
            "OPTIONS",
            ("x", "y"),
            405,
            "Method Not Allowed",
        ),
        (
            &stranger,
            &alone.url,
            "GET",
            ("x", "y"),
            405,
            "Method Not Allowed",
        ),
        (
            &stranger,
            &alone.url,
            "DELETE",
            ("x", "y"),
            405,
            "Method Not Allowed",
        ),
        (
            &client,
            url,
            "POST",
            ("content-type", "text/plain"),
            415,
            not_json,
        ),
        (&client, url, "POST", ("content-type", "-"), 415, not_json),
        (
            &client,
            url,
            "GET",
            ("last-event-id", "x"),
            400,
            "Bad Request: unknown event id",
        ),
        (
            &client,
            url,
            "POST",
            ("mcp-protocol-version", "1999-01-01"),
            400,
            "Bad Request: unsupported MCP-Protocol-Version",
        ),
        (
            &stranger,
            url,
            "POST",
            ("x", "y"),
            400,
            "Bad Request: Session ID is required",
        ),
        (
            &stranger,
            url,
            "DELETE",
            ("x", "y"),
            400,
            "Bad Request: Session ID is required",
        ),
    ] {
        let body = if method == "POST" { ping } else { "" };
        let answer = ask(client, method, url, &[header], body).await;
        assert_eq!(
            (answer.status, answer.kind()),
            (status, TEXT),
            "{method} {header:?}"
        );
        assert_eq!(answer.body, text, "{method} {header:?}");
        assert_eq!(
            answer.header("allow").is_some(),
            status == 405,
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn an_id_comes_back_as_it_was_sent() {
    let (fleet, client) = ours().await;
    let (alone, stranger) = stateless().await;
    let url = &fleet.a.url;
    let none = json!({});
    for id in [
        "1.0",
        "10e-1",
        "-0",
        "1",
        "\"1\"",
        "-9.223372036854775808e18",
    ] {
        let expected = format!(r#""id":{id},"#);
        let whoami = tool(id, "whoami", &none, &none);
        let modern = tool(id, "whoami", &none, &modern_meta());
        let wrong = tool(id, "no such tool", &none, &none);
        let init = initialize(id, "2025-11-25");
        for (client, url, headers, body) in [
            (&client, url, &[][..], &whoami),
            (&client, url, &[], &wrong),
            (&stranger, url, &[], &init),
            (&stranger, url, &MODERN, &modern),
            (&stranger, &alone.url, &[], &whoami),
            (&stranger, &alone.url, &[], &init),
        ] {
            let answer = ask(client, "POST", url, headers, body).await;
            let [message] = answer.messages()[..] else {
                panic!("{id}: {answer:?}");
            };
            assert!(message.contains(&expected), "{id}: {message}");
        }
    }
    // An error that a handler gives for `initialize` is no stream.
    let unwanted = initialize("3.0", "2025-11-25").replace("\"raw\"", "\"unwanted\"");
    let answer = ask(&stranger, "POST", url, &[], &unwanted).await;
    assert!(answer.body.contains(r#""id":3.0,"#), "{answer:?}");

    // What refers to a request by its id, in any spelling.
    let call = tool(
        "7.0",
        "count",
        &json!({"n": 2}),
        &json!({"progressToken": "t"}),
    );
    let call = call.replace("\"t\"", "70e-1");
    fleet.a.probe.steps.add_permits(1);
    let running = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { ask(&client, "POST", &url, &[], &call).await })
    };
    assert!(fleet.a.probe.sees("counting", PATIENCE).await);
    while fleet.a.probe.steps.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let cancel =
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7e0}}"#;
    assert_eq!(
        ask(&client, "POST", &fleet.b.url, &[], cancel).await.status,
        202
    );
    assert!(fleet.a.probe.sees("cancelled", PATIENCE).await);
    let answer = running.await.unwrap();
    let [progress] = answer.messages()[..] else {
        panic!("{answer:?}");
    };
    assert!(progress.contains(r#""progressToken":7}"#), "{progress}");
}

#[tokio::test]
async fn an_empty_last_event_id_is_none() {
    let (fleet, client) = ours().await;
    let mut listening = client.resume(&fleet.a.url, Some("")).await.unwrap();
    let primed = listening.next().await.unwrap().unwrap();
    assert_eq!(primed.id.as_deref(), Some("standalone.0.0-h1"));
}

/// The version that has them, and one before it that says nothing of them.
#[tokio::test]
async fn batches_are_served_where_the_version_has_them() {
    let (fleet, _) = ours().await;
    let (alone, stranger) = stateless().await;
    let none = json!({});
    let batch = format!(
        r#"[{},{{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}},{},{{"a":1}}]"#,
        tool("1.0", "whoami", &none, &none),
        tool("\"x\"", "echo", &json!({"message": "y"}), &none),
    );
    let sorted = |messages: Vec<&str>| {
        let messages = messages.into_iter().map(|message| {
            let message: Value = serde_json::from_str(message).unwrap();
            let text = &message["result"]["content"][0]["text"];
            format!("{} {} {}", message["id"], text, message["error"]["code"])
        });
        let mut messages: Vec<_> = messages.collect();
        messages.sort();
        messages
    };
    for version in ["2024-11-05", "2025-03-26"] {
        let mut client = fleet.client();
        client.version = Some(version);
        client.initialize(&fleet.a.url).await.unwrap();
        for headers in [&[][..], &[("mcp-protocol-version", "-")]] {
            let answer = ask(&client, "POST", &fleet.b.url, headers, &batch).await;
            assert_eq!(
                sorted(answer.messages()),
                [r#""x" "y" null"#, r#"1.0 "b" null"#, "null null -32600"]
            );
            assert!(!answer.body.contains("\nid: "), "{answer:?}");
        }
        assert!(fleet.b.probe.sees("roots", PATIENCE).await);
        // Nothing to answer.
        let told = r#" [{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}]"#;
        let answer = ask(&client, "POST", &fleet.a.url, &[], told).await;
        assert_eq!((answer.status, &*answer.body), (202, ""));
        for (bad, code) in [
            ("[", -32700),
            ("[]", -32600),
            (&format!("[{}]", initialize("1", version)), -32600),
            (&format!("[{}1]", "1,".repeat(64)), -32600),
        ] {
            let answer = ask(&client, "POST", &fleet.a.url, &[], bad).await;
            assert_eq!(answer.status, 400);
            assert_eq!(answer.rpc_error(), (code, Value::Null), "{bad}");
        }
        client.session = Some("unknown".into());
        assert_eq!(
            ask(&client, "POST", &fleet.a.url, &[], &batch).await.status,
            404
        );
    }
    let answer = ask(&stranger, "POST", &alone.url, &[], &batch).await;
    assert_eq!(answer.messages().len(), 3, "{answer:?}");

    // Later versions name themselves with each request, and must not batch; one
    // that does not name itself is known by its session.
    for version in ["2025-06-18", "2025-11-25"] {
        let mut client = fleet.client();
        client.version = Some(version);
        client.initialize(&fleet.a.url).await.unwrap();
        let answer = ask(&client, "POST", &fleet.a.url, &[], &batch).await;
        assert_eq!(
            (answer.status, answer.rpc_error()),
            (400, (-32600, Value::Null))
        );
        let unnamed = [("mcp-protocol-version", "-")];
        let answer = ask(&client, "POST", &fleet.a.url, &unnamed, &batch).await;
        assert_eq!(
            (answer.status, answer.rpc_error()),
            (400, (-32600, Value::Null))
        );
    }
}

#[tokio::test]
async fn a_batch_asks_and_is_answered() {
    let (fleet, _) = ours().await;
    let mut client = fleet.client();
    client.version = Some("2025-03-26");
    client.initialize(&fleet.a.url).await.unwrap();
    let ask = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "ask", "arguments": {"message": "?"}}},
        {"jsonrpc": "2.0", "id": 2, "method": "ping"},
    ]);
    let response = client.post(&fleet.a.url, &ask).await.unwrap();
    let mut events = client.events(response).await.unwrap();
    let question = loop {
        let message = events.message().await.unwrap();
        if message["id"] != 2 {
            break message;
        }
    };
    client.answer(&fleet.b.url, &question, "!").await.unwrap();
    loop {
        let message = events.message().await.unwrap();
        if message["id"] == 1 {
            assert_eq!(message["result"]["content"][0]["text"], "accept: \"!\"");
            break;
        }
    }
    events.ends().await.unwrap();
}

/// A refusal of all is one of the batch.
#[tokio::test]
async fn a_batch_that_is_refused_is_refused_as_a_whole() {
    let limits = limits().to_builder().open_streams(1).build().unwrap();
    let instance = Instance::of("a", transport().with_adapter(MemoryAdapter::new(limits))).await;
    let mut client = Client::new(PATIENCE);
    client.version = Some("2025-03-26");
    client.initialize(&instance.url).await.unwrap();
    let url = &instance.url;
    let call = tool("1", "count", &json!({"n": 1}), &json!({}));
    let running = client.call(url, 9, "count", json!({"n": 1})).await.unwrap();
    let answer = ask(&client, "POST", url, &[], &format!("[{call}]")).await;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("1"))
    );
    // One that finds no room among others that do is an error of its own.
    instance.probe.steps.add_permits(1);
    drop(running);
    assert!(instance.probe.sees("counted", PATIENCE).await);
    instance.probe.steps.add_permits(1);
    loop {
        let batch = format!("[{call},{}]", call.replace("\"id\":1", "\"id\":2"));
        let answer = ask(&client, "POST", url, &[], &batch).await;
        // The stream of the call before may still be open.
        if answer.status == 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        let messages = answer.messages();
        let refused = messages.iter().find(|message| message.contains("-32000"));
        assert!(
            refused
                .unwrap()
                .contains(r#""message":"Service Unavailable""#)
        );
        assert!(messages.iter().any(|message| message.contains("counted 1")));
        break;
    }
}
