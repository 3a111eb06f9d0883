//! Backends that go away, owners that freeze, principals that are others.

use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::Readiness;
use serde_json::json;

use crate::{
    client::{Client, text},
    flaky::{Flaky, SECRET},
    fleet::{Fleet, Instance, Kind, limits, transport},
};

async fn flaky() -> (Instance, Flaky, Client) {
    let adapter = Flaky::new(MemoryAdapter::new(limits()));
    let instance = Instance::of("a", transport().with_adapter(adapter.clone())).await;
    let client = Client::new(std::time::Duration::from_secs(20));
    (instance, adapter, client)
}

#[tokio::test]
async fn a_backend_that_is_away_is_503_and_its_error_stays_here() {
    let (instance, adapter, mut client) = flaky().await;
    let url = &instance.url;
    client.initialize(url).await.unwrap();
    let mut call = client
        .call(url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = call.asked().await.unwrap();
    let last = call.last.clone();
    assert_eq!(instance.handle.readiness(), Readiness::Ready);
    adapter.set_broken(true);
    assert_eq!(instance.handle.readiness(), Readiness::Unavailable);

    let request = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
    let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    }});
    let notification = json!({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"});
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
        "params": {"requestId": 1}});
    let answer = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}});
    let stranger = Client {
        session: None,
        ..client.clone()
    };
    let responses = [
        client.post(url, &request).await.unwrap(),
        client.post(url, &notification).await.unwrap(),
        client.post(url, &cancel).await.unwrap(),
        client.post(url, &answer).await.unwrap(),
        client.get(url, None).await.unwrap(),
        client.get(url, last.as_deref()).await.unwrap(),
        stranger.post(url, &initialize).await.unwrap(),
    ];
    for (i, response) in responses.into_iter().enumerate() {
        assert_eq!(response.status(), 503, "{i}");
        assert_eq!(response.headers()["retry-after"], "1", "{i}");
        assert!(!format!("{:?}", response.headers()).contains("secret"));
        assert_eq!(response.text().await.unwrap(), "Service Unavailable", "{i}");
    }
    assert_eq!(client.delete(url).await.unwrap(), 503);

    adapter.set_broken(false);
    client.answer(url, &question, "still there").await.unwrap();
    let response = call.response().await.unwrap();
    assert_eq!(text(&response).unwrap(), "accept: \"still there\"");
}

#[tokio::test]
async fn a_handler_that_cannot_ask_learns_nothing_of_the_backend() {
    let (instance, adapter, mut client) = flaky().await;
    client.initialize(&instance.url).await.unwrap();
    let started = client
        .call(&instance.url, 1, "count", json!({"n": 1}))
        .await
        .unwrap();
    assert!(instance.probe.sees("counting", client.patience).await);
    adapter.set_broken(true);
    // Enters before the backend goes away, asks after it has.
    instance.probe.steps.add_permits(1);
    let mut started = started;
    let response = started.response().await.unwrap();
    assert_eq!(text(&response).unwrap(), "counted 1");
    // It could not be stored: it came aside, and whoever has it has had all.
    let last = started.last.unwrap();
    assert!(last.ends_with(".0.0-last"), "{last}");
    assert!(!response.to_string().contains(SECRET));
}

#[tokio::test]
async fn a_response_that_cannot_be_stored_is_an_error_of_its_call() {
    let limits = limits().to_builder().event_bytes(10_000).build().unwrap();
    let transport = transport().with_adapter(MemoryAdapter::new(limits));
    let instance = Instance::of("a", transport).await;
    let mut client = Client::new(std::time::Duration::from_secs(20));
    client.initialize(&instance.url).await.unwrap();
    let url = &instance.url;
    let mut call = client
        .call(url, "x", "big", json!({"n": 20_000}))
        .await
        .unwrap();
    let response = call.response().await.unwrap();
    assert_eq!(response["id"], "x");
    assert_eq!(
        response["error"]["message"],
        "the response is larger than this server allows"
    );
    // An event with an id, as any other outcome.
    assert!(call.last.unwrap().ends_with(".1.1-last"));
    let small = client.text(url, "big", json!({"n": 9_000})).await.unwrap();
    assert_eq!(small.len(), 9_000);
    // A handler that says too much is told so, and goes on.
    let told = client
        .text(url, "shout", json!({"n": 20_000}))
        .await
        .unwrap();
    assert!(told.contains("the message is too large"), "{told}");
    let told = client
        .text(url, "shout", json!({"n": 9_000}))
        .await
        .unwrap();
    assert_eq!(told, "heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_owner_loses_its_call_and_learns_it_when_it_thaws() {
    let fleet = Fleet::with_a_apart(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    // B has to know A to find it dead.
    client
        .text(&fleet.b.url, "whoami", json!({}))
        .await
        .unwrap();
    fleet.a.probe.steps.add_permits(1);
    let url = &fleet.a.url;
    let mut call = client.call(url, 1, "count", json!({"n": 9})).await.unwrap();
    call.message().await.unwrap();
    let thaw = fleet.a.freeze().await;

    let last = call.last.clone();
    let mut rest = client.resume(&fleet.b.url, last.as_deref()).await.unwrap();
    let response = rest.response().await.unwrap();
    assert_eq!(response["id"], 1);
    assert!(response["error"].is_object(), "{response}");

    drop(thaw);
    assert!(fleet.a.probe.sees("cancelled", client.patience).await);
    // The session is served as ever, by both.
    for instance in [&fleet.a, &fleet.b] {
        let who = client.text(&instance.url, "whoami", json!({})).await;
        assert_eq!(who.unwrap(), instance.probe.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_dies_while_it_asks_leaves_nobody_waiting() {
    let mut fleet = Fleet::with_a_apart(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let url = fleet.a.url.clone();
    let mut call = client
        .call(&url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = call.asked().await.unwrap();
    let last = call.last.clone();
    fleet.a.kill().await;
    let mut rest = client.resume(&fleet.b.url, last.as_deref()).await.unwrap();
    let response = rest.response().await.unwrap();
    assert!(response["error"].is_object(), "{response}");
    // Told once, however often the client comes back.
    let told = rest.last.clone();
    let again = client.get(&fleet.c.url, told.as_deref()).await.unwrap();
    assert_eq!(again.status(), 204);
    // Too late, but no error: it was asked.
    client
        .answer(&fleet.b.url, &question, "late")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_restore_lets_nobody_else_in() {
    let fleet = Fleet::start(Kind::Ours).await;
    let mut alice = fleet.client().as_user("alice");
    alice.initialize_as(&fleet.a.url, "slow").await.unwrap();
    let url = fleet.b.url.clone();
    let waiting = {
        let (alice, url) = (alice.clone(), url.clone());
        tokio::spawn(async move { alice.text(&url, "principal", json!({})).await })
    };
    assert!(fleet.b.probe.sees("restored", alice.patience).await);
    // The restore hangs in the handler's `initialize`.
    let mallory = alice.as_user("mallory");
    let nobody = Client {
        user: None,
        ..alice.clone()
    };
    for client in [&mallory, &nobody] {
        let post = client.text(&url, "principal", json!({})).await;
        assert_eq!(post.unwrap_err(), "404");
        assert_eq!(client.get(&url, None).await.unwrap().status(), 404);
        assert_eq!(client.delete(&url).await.unwrap(), 404);
        let told = client
            .tell(&url, "notifications/roots/list_changed", json!({}))
            .await;
        assert_eq!(told.unwrap_err(), "404");
    }
    let second = {
        let (alice, url) = (alice.clone(), url.clone());
        tokio::spawn(async move { alice.text(&url, "principal", json!({})).await })
    };
    fleet.b.probe.steps.add_permits(1);
    assert_eq!(waiting.await.unwrap().unwrap(), "alice");
    assert_eq!(second.await.unwrap().unwrap(), "alice");
    assert_eq!(fleet.b.probe.times("restored"), 1);
    assert_eq!(fleet.b.probe.times("roots"), 0);
}

#[tokio::test]
async fn a_request_that_goes_away_does_not_take_the_restore_along() {
    let fleet = Fleet::start(Kind::Ours).await;
    let mut client = fleet.client();
    client.initialize_as(&fleet.a.url, "slow").await.unwrap();
    let gone = {
        let (client, url) = (client.clone(), fleet.b.url.clone());
        tokio::spawn(async move { client.text(&url, "whoami", json!({})).await })
    };
    assert!(fleet.b.probe.sees("restored", client.patience).await);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    fleet.b.probe.steps.add_permits(1);
    let who = client.text(&fleet.b.url, "whoami", json!({})).await;
    assert_eq!(who.unwrap(), "b");
    assert_eq!(fleet.b.probe.times("restored"), 1);
}

#[tokio::test]
async fn a_deleted_session_ends_its_running_calls() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let mut call = client
        .call(&fleet.a.url, 1, "count", json!({"n": 2}))
        .await
        .unwrap();
    assert!(fleet.a.probe.sees("counting", client.patience).await);
    assert_eq!(client.delete(&fleet.b.url).await.unwrap(), 200);
    let response = call.response().await.unwrap();
    assert_eq!(response["error"]["message"], "the session has ended");
    assert!(fleet.a.probe.sees("cancelled", client.patience).await);
    assert_eq!(client.delete(&fleet.c.url).await.unwrap(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_whose_instance_dies_comes_back_to_its_place() {
    let mut fleet = Fleet::with_a_apart(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let mut listening = client.resume(&fleet.a.url, None).await.unwrap();
    let primed = listening.next().await.unwrap().unwrap();
    assert_eq!(primed.id.as_deref(), Some("standalone.0.0-h1"));
    fleet.a.kill().await;
    client
        .text(&fleet.b.url, "log", json!({"n": 2}))
        .await
        .unwrap();
    let mut listening = client
        .resume(&fleet.c.url, primed.id.as_deref())
        .await
        .unwrap();
    for i in 1..=2 {
        assert_eq!(listening.message().await.unwrap()["params"]["data"], i);
    }
    // A further plain GET waits for its turn and is told where it begins then:
    // not at the start.
    let mut plain = client.resume(&fleet.b.url, None).await.unwrap();
    let last = listening.last.clone().unwrap();
    drop(listening);
    let primed = plain.next().await.unwrap().unwrap();
    assert_eq!(primed.message, serde_json::Value::Null);
    let (place, hold) = primed.id.as_deref().unwrap().split_once('-').unwrap();
    assert_eq!(place, last);
    assert!(hold.starts_with('h'), "{hold}");
}
