//! Who comes back late, and who need not come back.

use std::time::Duration;

use mcp_adapter_memory::MemoryAdapter;
use serde_json::{Value, json};

use crate::{
    client::Client,
    fleet::{Fleet, Instance, Kind, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn alone(limits: mcp_adapter_core::Limits) -> (Instance, Client) {
    let transport = transport().with_adapter(MemoryAdapter::new(limits));
    let instance = Instance::of("a", transport).await;
    let mut client = Client::new(PATIENCE);
    client.initialize(&instance.url).await.unwrap();
    (instance, client)
}

/// Waits until nothing is stored of a stream.
async fn purged(client: &Client, url: &str, primed: &str) {
    loop {
        let mut resumed = client.resume(url, Some(primed)).await.unwrap();
        let response = resumed.response().await.unwrap();
        if response["error"]["message"] == "this call is no longer known" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn who_has_had_the_outcome_need_not_come_back() {
    let finished_ttl = Duration::from_millis(50);
    let limits = limits()
        .to_builder()
        .finished_ttl(finished_ttl)
        .build()
        .unwrap();
    let (instance, client) = alone(limits).await;
    let url = &instance.url;
    for version in ["2025-11-25", "2025-06-18"] {
        let mut client = client.clone();
        client.version = Some(version);
        client.session = None;
        client.initialize(url).await.unwrap();
        let mut call = client.call(url, 1, "log", json!({"n": 0})).await.unwrap();
        let first = call.next().await.unwrap().unwrap();
        let start = format!("{}.0.0", first.id.unwrap().rsplitn(3, '.').last().unwrap());
        if first.message.is_null() {
            call.response().await.unwrap();
        }
        let last = call.last.clone().unwrap();
        // Nothing that a client has to ignore, and nothing to try again.
        call.ends().await.unwrap();
        assert_eq!(call.last.as_ref(), Some(&last));
        for id in [&last, &format!("{start}-last")] {
            let response = client.get(url, Some(id)).await.unwrap();
            assert_eq!(response.status(), 204, "{id}");
            assert_eq!(response.text().await.unwrap(), "");
        }
        // However late.
        purged(&client, url, &start).await;
        assert_eq!(client.get(url, Some(&last)).await.unwrap().status(), 204);
    }
    // Of no session, and of somebody else's, it says nothing.
    let last = "AAAAAAAAAAA.n1.1.1-last";
    assert_eq!(client.get(url, Some(last)).await.unwrap().status(), 204);
    let mallory = client.as_user("mallory");
    assert_eq!(mallory.get(url, Some(last)).await.unwrap().status(), 404);
}

#[tokio::test]
async fn nothing_is_said_of_a_call_that_its_client_has_cancelled() {
    let finished_ttl = Duration::from_millis(50);
    let limits = limits()
        .to_builder()
        .finished_ttl(finished_ttl)
        .build()
        .unwrap();
    let (instance, client) = alone(limits).await;
    let url = &instance.url;
    let start = async || {
        let mut call = client.call(url, 1, "count", json!({"n": 1})).await.unwrap();
        let primed = call.next().await.unwrap().unwrap().id.unwrap();
        (call, primed)
    };
    let (mut cancelled, mine) = start().await;
    let id = json!({"requestId": 1});
    client
        .tell(url, "notifications/cancelled", id)
        .await
        .unwrap();
    // It ends without a message, and the client has nothing to come back for.
    let end = cancelled.next().await.unwrap().unwrap();
    assert_eq!(end.message, Value::Null);
    let last = end.id.unwrap();
    assert!(last.ends_with("-last"), "{last}");
    cancelled.ends().await.unwrap();
    assert_eq!(client.get(url, Some(&last)).await.unwrap().status(), 204);

    let (mut other, others) = start().await;
    instance.probe.steps.add_permits(1);
    other.response().await.unwrap();
    purged(&client, url, &others).await;
    let mut late = client.resume(url, Some(&mine)).await.unwrap();
    let end = late.next().await.unwrap().unwrap();
    assert_eq!((end.message, end.id.unwrap()), (Value::Null, last));
    late.ends().await.unwrap();
}

/// A client whose socket stalls loses what does not fit, and sees that it did.
#[tokio::test]
async fn a_hole_is_shown_to_the_client() {
    let limits = limits().to_builder().stream_events(4).build().unwrap();
    let (instance, client) = alone(limits).await;
    let url = &instance.url;
    for (level, logs) in [(None, 1), (Some("warning"), 1), (Some("error"), 0)] {
        if let Some(level) = level {
            let level = json!({"level": level});
            let mut set = client
                .request(url, json!(1), "logging/setLevel", level)
                .await
                .unwrap();
            set.response().await.unwrap();
        }
        let mut call = client
            .call(url, 1, "count", json!({"n": 20}))
            .await
            .unwrap();
        let primed = call.next().await.unwrap().unwrap().id.unwrap();
        drop(call);
        let counted = instance.probe.times("counted");
        instance.probe.steps.add_permits(20);
        while instance.probe.times("counted") == counted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (seen, comments) = loop {
            let response = client.get(url, Some(&primed)).await.unwrap();
            let body = response.text().await.unwrap();
            if body.contains("counted 20") {
                let comments = body.matches(": messages are missing here\n").count();
                break (body, comments);
            }
        };
        assert_eq!(comments, 1, "{seen}");
        let shown = seen.matches("notifications/message").count();
        assert_eq!(shown, logs, "{level:?}: {seen}");
        // Whatever is told of the hole has no id.
        let ids = seen.matches("\nid: ").count();
        assert_eq!(
            ids,
            seen.matches("event: message").count() - shown,
            "{seen}"
        );
    }
}

/// Two listeners of one session, each of which comes back with its own last id.
#[tokio::test]
async fn a_listener_that_comes_back_ends_none_that_is_alive() {
    let fleet = Fleet::start(Kind::Ours).await;
    let client = fleet.session().await.unwrap();
    let log = async || {
        let logged = client.text(&fleet.c.url, "log", json!({"n": 1})).await;
        assert_eq!(logged.unwrap(), "logged 1");
    };
    let mut x = client.resume(&fleet.a.url, None).await.unwrap();
    let primed = x.next().await.unwrap().unwrap().id.unwrap();
    assert!(primed.ends_with("-h1"), "{primed}");
    let mut y = client.resume(&fleet.b.url, None).await.unwrap();
    drop(x);
    // It is Y's turn.
    let began = y.next().await.unwrap().unwrap().id.unwrap();
    assert!(began.ends_with("-h2"), "{began}");
    let mut x = client.resume(&fleet.c.url, Some(&primed)).await.unwrap();
    for _ in 0..3 {
        log().await;
        assert_eq!(y.message().await.unwrap()["params"]["data"], 1);
    }
    let last = y.last.clone().unwrap();
    drop(y);
    // X had nothing of it, and goes on where Y was.
    let began = x.next().await.unwrap().unwrap();
    assert_eq!(
        (began.message, began.id),
        (Value::Null, Some(format!("{last}-h3")))
    );
    log().await;
    assert_eq!(x.message().await.unwrap()["params"]["data"], 1);
    // Whose socket is half dead gets its stream back at once.
    let last = x.last.clone().unwrap();
    let mut again = client.resume(&fleet.a.url, Some(&last)).await.unwrap();
    log().await;
    assert_eq!(again.message().await.unwrap()["params"]["data"], 1);
    drop(x);
}
