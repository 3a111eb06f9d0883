//! Users that a server does not take, and servers that are not what was said.

use mcp_adapter_conformance::server::Redis;

use super::{connect, refused};

#[tokio::test]
async fn a_user_that_is_not_there_is_told_apart_from_a_right_that_lacks() {
    let server = Redis::start(&[]).unwrap();
    let user = |name: &str, rules: &[&str]| {
        let mut words = vec!["ACL", "SETUSER", name];
        words.extend(rules);
        server.command(&words).unwrap();
    };
    let as_user = |user: &str, protocol: &str| {
        let url = server.url().replace("://", &format!("://{user}@"));
        format!("{url}?protocol={protocol}")
    };
    user("off", &["off", ">secret", "~*", "&*", "+@all"]);
    user("few", &["on", ">secret", "~*", "&*", "+@all", "-xadd"]);
    for protocol in ["resp2", "resp3"] {
        for wrong in ["nobody:secret", "off:secret", "few:other-secret"] {
            let text = refused(as_user(wrong, protocol)).await;
            assert!(text.contains("no such user"), "{wrong}: {text}");
            assert!(!text.contains("right"), "{wrong}: {text}");
        }
        let text = refused(as_user("few:secret", protocol)).await;
        assert!(text.contains("right") && text.contains("XADD"), "{text}");
        assert!(!text.contains("no such user"), "{text}");
    }
    server
        .command(&["CONFIG", "SET", "requirepass", "secret"])
        .unwrap();
    for protocol in ["resp2", "resp3"] {
        let url = format!("{}?protocol={protocol}", server.url());
        let text = refused(url).await;
        assert!(text.contains("asks for a user"), "{text}");
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_told() {
    let server = Redis::start(&["--databases", "2"]).unwrap();
    connect(format!("{}/1", server.url())).await.unwrap();
    for protocol in ["resp2", "resp3"] {
        let text = refused(format!("{}/2?protocol={protocol}", server.url())).await;
        assert!(text.contains("database"), "{text}");
    }
}
