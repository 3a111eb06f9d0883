//! What clients are asked, and what they hear when nobody waits for their answer
//! any more.

use std::time::Duration;

use mcp_adapter_core::{Answer, ClientRequestAdapter, Delivery, RpcId, SessionAdapter, SessionId};
use mcp_adapter_memory::MemoryAdapter;
use serde_json::{Value, json};

use crate::{
    client::{Client, Events, text},
    flaky::Flaky,
    fleet::{Fleet, Instance, Kind, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn form() -> Value {
    json!({"method": "elicitation/create", "params": {
        "message": "?",
        "requestedSchema": {"type": "object", "properties": {"answer": {"type": "string"}}},
    }})
}

/// A fleet, a session of it, and a question of `tool` that was asked at A.
async fn asked(tool: &str) -> (Fleet, Client, Events, Value) {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let (call, question) = ask(&client, &fleet.a.url, tool).await;
    (fleet, client, call, question)
}

async fn ask(client: &Client, url: &str, tool: &str) -> (Events, Value) {
    let arguments = json!({"request": form()});
    let mut call = client.call(url, 1, tool, arguments).await.unwrap();
    let question = call.asked().await.unwrap();
    (call, question)
}

fn void(question: &Value, reason: &str) -> Value {
    let params = json!({"requestId": question["id"], "reason": reason});
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
}

/// What the messages are about, in their order.
fn said(messages: &[Value]) -> Vec<String> {
    let said = messages.iter().map(|message| {
        if message["method"] == "notifications/cancelled" {
            format!("void: {}", message["params"]["reason"].as_str().unwrap())
        } else {
            text(message).unwrap_or_else(|error| error)
        }
    });
    said.collect()
}

fn session_of(client: &Client) -> SessionId {
    client.session.as_deref().unwrap().parse().unwrap()
}

fn id_of(question: &Value) -> RpcId {
    serde_json::from_value(question["id"].clone()).unwrap()
}

/// Waits until the store has forgotten a question.
async fn forgotten(adapter: &MemoryAdapter, client: &Client, question: &Value) {
    let (session, id) = (session_of(client), id_of(question));
    let look = async {
        loop {
            let answer = Answer::Result("{}".into());
            let delivery = adapter.answer(&session, &id, answer).await.unwrap();
            assert_ne!(delivery, Delivery::Delivered);
            if delivery == Delivery::Unknown {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap();
}

#[tokio::test]
async fn an_answer_is_never_too_late() {
    let limits = limits()
        .to_builder()
        .result_ttl(Duration::from_millis(50))
        .build()
        .unwrap();
    let adapter = MemoryAdapter::new(limits);
    let a = Instance::of("a", transport().with_adapter(adapter.clone())).await;
    let b = Instance::of("b", transport().with_adapter(adapter.instance())).await;
    let mut client = Client::new(PATIENCE);
    client.initialize(&a.url).await.unwrap();
    let mut other = Client::new(PATIENCE);
    other.initialize(&a.url).await.unwrap();

    let (mut answered, first) = ask(&client, &a.url, "send").await;
    client.answer(&b.url, &first, "in time").await.unwrap();
    answered.response().await.unwrap();
    let (mut cancelled, second) = ask(&client, &a.url, "send").await;
    let params = json!({"requestId": 1});
    client
        .tell(&b.url, "notifications/cancelled", params)
        .await
        .unwrap();
    cancelled.rest().await.unwrap();

    for question in [first, second] {
        forgotten(&adapter, &client, &question).await;
        for url in [&a.url, &b.url] {
            client.answer(url, &question, "late").await.unwrap();
            let error = json!({"code": -1, "message": "late"});
            let error = json!({"jsonrpc": "2.0", "id": question["id"], "error": error});
            assert_eq!(client.post(url, &error).await.unwrap().status(), 202);
            let foreign = other.answer(url, &question, "not mine").await;
            assert_eq!(foreign.unwrap_err(), "400");
        }
        let id = question["id"].as_str().unwrap();
        let (rest, last) = id.split_at(id.len() - 1);
        let forged = format!("{rest}{}", if last == "0" { "1" } else { "0" });
        let forged = client.answer(&b.url, &json!({"id": forged}), "!").await;
        assert_eq!(forged.unwrap_err(), "400");
    }
}

#[tokio::test]
async fn a_client_hears_that_its_time_is_over() {
    let transport = transport()
        .with_adapter(MemoryAdapter::new(limits()))
        .with_client_request_timeout(Duration::from_millis(50));
    let instance = Instance::of("a", transport).await;
    let mut client = Client::new(PATIENCE);
    client.initialize(&instance.url).await.unwrap();
    let (mut call, question) = ask(&client, &instance.url, "send").await;
    let rest = call.rest().await.unwrap();
    assert_eq!(rest[0], void(&question, "the request timed out"));
    assert_eq!(said(&rest[1..]), ["refused -32001 null"]);

    // Of no call.
    let mut listening = client.resume(&instance.url, None).await.unwrap();
    let arguments = json!({"request": form()});
    client
        .text(&instance.url, "ask aside", arguments)
        .await
        .unwrap();
    let question = listening.asked().await.unwrap();
    let told = listening.message().await.unwrap();
    assert_eq!(told, void(&question, "the request timed out"));
    assert!(instance.probe.sees("refused -32001 null", PATIENCE).await);
    client
        .answer(&instance.url, &question, "late")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_hears_that_a_handler_gives_up() {
    let (fleet, _, mut call, question) = asked("give up").await;
    fleet.a.probe.steps.add_permits(1);
    let rest = call.rest().await.unwrap();
    assert_eq!(rest[0], void(&question, "no longer needed"));
    assert_eq!(said(&rest[1..]), ["given up"]);
}

#[tokio::test]
async fn a_client_hears_that_the_call_ends_without_its_answer() {
    for (tool, end) in [("leave", "left"), ("break", "error: \"Internal error\"")] {
        let (fleet, client, mut call, question) = asked(tool).await;
        fleet.a.probe.steps.add_permits(1);
        let rest = call.rest().await.unwrap();
        assert_eq!(rest[0], void(&question, "the call has ended"), "{tool}");
        assert_eq!(said(&rest[1..]), [end]);
        client
            .answer(&fleet.b.url, &question, "late")
            .await
            .unwrap();
        let stats = fleet.b.adapter.as_ref().unwrap().stats().await.unwrap();
        assert_eq!(stats.pending_requests.value(), 0);
    }
}

#[tokio::test]
async fn a_client_that_cancels_a_call_hears_that_its_questions_are_void() {
    let (fleet, client, mut call, question) = asked("send").await;
    let params = json!({"requestId": 1});
    client
        .tell(&fleet.b.url, "notifications/cancelled", params)
        .await
        .unwrap();
    let rest = call.rest().await.unwrap();
    assert_eq!(rest, [void(&question, "the call was cancelled")]);
    client
        .answer(&fleet.b.url, &question, "late")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_hears_that_a_drained_instance_waits_no_longer() {
    let (fleet, client, mut call, question) = asked("send").await;
    let arguments = json!({"request": form()});
    client
        .text(&fleet.a.url, "ask aside", arguments)
        .await
        .unwrap();
    let mut listening = client.resume(&fleet.b.url, None).await.unwrap();
    let aside = listening.asked().await.unwrap();
    assert_eq!(fleet.a.handle.drain(Duration::ZERO).await.aborted, 0);
    let rest = call.rest().await.unwrap();
    assert_eq!(rest[0], void(&question, "the server is shutting down"));
    assert_eq!(said(&rest[1..]), ["refused -32000 null"]);
    let told = listening.message().await.unwrap();
    assert_eq!(told, void(&aside, "the server is shutting down"));
    client
        .answer(&fleet.b.url, &question, "late")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_hears_that_a_question_was_withdrawn_from_outside() {
    let (fleet, client, mut call, question) = asked("send").await;
    let adapter = fleet.b.adapter.as_ref().unwrap();
    let (session, id) = (session_of(&client), id_of(&question));
    ClientRequestAdapter::cancel(adapter, &session, &id)
        .await
        .unwrap();
    let rest = call.rest().await.unwrap();
    assert_eq!(rest[0], void(&question, "the request was withdrawn"));
    assert_eq!(said(&rest[1..]), ["refused -32000 null"]);
}

#[tokio::test]
async fn a_client_hears_that_the_store_has_lost_a_question() {
    let adapter = Flaky::new(MemoryAdapter::new(limits()));
    let instance = Instance::of("a", transport().with_adapter(adapter.clone())).await;
    let mut client = Client::new(PATIENCE);
    client.initialize(&instance.url).await.unwrap();
    let (mut call, question) = ask(&client, &instance.url, "send").await;
    adapter.lose_requests();
    let rest = call.rest().await.unwrap();
    assert_eq!(rest[0], void(&question, "the request was lost"));
    assert_eq!(said(&rest[1..]), ["refused -32000 null"]);
}

#[tokio::test]
async fn of_a_session_that_has_ended_nothing_is_void() {
    let (fleet, client, mut call, _) = asked("send").await;
    client.delete(&fleet.b.url).await.unwrap();
    let rest = call.rest().await.unwrap();
    assert_eq!(said(&rest), ["error: \"the session has ended\""]);
}

#[tokio::test]
async fn whoever_has_answered_hears_nothing_more() {
    let (fleet, client, mut call, question) = asked("give up").await;
    // Answered, and then given up by a handler that has not looked.
    client
        .answer(&fleet.b.url, &question, "there")
        .await
        .unwrap();
    fleet.a.probe.steps.add_permits(1);
    assert_eq!(said(&call.rest().await.unwrap()), ["given up"]);

    let (mut call, question) = ask(&client, &fleet.a.url, "send").await;
    client
        .answer(&fleet.c.url, &question, "there")
        .await
        .unwrap();
    let rest = call.rest().await.unwrap();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert!(text(&rest[0]).unwrap().starts_with("answered"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_tells_the_end_of_a_dead_instances_call_tells_of_its_questions() {
    let mut fleet = Fleet::with_a_apart(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let arguments = json!({"requests": [form(), form(), form()]});
    let mut call = client
        .call(&fleet.a.url, 1, "send many", arguments)
        .await
        .unwrap();
    let mut questions = Vec::new();
    for _ in 0..3 {
        questions.push(call.asked().await.unwrap());
    }
    client
        .answer(&fleet.b.url, &questions[1], "there")
        .await
        .unwrap();
    assert!(fleet.a.probe.sees("answered", PATIENCE).await);
    let last = call.last.clone();
    fleet.a.kill().await;
    let mut rest = client.resume(&fleet.b.url, last.as_deref()).await.unwrap();
    let mut told = rest.rest().await.unwrap();
    let gone = "the server instance that ran this call is gone";
    assert_eq!(said(&told[2..]), [format!("error: {gone:?}")]);
    told.truncate(2);
    told.sort_by_key(ToString::to_string);
    let mut wanted = [&questions[0], &questions[2]]
        .map(|question| void(question, "the server instance that asked is gone"));
    wanted.sort_by_key(ToString::to_string);
    assert_eq!(told, wanted);
    // It has been told, and comes back all the same.
    let again = client.get(&fleet.c.url, rest.last.as_deref()).await;
    assert_eq!(again.unwrap().status(), 204);
    for question in &questions {
        client.answer(&fleet.c.url, question, "late").await.unwrap();
    }
}

#[tokio::test]
async fn what_a_client_has_not_declared_it_is_not_asked() {
    let url = json!({"method": "elicitation/create", "params": {"mode": "url",
        "message": "?", "url": "https://example.com/", "elicitationId": "e"}});
    let messages = json!([{"role": "user", "content": {"type": "text", "text": "?"}}]);
    let sample = json!({"method": "sampling/createMessage",
        "params": {"messages": messages, "maxTokens": 1}});
    let mut tools = sample.clone();
    tools["params"]["tools"] = json!([{"name": "t", "inputSchema": {"type": "object"}}]);
    let roots = json!({"method": "roots/list"});

    let fleet = Fleet::start(Kind::Ours).await;
    let mut client = fleet.client();
    client.capabilities = json!({});
    client.initialize(&fleet.a.url).await.unwrap();
    // B has to make a worker from what is stored.
    for instance in [&fleet.a, &fleet.b] {
        for (request, required) in [
            (form(), json!({"elicitation": {"form": {}}})),
            (url.clone(), json!({"elicitation": {"url": {}}})),
            (sample.clone(), json!({"sampling": {}})),
            (tools.clone(), json!({"sampling": {"tools": {}}})),
            (roots.clone(), json!({"roots": {}})),
        ] {
            let arguments = json!({"request": request});
            let mut call = client
                .call(&instance.url, 1, "send", arguments)
                .await
                .unwrap();
            let said = said(&call.rest().await.unwrap());
            let required = json!({"requiredCapabilities": required});
            assert_eq!(said, [format!("refused -32021 {required}")]);
        }
    }
    assert_eq!(fleet.b.probe.times("restored"), 1);
    let stats = fleet.b.adapter.as_ref().unwrap().stats().await.unwrap();
    assert_eq!(stats.pending_requests.value(), 0);

    // Part of it is not enough; what there is suffices.
    let mut client = fleet.client();
    client.capabilities = json!({"elicitation": {"form": {}}, "sampling": {}, "roots": {}});
    client.initialize(&fleet.a.url).await.unwrap();
    for (request, asked) in [
        (form(), true),
        (url, false),
        (sample, true),
        (tools, false),
        (roots, true),
    ] {
        let arguments = json!({"request": request});
        let mut call = client
            .call(&fleet.b.url, 1, "send", arguments)
            .await
            .unwrap();
        assert_eq!(call.asked().await.is_ok(), asked, "{request}");
    }
}
