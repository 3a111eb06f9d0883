//! Connections that are killed, cut, frozen, or lose a reply.

use std::time::Duration;

use mcp_adapter_conformance::{
    faults::{Link, Proxy},
    server::Redis,
};
use mcp_adapter_core::{Health, Role, SessionAdapter, SessionId, SessionRecord};
use mcp_adapter_redis::RedisAdapter;
use tokio::time::{Instant, sleep};

use crate::load::{Expect, Load, eventually, limits, noticed, slow_limits, two, works};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_connections_lose_nothing() {
    for protocol in ["resp2", "resp3"] {
        let server = Redis::start(&[]).unwrap();
        let url = format!("{}?protocol={protocol}", server.url());
        let (a, b) = two(&url, &limits().build().unwrap()).await;
        let load = Load::start(&a, &b, 8).await;
        for _ in 0..15 {
            for kind in ["pubsub", "normal"] {
                // The one that asks is left alone.
                server.command(&["CLIENT", "KILL", "TYPE", kind]).unwrap();
                load.goes_on(20).await;
            }
        }
        load.check(Expect::Everything).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_script_cache_is_filled_again() {
    let server = Redis::start(&[]).unwrap();
    let (a, b) = two(&server.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 8).await;
    for _ in 0..30 {
        server.command(&["SCRIPT", "FLUSH"]).unwrap();
        load.goes_on(20).await;
    }
    load.check(Expect::Everything).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_dropped_is_stored_once() {
    let server = Redis::start(&[]).unwrap();
    let link = Link::new();
    let proxy = Proxy::start(server.addr(), &link).unwrap();
    let limits = limits().build().unwrap();
    let url = format!("redis://{}", proxy.addr());
    let a = RedisAdapter::connect(&url, limits.clone()).await.unwrap();
    let b = RedisAdapter::connect(&server.url(), limits).await.unwrap();
    let load = Load::start(&a, &b, 8).await;
    for _ in 0..25 {
        link.lose_replies(1);
        load.goes_on(20).await;
    }
    link.mend();
    load.check(Expect::Everything).await;
}

/// F2: with the default intervals a half-open link is noticed within 7 seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_link_is_noticed_and_replaced() {
    let server = Redis::start(&[]).unwrap();
    let link = Link::new();
    let proxy = Proxy::start(server.addr(), &link).unwrap();
    let limits = slow_limits()
        // Only this one is cut off: the other would rightly hold it dead.
        .lease(Duration::from_secs(120))
        .build()
        .unwrap();
    let url = format!("redis://{}?protocol=resp3", proxy.addr());
    let a = RedisAdapter::connect(&url, limits.clone()).await.unwrap();
    let b = RedisAdapter::connect(&server.url(), limits).await.unwrap();
    let load = Load::start(&a, &b, 4).await;
    load.goes_on(50).await;
    link.freeze();
    let frozen = Instant::now();
    noticed(frozen, &[&a]).await;
    // What is called now ends with a typed error.
    let asked = Instant::now();
    let id = SessionId::generate();
    let error = SessionAdapter::create(&a, &id, SessionRecord::default())
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(
        asked.elapsed() < Duration::from_secs(6),
        "{:?}",
        asked.elapsed()
    );
    sleep(Duration::from_secs(2)).await;
    link.mend();
    load.goes_on(50).await;
    eventually("good health", async || {
        (a.health() == Health::Ok).then_some(())
    })
    .await;
    load.check(Expect::Everything).await;
    works(&a, &b).await;
}

/// A pool whose connections are all taken is an outage of control steps, told as
/// one; running calls append and are followed meanwhile.
#[cfg(feature = "pool")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_holds_up_no_running_call() {
    use deadpool_redis::{Config, PoolConfig, Runtime};

    let server = Redis::start(&[]).unwrap();
    let mut config = Config::from_url(server.url());
    config.pool = Some(PoolConfig::new(1));
    let pool = config.create_pool(Some(Runtime::Tokio1)).unwrap();
    let limits = limits().lease(Duration::from_secs(120)).build().unwrap();
    let a = RedisAdapter::with_pool(pool.clone(), server.url(), limits.clone());
    let a = a.await.unwrap();
    let b = RedisAdapter::connect(&server.url(), limits).await.unwrap();
    let load = Load::start(&a, &b, 4).await;
    load.goes_on(50).await;
    assert_eq!(pool.status().size, 1, "control steps go over the pool");
    let taken = pool.get().await.unwrap();
    let error = a.enter(&SessionId::generate(), None, None).await;
    let error = error.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    load.goes_on(50).await;
    drop(taken);
    works(&a, &b).await;
    load.check(Expect::Everything).await;
}
