//! The conformance suite with control steps over a pool of the application.

mod common;

use deadpool_redis::{Config, Runtime};
use mcp_adapter_conformance::{Options, server};
use mcp_adapter_redis::{RedisAdapter, RedisOptions};

fn main() -> std::process::ExitCode {
    let capabilities = common::capabilities();
    mcp_adapter_conformance::run("redis_pool", capabilities, |options: Options| async move {
        let url = options.proxy_url(&server::redis().await?)?;
        let redis = RedisOptions::new(&url)?.with_prefix(options.namespace());
        let pool = Config::from_url(&url).create_pool(Some(Runtime::Tokio1))?;
        Ok(RedisAdapter::with_pool(pool, redis, options.limits().clone()).await?)
    })
}
