//! The conformance suite behind a Sentinel, after a failover.

mod common;

use std::sync::Arc;

use mcp_adapter_conformance::{
    BoxError, Options, Restart, Suite,
    server::{RedisSentinel, ServerError},
};
use mcp_adapter_redis::{RedisAdapter, RedisOptions};
use parking_lot::Mutex;

fn main() -> std::process::ExitCode {
    let shared: Arc<Mutex<Option<RedisSentinel>>> = Arc::default();
    let suite = Suite::new("redis_sentinel", common::capabilities());
    // A master that goes is replaced, and that is what this suite is about.
    let restart = Restart::none("a restart is a failover");
    let code = suite.with_restart(restart).run({
        let shared = Arc::clone(&shared);
        move |options: Options| {
            let shared = Arc::clone(&shared);
            async move {
                let url = tokio::task::spawn_blocking(move || {
                    let mut set = shared.lock();
                    if set.is_none() {
                        let started = RedisSentinel::start()?;
                        started.fail_over()?;
                        *set = Some(started);
                    }
                    Ok::<_, ServerError>(set.as_ref().map(RedisSentinel::url).unwrap_or_default())
                })
                .await??;
                let link = options.clone();
                let redis = RedisOptions::new(&url)?
                    .with_prefix(options.namespace())
                    .with_address_map(move |host, port| common::proxied(&link, host, port));
                let adapter = RedisAdapter::connect(redis, options.limits().clone()).await;
                Ok::<_, BoxError>(adapter?)
            }
        }
    });
    shared.lock().take();
    code
}
