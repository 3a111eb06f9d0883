//! Each option by its effect, and what a server that refuses is told as.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod refusals;
mod sentinel;
#[cfg(feature = "tls")]
mod tls;
mod url;

use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{Error, ErrorKind, Limits, SessionAdapter as _, SessionId, SessionRecord};
use mcp_adapter_redis::{IntoRedisOptions, RedisAdapter};

async fn connect(options: impl IntoRedisOptions) -> Result<RedisAdapter, Error> {
    RedisAdapter::connect(options, Limits::default()).await
}

/// Connects and stores a session.
async fn stores(options: impl IntoRedisOptions) -> (RedisAdapter, SessionId) {
    let adapter = connect(options).await.unwrap();
    let id = SessionId::generate();
    adapter.create(&id, SessionRecord::default()).await.unwrap();
    (adapter, id)
}

/// The one answer of a server that does not have what it takes: its text.
async fn refused(options: impl IntoRedisOptions) -> String {
    let error = connect(options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
    assert!(!error.is_retryable(), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains("secret"), "{text}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    text
}

/// Keys of sessions in a database, by their beginnings.
fn sessions(server: &Redis, database: u8, prefix: &str) -> usize {
    let pattern = format!("{{{prefix}:*");
    let script = "redis.call('SELECT', ARGV[1]) \
        local found = 0 \
        for _, key in ipairs(redis.call('KEYS', ARGV[2])) do \
          if string.match(key, '^{[^}]*:%d%d}:') then found = found + 1 end \
        end \
        return found";
    let answer = server.command(&["EVAL", script, "0", &database.to_string(), &pattern]);
    answer
        .unwrap()
        .trim()
        .trim_start_matches(':')
        .parse()
        .unwrap()
}
