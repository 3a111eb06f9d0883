//! The conformance suite over a Cluster of three masters.

mod common;

use mcp_adapter_conformance::{Options, Suite};
use mcp_adapter_redis::{RedisAdapter, RedisOptions};

fn main() -> std::process::ExitCode {
    let cluster = common::Cluster::default();
    let suite = Suite::new("redis_cluster", common::capabilities());
    let code = suite.with_restart(cluster.restart()).run({
        let cluster = cluster.clone();
        move |options: Options| {
            let cluster = cluster.clone();
            async move {
                let url = cluster.url().await?;
                let link = options.clone();
                let redis = RedisOptions::new(&url)?
                    .with_prefix(options.namespace())
                    // Nodes are reached through this instance's proxies.
                    .with_address_map(move |host, port| common::proxied(&link, host, port));
                Ok(RedisAdapter::connect(redis, options.limits().clone()).await?)
            }
        }
    });
    cluster.stop();
    code
}
