//! The steps of the seam over a Cluster of three masters.

mod common;

use mcp_adapter_conformance::Options;
use mcp_adapter_redis::{RedisOptions, RedisStorage};

fn main() -> std::process::ExitCode {
    let cluster = common::Cluster::default();
    let code = mcp_adapter_conformance::run_storage("redis_cluster", {
        let cluster = cluster.clone();
        move |options: Options| {
            let cluster = cluster.clone();
            async move {
                let url = cluster.url().await?;
                let redis = RedisOptions::new(&url)?.with_prefix(options.namespace());
                Ok(RedisStorage::connect(redis, options.limits()).await?)
            }
        }
    });
    cluster.stop();
    code
}
