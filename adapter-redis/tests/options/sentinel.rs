//! Behind Sentinels.

use mcp_adapter_conformance::server::{Redis, RedisSentinel};
use mcp_adapter_redis::RedisOptions;

use super::{connect, refused, sessions, stores};

/// Sentinels have users of their own.
#[tokio::test]
async fn sentinels_are_asked_with_their_own_user() {
    let set = RedisSentinel::start().unwrap();
    let sentinel = &set.sentinels[0];
    let url = set.url();
    let watcher = ["ACL", "SETUSER", "watcher", "on", ">secret", "+@all", "&*"];
    sentinel.command(&watcher).unwrap();
    let of = |user, password| {
        let options = RedisOptions::new(&url).unwrap();
        options.with_sentinel_auth(user, password)
    };
    // As long as it asks nobody.
    stores(url.as_str()).await;
    sentinel
        .command(&["ACL", "SETUSER", "default", "resetpass", ">other-secret"])
        .unwrap();
    stores(of(Some("watcher"), "secret")).await;
    stores(of(None, "other-secret")).await;
    for wrong in [
        RedisOptions::new(&url).unwrap(),
        of(Some("watcher"), "wrong-secret"),
        of(Some("nobody"), "secret"),
        of(None, "wrong-secret"),
    ] {
        let text = refused(wrong).await;
        assert!(text.contains("Sentinel"), "{text}");
        assert!(text.contains("with_sentinel_auth"), "{text}");
    }
}

/// The master's user is in the URL.
#[tokio::test]
async fn a_master_has_the_user_and_the_database_of_the_url() {
    let set = RedisSentinel::start().unwrap();
    let master = &set.servers[0];
    let user = [
        "ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all",
    ];
    master.command(&user).unwrap();
    let url = set.url().replace("://", "://shop:secret@");
    let kept = stores(format!("{url}/3")).await;
    assert!(sessions(master, 3, "mcp") > 0);
    let clients = master.command(&["CLIENT", "LIST"]).unwrap();
    assert!(clients.contains("user=shop"), "{clients}");
    drop(kept);
    let wrong = url.replace(":secret@", ":wrong-secret@");
    let text = refused(wrong).await;
    assert!(!text.contains("with_sentinel_auth"), "{text}");
    assert!(text.contains("user"), "{text}");
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_is_told() {
    let set = RedisSentinel::start().unwrap();
    let url = set.url().replace("/main", "/mian");
    // It may be told to them later.
    let error = connect(url).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("mian"), "{error}");
}

/// The address that a Sentinel tells may be one of another network.
#[tokio::test]
async fn told_addresses_are_mapped() {
    let set = RedisSentinel::start().unwrap();
    let other = Redis::start(&[]).unwrap();
    let (told, to) = (set.master().unwrap(), other.addr());
    let options = RedisOptions::new(&set.url())
        .unwrap()
        .with_address_map(move |host, port| {
            assert_eq!((host, port), (told.ip().to_string().as_str(), told.port()));
            (to.ip().to_string(), to.port())
        });
    let kept = stores(options).await;
    assert!(sessions(&other, 0, "mcp") > 0);
    assert_eq!(sessions(&set.servers[0], 0, "mcp"), 0);
    drop(kept);
}
