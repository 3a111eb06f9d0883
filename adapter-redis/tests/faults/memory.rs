//! Servers that are full.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{
    Applied, EngineAdapter, ErrorKind, PrincipalKey, RpcId, SessionAdapter, SessionId,
    SessionRecord, WaiterToken,
    storage::{NewSession, Storage},
};
use mcp_adapter_redis::RedisAdapter;

use crate::load::{Expect, Load, eventually, limits, two, works};

fn set(server: &Redis, name: &str, value: &str) {
    server.command(&["CONFIG", "SET", name, value]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_and_takes_again() {
    let server = Redis::start(&["--maxmemory-policy", "noeviction"]).unwrap();
    let (a, b) = two(&server.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 4).await;
    load.goes_on(50).await;
    let id = SessionId::generate();
    SessionAdapter::create(&a, &id, SessionRecord::default())
        .await
        .unwrap();
    for _ in 0..3 {
        set(&server, "maxmemory", "1");
        let new = NewSession {
            session: SessionId::generate().key(),
            principal: PrincipalKey::ANONYMOUS,
            record: Bytes::from_static(b"{}"),
            idle_ttl: Duration::from_secs(60),
            absolute_ttl: None,
            creator: WaiterToken::generate(),
        };
        // The step itself: the engine repeats it until its deadline.
        let error = a.engine().storage().create(&new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        assert_eq!(error.applied(), Applied::No);
        let error = SessionAdapter::append(&a, &id, Bytes::from_static(b"x"))
            .await
            .unwrap_err();
        assert!(error.is_retryable(), "{error}");
        // What is there can be read and deleted.
        a.enter(&id, None, None).await.unwrap();
        set(&server, "maxmemory", "0");
        load.goes_on(50).await;
    }
    assert!(a.delete(&id, None).await.unwrap());
    load.check(Expect::Everything).await;
    works(&a, &b).await;
}

/// Whatever the server evicts, readers are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_evicts_is_no_silent_hole() {
    let server = Redis::start(&["--maxmemory-policy", "allkeys-random"]).unwrap();
    let (a, b) = two(&server.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 8).await;
    load.goes_on(100).await;
    let info = server.command(&["INFO", "memory"]).unwrap();
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .unwrap();
    let used: usize = used.trim().parse().unwrap();
    set(&server, "maxmemory", &(used + (1 << 20)).to_string());
    fill(&a).await;
    let evicted = server.command(&["INFO", "stats"]).unwrap();
    assert!(
        !evicted.contains("evicted_keys:0\r"),
        "something was evicted"
    );
    load.check(Expect::Lost).await;
    set(&server, "maxmemory", "0");
    works(&a, &b).await;
}

/// Streams that the server evicts while their sessions live are written again by
/// their writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicted_streams_of_living_writers_are_there_again() {
    let server = Redis::start(&[]).unwrap();
    let (a, b) = two(&server.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 4).await;
    let mut evicted = 0;
    for _ in 0..20 {
        load.every_call_goes_on(3).await;
        let keys = server.command(&["KEYS", "*:e:*"]).unwrap();
        for key in keys.lines().filter(|line| line.starts_with('{')) {
            evicted += usize::from(server.command(&["DEL", key]).unwrap().trim() == ":1");
        }
    }
    assert!(evicted >= 40, "{evicted}");
    load.every_call_goes_on(3).await;
    load.check(Expect::RepairedForFollowers).await;
}

/// More than fits.
async fn fill(a: &RedisAdapter) {
    for number in 0..600 {
        let id = SessionId::generate();
        let created = SessionAdapter::create(a, &id, SessionRecord::default()).await;
        let Ok(_) = created else { continue };
        let Ok(entered) = a.enter(&id, None, Some(&RpcId::Number(number))).await else {
            continue;
        };
        if let Some(writer) = entered.writer {
            let _ = writer.append(Bytes::from(vec![b'x'; 4096])).await;
            let _ = writer.finish(Some(Bytes::from_static(b"end"))).await;
        }
    }
    eventually("the server answers", async || a.stats().await.ok()).await;
}
