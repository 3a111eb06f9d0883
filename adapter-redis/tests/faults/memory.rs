//! Servers that are full.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{
    Applied, EngineAdapter, ErrorKind, PrincipalKey, RpcId, SessionAdapter, SessionId,
    SessionRecord, WaiterToken,
    storage::{Cursor, NewSession, Read, Storage},
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

/// Evicted events are trimmed some at a time: those that wait for it are neither
/// read nor counted.
#[tokio::test]
async fn what_is_evicted_and_not_yet_trimmed_is_not_there() {
    const KEPT: usize = 8;
    let server = Redis::start(&[]).unwrap();
    let limits = limits().stream_events(KEPT).build().unwrap();
    let (a, _b) = two(&server.url(), &limits).await;
    let id = SessionId::generate();
    SessionAdapter::create(&a, &id, SessionRecord::default())
        .await
        .unwrap();
    let entered = a.enter(&id, None, Some(&RpcId::Number(1))).await.unwrap();
    let writer = entered.writer.unwrap();
    let storage = a.engine().storage();
    let cursor = Cursor {
        max_events: 100,
        max_bytes: 1 << 20,
        ..Cursor::state_of(id.key(), writer.stream().clone())
    };
    let mut untrimmed = 0;
    for number in 1..=100_u64 {
        writer.append(Bytes::from_static(b"event")).await.unwrap();
        let mut read = storage.read(std::slice::from_ref(&cursor)).await.unwrap();
        let Some(Read::Page { events, state }) = read.pop() else {
            panic!("{read:?}");
        };
        let oldest = number.saturating_sub(KEPT as u64) + 1;
        let found: Vec<_> = events.iter().map(|event| event.position.seq).collect();
        assert_eq!(found, (oldest..=number).collect::<Vec<_>>());
        assert_eq!(state.oldest.map(|oldest| oldest.seq), Some(oldest));
        if number == 60 {
            // It counts, and then the writer goes on natively.
            let bytes = storage.shrink(&id.key(), 1 << 30).await.unwrap();
            assert_eq!(bytes, 5 * KEPT as u64);
        }
        // Answers as the protocol has them.
        let keys = server.command(&["KEYS", "*:e:*"]).unwrap();
        let key = keys.lines().last().unwrap();
        let stored = server.command(&["XLEN", key]).unwrap();
        let stored: usize = stored.trim().trim_start_matches(':').parse().unwrap();
        assert!(stored < KEPT + 16, "{stored} after {number}");
        untrimmed = untrimmed.max(stored.saturating_sub(events.len()));
    }
    assert_eq!(untrimmed, 15, "the test has seen what it is about");
}
