//! The conformance suite with control steps over a pool of the application.

mod common;

use deadpool_redis::{Config, Runtime};
use mcp_adapter_conformance::{Options, Suite, server};
use mcp_adapter_redis::{RedisAdapter, RedisOptions};

fn main() -> std::process::ExitCode {
    let suite = Suite::new("redis_pool", common::capabilities());
    let suite = suite.with_restart(server::redis_restart());
    suite.run(|options: Options| async move {
        let url = options.proxy_url(&server::redis().await?)?;
        let redis = RedisOptions::new(&url)?.with_prefix(options.namespace());
        let pool = Config::from_url(&url).create_pool(Some(Runtime::Tokio1))?;
        Ok(RedisAdapter::with_pool(pool, redis, options.limits().clone()).await?)
    })
}
