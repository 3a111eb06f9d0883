//! What our transport offers beyond stock rmcp.

use std::time::Duration;

use mcp_adapter_core::{EventId, SessionId};
use mcp_adapter_transport::ListChanged;
use serde_json::{Value, json};

use crate::{
    client::{Client, text},
    fleet::{Fleet, Kind},
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn ours() -> (Fleet, Client) {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    (fleet, client)
}

#[tokio::test]
async fn a_question_survives_the_move_of_its_stream() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    let mut call = client
        .call(url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    // Lost before anything but the priming event has come.
    let primed = call.next().await.unwrap().unwrap();
    assert_eq!(primed.message, Value::Null);
    drop(call);
    let mut moved = client
        .resume(&fleet.b.url, primed.id.as_deref())
        .await
        .unwrap();
    let question = moved.asked().await.unwrap();
    client
        .answer(&fleet.c.url, &question, "from c")
        .await
        .unwrap();
    let response = moved.response().await.unwrap();
    assert_eq!(text(&response).unwrap(), "accept: \"from c\"");
    // A second answer is late, not wrong.
    client
        .answer(&fleet.a.url, &question, "again")
        .await
        .unwrap();
}

#[tokio::test]
async fn streams_are_primed_for_clients_that_understand_it() {
    let (fleet, client) = ours().await;
    let mut call = client
        .call(&fleet.a.url, 7, "whoami", json!({}))
        .await
        .unwrap();
    let first = call.next().await.unwrap().unwrap();
    // Readers in use end a stream at `retry`, so it comes with its end alone.
    assert_eq!((first.retry, &first.message), (None, &Value::Null));
    let primed: EventId = first.id.unwrap().parse().unwrap();
    let second = call.next().await.unwrap().unwrap();
    let (answered, mark) = second.id.as_deref().unwrap().rsplit_once('-').unwrap();
    let answered: EventId = answered.parse().unwrap();
    assert_eq!(mark, "last");
    assert_eq!(primed.stream, answered.stream);
    assert!(primed.position < answered.position);

    let mut old = fleet.client();
    old.version = Some("2025-06-18");
    old.initialize(&fleet.a.url).await.unwrap();
    let mut call = old
        .call(&fleet.a.url, 7, "whoami", json!({}))
        .await
        .unwrap();
    let first = call.next().await.unwrap().unwrap();
    assert_eq!(first.message["id"], 7);
    // Not a single event without data, but resumable all the same.
    assert!(first.id.is_some());
}

#[tokio::test]
async fn a_resume_takes_the_stream_over() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    fleet.a.probe.steps.add_permits(1);
    let mut first = client.call(url, 1, "count", json!({"n": 2})).await.unwrap();
    first.message().await.unwrap();
    let last = first.last.clone();
    let mut second = client.resume(&fleet.b.url, last.as_deref()).await.unwrap();
    first.ends().await.unwrap();
    fleet.a.probe.steps.add_permits(1);
    let rest = second.counted().await.unwrap();
    assert_eq!(rest, (vec![2], "counted 2".to_owned()));
}

#[tokio::test]
async fn a_second_get_stays_silent_until_the_first_ends() {
    let (fleet, client) = ours().await;
    let mut first = client.resume(&fleet.a.url, None).await.unwrap();
    client
        .text(&fleet.c.url, "log", json!({"n": 1}))
        .await
        .unwrap();
    assert_eq!(first.message().await.unwrap()["params"]["data"], 1);
    let mut second = client.resume(&fleet.b.url, None).await.unwrap();
    client
        .text(&fleet.c.url, "log", json!({"n": 2}))
        .await
        .unwrap();
    for i in 1..=2 {
        assert_eq!(first.message().await.unwrap()["params"]["data"], i);
    }
    let last = first.last.clone().unwrap();
    drop(first);
    client
        .text(&fleet.c.url, "log", json!({"n": 1}))
        .await
        .unwrap();
    let event = second.next().await.unwrap().unwrap();
    let event = if event.message.is_null() {
        second.next().await.unwrap().unwrap()
    } else {
        event
    };
    assert_eq!(event.message["params"]["data"], 1);
    let (last, next): (EventId, EventId) =
        (last.parse().unwrap(), event.id.unwrap().parse().unwrap());
    assert!(next.position > last.position, "{last} {next}");
}

#[tokio::test]
async fn a_handler_closes_its_stream_and_goes_on() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    let mut call = client.call(url, 1, "nap", json!({})).await.unwrap();
    let mut retry = None;
    while let Some(event) = call.next().await.unwrap() {
        retry = event.retry.or(retry);
    }
    assert_eq!(retry, Some(1));
    let last = call.last.clone();
    let mut rest = client.resume(&fleet.b.url, last.as_deref()).await.unwrap();
    fleet.a.probe.steps.add_permits(1);
    let response = rest.response().await.unwrap();
    assert_eq!(text(&response).unwrap(), "rested");
}

#[tokio::test]
async fn all_instances_share_a_session_state() {
    let (fleet, client) = ours().await;
    let urls = [&fleet.a.url, &fleet.b.url, &fleet.c.url];
    let adds = (0..30).map(|i| client.text(urls[i % 3], "add", json!({"n": 2})));
    let sums = futures::future::try_join_all(adds).await.unwrap();
    let mut sums: Vec<u64> = sums.iter().map(|sum| sum.parse().unwrap()).collect();
    sums.sort_unstable();
    assert_eq!(sums, (1..=30).map(|i| 2 * i).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_fleet_is_told_once() {
    let (fleet, client) = ours().await;
    let uri = json!({"uri": "test://watched"});
    for instance in [&fleet.a, &fleet.b, &fleet.c] {
        client
            .text(&instance.url, "whoami", json!({}))
            .await
            .unwrap();
    }
    let mut subscribe = client
        .request(&fleet.b.url, json!(1), "resources/subscribe", uri.clone())
        .await
        .unwrap();
    subscribe.response().await.unwrap();
    let mut listening = client.resume(&fleet.c.url, None).await.unwrap();

    let a = &fleet.a.handle;
    a.broadcast(ListChanged::Tools).await.unwrap();
    a.resource_updated("test://other").await.unwrap();
    a.resource_updated("test://watched").await.unwrap();
    let id: SessionId = client.session.as_deref().unwrap().parse().unwrap();
    let notification = json!({"method": "notifications/message",
        "params": {"level": "info", "data": "the last"}});
    let mut seen = Vec::new();
    loop {
        // The others hear of a broadcast by a signal; one of them may be the
        // one to tell the session.
        let message = listening.message().await.unwrap();
        let method = message["method"].as_str().unwrap().to_owned();
        if method == "notifications/resources/updated" {
            assert_eq!(message["params"], uri);
        }
        if method == "notifications/message" {
            break;
        }
        seen.push(method);
        if seen.len() == 2 {
            fleet
                .b
                .handle
                .notify(&id, serde_json::from_value(notification.clone()).unwrap())
                .await
                .unwrap();
        }
    }
    seen.sort();
    let wanted = [
        "notifications/resources/updated",
        "notifications/tools/list_changed",
    ];
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn settings_of_a_session_hold_at_every_worker() {
    let (fleet, client) = ours().await;
    let set = async |url: &str, method: &str, params: Value| {
        let mut set = client.request(url, json!(1), method, params).await.unwrap();
        assert_eq!(set.response().await.unwrap()["result"], json!({}));
    };
    client
        .text(&fleet.b.url, "whoami", json!({}))
        .await
        .unwrap();
    set(&fleet.a.url, "logging/setLevel", json!({"level": "error"})).await;
    set(&fleet.a.url, "resources/subscribe", json!({"uri": "t://1"})).await;
    set(&fleet.b.url, "resources/subscribe", json!({"uri": "t://2"})).await;
    // B had a worker before, C has none yet.
    for instance in [&fleet.b, &fleet.c, &fleet.a] {
        let uris = client.text(&instance.url, "uris", json!({})).await.unwrap();
        let mut uris: Vec<_> = uris.split(' ').collect();
        uris.sort_unstable();
        assert_eq!(uris, ["t://1", "t://2"], "{}", instance.probe.name);
        let level = client
            .text(&instance.url, "level", json!({}))
            .await
            .unwrap();
        assert_eq!(level, "error");
    }
    set(
        &fleet.c.url,
        "resources/unsubscribe",
        json!({"uri": "t://1"}),
    )
    .await;
    set(&fleet.c.url, "logging/setLevel", json!({"level": "debug"})).await;
    // Without a request at A: by a signal.
    assert!(fleet.a.probe.sees("level replayed", PATIENCE).await);
    let uris = client.text(&fleet.a.url, "uris", json!({})).await.unwrap();
    assert_eq!(uris, "t://2");
}

#[tokio::test]
async fn a_cancelled_call_takes_its_questions_along() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    let mut call = client
        .call(url, 5, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = call.asked().await.unwrap();
    let params = json!({"requestId": 5});
    client
        .tell(&fleet.b.url, "notifications/cancelled", params)
        .await
        .unwrap();
    let rest = call.rest().await.unwrap();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0]["params"]["requestId"], question["id"]);
    client
        .answer(&fleet.b.url, &question, "late")
        .await
        .unwrap();
    // A handler that does not stop is nobody's problem.
    let mut stubborn = client.call(url, 6, "stubborn", json!({})).await.unwrap();
    assert!(fleet.a.probe.sees("stubborn", PATIENCE).await);
    let params = json!({"requestId": 6});
    client
        .tell(&fleet.c.url, "notifications/cancelled", params)
        .await
        .unwrap();
    stubborn.ends().await.unwrap();
    fleet.a.probe.steps.add_permits(1);
    assert_eq!(client.text(url, "whoami", json!({})).await.unwrap(), "a");
}

#[tokio::test]
async fn progress_of_the_client_reaches_the_handler_that_asks() {
    let (fleet, client) = ours().await;
    let url = &fleet.a.url;
    let mut call = client
        .call(url, 1, "ask", json!({"message": "?"}))
        .await
        .unwrap();
    let question = call.asked().await.unwrap();
    let token = &question["params"]["_meta"]["progressToken"];
    assert!(token.is_string(), "{question}");
    for (instance, progress) in [(&fleet.b, 1), (&fleet.a, 2)] {
        let params = json!({"progressToken": token, "progress": progress});
        client
            .tell(&instance.url, "notifications/progress", params)
            .await
            .unwrap();
        let what = format!("progress {progress}");
        assert!(fleet.a.probe.sees(&what, PATIENCE).await, "{what}");
    }
    client.answer(url, &question, "done").await.unwrap();
    call.response().await.unwrap();
}

#[tokio::test]
async fn custom_notifications_reach_every_worker() {
    let (fleet, client) = ours().await;
    client
        .text(&fleet.b.url, "whoami", json!({}))
        .await
        .unwrap();
    client
        .tell(&fleet.c.url, "notifications/custom", json!({"x": 1}))
        .await
        .unwrap();
    for instance in [&fleet.a, &fleet.b] {
        assert!(instance.probe.sees("notifications/custom", PATIENCE).await);
    }
}

#[tokio::test]
async fn a_replay_is_what_was_sent() {
    let (fleet, client) = ours().await;
    let mut call = client
        .call(&fleet.a.url, "odd", "odd", json!({}))
        .await
        .unwrap();
    let primed = call.next().await.unwrap().unwrap();
    let sent = call.next().await.unwrap().unwrap();
    for instance in [&fleet.a, &fleet.b] {
        let mut again = client
            .resume(&instance.url, primed.id.as_deref())
            .await
            .unwrap();
        let mut replayed = again.next().await.unwrap().unwrap();
        while replayed.message.is_null() {
            replayed = again.next().await.unwrap().unwrap();
        }
        assert_eq!(replayed, sent);
    }
    assert_eq!(
        sent.message["result"]["structuredContent"]["big"],
        9_007_199_254_740_993_u64
    );
    // The response itself was the last event: nothing is left.
    let rest = client.get(&fleet.c.url, sent.id.as_deref()).await.unwrap();
    assert_eq!(rest.status(), 204);
}
