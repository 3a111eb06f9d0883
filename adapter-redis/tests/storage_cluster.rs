//! The steps of the seam over a Cluster of three masters.

mod common;

use mcp_adapter_conformance::{Options, Suite};
use mcp_adapter_redis::{RedisOptions, RedisStorage};

fn main() -> std::process::ExitCode {
    let cluster = common::Cluster::default();
    let suite = Suite::new("redis_cluster", common::capabilities());
    let code = suite.with_restart(cluster.restart()).run_storage({
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
