//! What a URL says, and what options say beside it.

use std::time::Duration;

use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{ErrorKind, Limits, SessionAdapter as _};
use mcp_adapter_redis::{RedisAdapter, RedisOptions};
use tokio::{net::TcpListener, time::Instant};

use super::{sessions, stores};

#[tokio::test]
async fn a_prefix_keeps_adapters_apart() {
    let server = Redis::start(&[]).unwrap();
    let url = server.url();
    let of = |prefix| RedisOptions::new(&url).unwrap().with_prefix(prefix);
    let (shop, id) = stores(of("shop")).await;
    assert!(sessions(&server, 0, "shop") > 0);
    assert_eq!(sessions(&server, 0, "mcp"), 0);
    shop.enter(&id, None, None).await.unwrap();
    let other = RedisAdapter::connect(of("other"), Limits::default()).await;
    let error = other.unwrap().enter(&id, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionNotFound);
    // Braces would change the slot of a key.
    stores(of("a{b}")).await;
    assert!(sessions(&server, 0, "a_b_") > 0);
    // All that is on the server belongs to one of them.
    let keys = server.command(&["KEYS", "*"]).unwrap();
    for key in keys.lines().filter(|line| !line.starts_with(['*', '$'])) {
        let key = key.trim_start_matches('{');
        let known = ["shop:", "other:", "a_b_:"];
        assert!(known.iter().any(|prefix| key.starts_with(prefix)), "{key}");
    }
}

#[tokio::test]
async fn a_url_names_the_database_the_protocol_and_the_user() {
    let server = Redis::start(&[]).unwrap();
    let rights = ["~*", "&*", "+@all"];
    let mut user = vec!["ACL", "SETUSER", "shop", "on", ">s@cret"];
    user.extend(rights);
    server.command(&user).unwrap();
    let url = server.url().replace("://", "://shop:s%40cret@");
    let adapter = stores(format!("{url}/3?protocol=resp3")).await;
    assert!(sessions(&server, 3, "mcp") > 0);
    assert_eq!(sessions(&server, 0, "mcp"), 0);
    let clients = server.command(&["CLIENT", "LIST"]).unwrap();
    let ours: Vec<_> = clients
        .lines()
        .filter(|client| client.contains("user=shop"))
        .collect();
    assert!(ours.len() >= 2, "{clients}");
    for client in ours {
        assert!(client.contains("resp=3"), "{client}");
        assert!(client.contains("db=3"), "{client}");
    }
    drop(adapter);
}

/// Whatever names a server.
#[tokio::test]
async fn text_and_options_lead_to_the_same_server() {
    let server = Redis::start(&[]).unwrap();
    let url = server.url();
    stores(url.as_str()).await;
    stores(&url).await;
    stores(url.clone()).await;
    stores(RedisOptions::try_from(url.as_str()).unwrap()).await;
    stores(RedisOptions::try_from(url).unwrap()).await;
    assert!(sessions(&server, 0, "mcp") > 0);
}

/// A server that takes connections and says nothing.
#[tokio::test]
async fn a_connection_may_take_as_long_to_open_as_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let silent = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let short = Duration::from_millis(200);
    let options = RedisOptions::new(&url).unwrap().with_connect_timeout(short);
    let asked = Instant::now();
    let error = super::connect(options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    // Four seconds, were it not for the option.
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    assert!(error.is_retryable());
    silent.abort();
}
