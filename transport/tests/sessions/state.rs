//! The state that all instances share, over a store that is a round trip away:
//! others run between a read and a write.

use std::time::Duration;

use mcp_adapter_conformance::faults::{Far, Link};
use mcp_adapter_core::{Engine, SessionId};
use mcp_adapter_memory::MemoryStorage;
use serde_json::json;

use crate::{
    client::Client,
    fleet::{Instance, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two instances, and a session that was initialized at the first.
async fn far() -> ([Instance; 2], Client) {
    let store = MemoryStorage::new();
    let make = |name| {
        let engine = Engine::new(Far::new(store.clone(), &Link::new()), limits());
        Instance::of(name, transport().with_adapter(engine))
    };
    let instances = [make("a").await, make("b").await];
    let mut client = Client::new(PATIENCE);
    client.initialize(&instances[0].url).await.unwrap();
    (instances, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_writer_of_a_shared_state_counts() {
    const WRITERS: usize = 60;
    // In a loop around `compare_and_set`, and by `update`.
    for (tool, read) in [("add", "state"), ("visit", "visits")] {
        let (instances, client) = far().await;
        let writers = (0..WRITERS).map(|i| {
            let instance = &instances[i % 2];
            client.text(&instance.url, tool, json!({"n": 1}))
        });
        let counts = futures::future::try_join_all(writers).await.unwrap();
        let mut counts: Vec<usize> = counts.iter().map(|count| count.parse().unwrap()).collect();
        counts.sort_unstable();
        assert_eq!(counts, (1..=WRITERS).collect::<Vec<_>>(), "{tool}");
        for instance in &instances {
            let count = client.text(&instance.url, read, json!({})).await.unwrap();
            assert_eq!(count, WRITERS.to_string(), "{tool}");
        }
    }
}

#[tokio::test]
async fn a_state_of_another_type_is_an_error_and_stays() {
    let (instances, client) = far().await;
    let [a, b] = &instances;
    client.text(&a.url, "add", json!({"n": 5})).await.unwrap();
    let told = client.text(&b.url, "visit", json!({})).await.unwrap();
    assert_eq!(
        told,
        "Corrupt, because: invalid type: integer `5`, expected struct Visits"
    );
    let state = client.text(&b.url, "state", json!({})).await.unwrap();
    assert_eq!(state, "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_told_once_however_many_instances_know_the_session() {
    let (instances, both) = far().await;
    let [a, b] = &instances;
    both.text(&b.url, "whoami", json!({})).await.unwrap();
    let mut listening = both.resume(&a.url, None).await.unwrap();
    // Of this one B alone knows; what it hears last B has told all others before.
    let mut last = Client::new(PATIENCE);
    last.initialize(&b.url).await.unwrap();
    let mut heard = last.resume(&b.url, None).await.unwrap();
    let id: SessionId = both.session.as_deref().unwrap().parse().unwrap();
    for run in 0..8 {
        let (uri, done) = (format!("test://{run}"), format!("test://done/{run}"));
        for (client, uri) in [(&both, &uri), (&last, &done)] {
            let params = json!({"uri": uri});
            let mut subscribed = client
                .request(&b.url, json!(1), "resources/subscribe", params)
                .await
                .unwrap();
            subscribed.response().await.unwrap();
        }
        a.handle.resource_updated(&uri).await.unwrap();
        a.handle.resource_updated(&done).await.unwrap();
        assert_eq!(heard.message().await.unwrap()["params"]["uri"], done);
        let end =
            json!({"method": "notifications/message", "params": {"level": "info", "data": run}});
        let end = serde_json::from_value(end).unwrap();
        b.handle.notify(&id, end).await.unwrap();
        let mut updates = Vec::new();
        loop {
            let message = listening.message().await.unwrap();
            if message["method"] == "notifications/message" {
                break;
            }
            updates.push(message["params"]["uri"].clone());
        }
        assert_eq!(updates, [json!(uri)], "run {run}");
    }
}
