//! Users without the rights that are needed, and servers that cannot be used.

use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{ErrorKind, Limits};
use mcp_adapter_redis::RedisAdapter;

async fn connect(url: String) -> Result<RedisAdapter, mcp_adapter_core::Error> {
    RedisAdapter::connect(url, Limits::default()).await
}

#[tokio::test]
async fn a_missing_right_is_a_typed_error_at_the_start() {
    let server = Redis::start(&[]).unwrap();
    let user = |name: &str, rules: &[&str]| {
        let mut words = vec!["ACL", "SETUSER", name, "on", ">pw"];
        words.extend(rules);
        server.command(&words).unwrap();
        server.url().replace("://", &format!("://{name}:pw@"))
    };
    let rights = [
        "~mcp:*",
        "~{mcp:*",
        "&mcp:*",
        "&{mcp:*",
        "+@all",
        "-@dangerous",
        "+info",
    ];
    for protocol in ["", "?protocol=resp3"] {
        connect(user("all", &rights) + protocol).await.unwrap();
        for (name, lacks) in [
            ("noscripts", "-evalsha"),
            ("nostreams", "-xadd"),
            ("nohashes", "-hset"),
            ("nopublish", "-publish"),
            ("nosubscribe", "-subscribe"),
            ("noload", "-script"),
            ("noinfo", "-info"),
        ] {
            let mut rules = rights.to_vec();
            rules.push(lacks);
            let error = connect(user(name, &rules) + protocol).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidArgument,
                "{name}: {error:?}"
            );
            assert!(!error.to_string().contains("pw"), "{error}");
        }
        for (name, without) in [("nokeys", "~{mcp:*"), ("nochannels", "&mcp:*")] {
            let rules: Vec<_> = rights
                .iter()
                .copied()
                .filter(|rule| *rule != without)
                .collect();
            let error = connect(user(name, &rules) + protocol).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidArgument,
                "{name}: {error:?}"
            );
        }
        let wrong = user("wrong", &rights).replace("pw@", "other@") + protocol;
        let error = connect(wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_can_be_tried_again() {
    let error = connect("redis://127.0.0.1:1".into()).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}
