//! Opening adapters for the suites.
#![allow(dead_code, reason = "each test uses its part")]

use std::{process::ExitCode, sync::Arc, time::Duration};

use mcp_adapter_conformance::{
    BoxError, Options, Restart, Suite,
    server::{self, RedisCluster, ServerError},
};
use mcp_adapter_core::Capabilities;
use mcp_adapter_redis::{RedisAdapter, RedisOptions, RedisStorage};
use parking_lot::Mutex;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Resp2,
    Resp3,
}

impl Protocol {
    pub(crate) fn of(self, url: &str) -> String {
        match self {
            Self::Resp2 => format!("{url}?protocol=resp2"),
            Self::Resp3 => format!("{url}?protocol=resp3"),
        }
    }
}

pub(crate) fn capabilities() -> Capabilities {
    Capabilities::server(Duration::from_millis(1))
}

pub(crate) fn suite(name: &str, protocol: Protocol) -> ExitCode {
    let suite = Suite::new(name, capabilities()).with_restart(server::redis_restart());
    suite.run(move |options: Options| async move {
        let url = options.proxy_url(&server::redis().await?)?;
        let redis = RedisOptions::new(&protocol.of(&url))?.with_prefix(options.namespace());
        Ok(RedisAdapter::connect(redis, options.limits().clone()).await?)
    })
}

pub(crate) fn storage_suite(name: &str, protocol: Protocol) -> ExitCode {
    let suite = Suite::new(name, capabilities()).with_restart(server::redis_restart());
    suite.run_storage(move |options: Options| async move {
        let url = server::redis().await?;
        let redis = RedisOptions::new(&protocol.of(&url))?.with_prefix(options.namespace());
        Ok(RedisStorage::connect(redis, options.limits()).await?)
    })
}

/// A Cluster that all cases share, started by the first that asks.
#[derive(Clone, Default)]
pub(crate) struct Cluster(Arc<Mutex<Option<RedisCluster>>>);

impl Cluster {
    pub(crate) async fn url(&self) -> Result<String, BoxError> {
        let shared = Arc::clone(&self.0);
        let started = tokio::task::spawn_blocking(move || {
            let mut cluster = shared.lock();
            if cluster.is_none() {
                *cluster = Some(RedisCluster::start(3)?);
            }
            Ok::<_, ServerError>(cluster.as_ref().map(RedisCluster::url).unwrap_or_default())
        });
        Ok(started.await??)
    }

    /// All its masters at once.
    pub(crate) fn restart(&self) -> Restart {
        let shared = Arc::clone(&self.0);
        Restart::by(move |_| {
            let shared = Arc::clone(&shared);
            async move {
                let restarted = tokio::task::spawn_blocking(move || {
                    let mut cluster = shared.lock();
                    let cluster = cluster.as_mut().ok_or("no Cluster was started")?;
                    for node in cluster.nodes_mut() {
                        node.program().end(false)?;
                    }
                    for node in cluster.nodes_mut() {
                        node.program().restart()?;
                    }
                    Ok::<_, BoxError>(cluster.wait_until_agreed()?)
                });
                restarted.await?
            }
        })
    }

    pub(crate) fn stop(&self) {
        self.0.lock().take();
    }
}

/// Where this instance's proxy in front of a server is.
pub(crate) fn proxied(link: &Options, host: &str, port: u16) -> (String, u16) {
    let known = format!("{host}:{port}").parse().ok();
    let proxied = known.and_then(|known| link.proxy(known).ok());
    proxied.map_or_else(
        || (host.to_owned(), port),
        |addr| (addr.ip().to_string(), addr.port()),
    )
}
