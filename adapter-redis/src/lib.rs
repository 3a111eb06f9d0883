#![doc = include_str!("../README.md")]

mod append;
mod attached;
mod cache;
mod check;
mod connect;
mod doorbell;
mod error;
mod explain;
mod keys;
mod options;
mod page;
mod principal;
mod request;
mod router;
mod script;
mod server;
mod storage;
mod sweep;
#[cfg(feature = "tls")]
mod tls;
mod value;
mod wire;

use std::{fmt, sync::Arc, time::Duration};

use mcp_adapter_core::{Engine, EngineAdapter, Limits, Result};

use crate::{
    connect::Target,
    explain::explain,
    options::Setup,
    router::Router,
    server::{Lane, Node, Settings},
};
pub use crate::{options::RedisOptions, storage::RedisStorage};

/// The adapter for servers of many processes over Redis or Valkey: all roles of
/// the contract.
///
/// Clones are the same instance; [`instance`](Self::instance) opens another one
/// on the same store, as another process would.
#[derive(Clone)]
pub struct RedisAdapter {
    engine: Engine<RedisStorage>,
    router: Arc<Router>,
    limits: Limits,
}

/// What names a server: a URL, or [`RedisOptions`].
pub trait IntoRedisOptions {
    /// The options.
    ///
    /// # Errors
    /// As [`RedisOptions::new`].
    fn into_redis_options(self) -> Result<RedisOptions>;
}

impl IntoRedisOptions for RedisOptions {
    fn into_redis_options(self) -> Result<RedisOptions> {
        Ok(self)
    }
}

impl IntoRedisOptions for &str {
    fn into_redis_options(self) -> Result<RedisOptions> {
        RedisOptions::new(self)
    }
}

impl IntoRedisOptions for String {
    fn into_redis_options(self) -> Result<RedisOptions> {
        RedisOptions::new(&self)
    }
}

impl IntoRedisOptions for &String {
    fn into_redis_options(self) -> Result<RedisOptions> {
        RedisOptions::new(self)
    }
}

impl RedisAdapter {
    /// Connects, and checks the server: its version and the rights that the
    /// adapter needs.
    ///
    /// # Errors
    /// [`InvalidArgument`](mcp_adapter_core::ErrorKind::InvalidArgument) where
    /// the URL is wrong, the server too old or a right missing;
    /// [`Unavailable`](mcp_adapter_core::ErrorKind::Unavailable) and
    /// [`Timeout`](mcp_adapter_core::ErrorKind::Timeout) where it cannot be
    /// reached (clause F1).
    pub async fn connect(options: impl IntoRedisOptions, limits: Limits) -> Result<Self> {
        let storage = RedisStorage::connect(options, &limits).await?;
        Ok(Self::on(Arc::clone(&storage.router), storage, limits))
    }

    /// As [`connect`](Self::connect), with control steps over a pool of the
    /// application.
    ///
    /// Appends and wake-ups have connections of their own, opened by `options`,
    /// which must lead to the server of the pool: a pool gives each caller a
    /// connection for itself, and with it a round trip for each event in place of
    /// one for a batch. Not for Cluster.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    #[cfg(feature = "pool")]
    pub async fn with_pool(
        pool: deadpool_redis::Pool,
        options: impl IntoRedisOptions,
        limits: Limits,
    ) -> Result<Self> {
        let options = options.into_redis_options()?;
        let setup = options.setup().await?;
        let target = target(&setup)
            .map_err(|_| error::unusable("a pool leads to one server, not to a Cluster"))?;
        let node = Node::with_pool(target, pool);
        let opened = RedisStorage::open(node, &setup, &options, &limits, false).await;
        let storage = opened.map_err(|error| explain(error, setup.is_tls()))?;
        Ok(Self::on(Arc::clone(&storage.router), storage, limits))
    }

    /// Another instance, with its own id and heartbeat, on the same store and
    /// over the same connections.
    #[must_use]
    pub fn instance(&self) -> Self {
        let storage = RedisStorage::new(Arc::clone(&self.router), &self.limits);
        Self::on(Arc::clone(&self.router), storage, self.limits.clone())
    }

    fn on(router: Arc<Router>, storage: RedisStorage, limits: Limits) -> Self {
        Self {
            engine: Engine::new(storage, limits.clone()),
            router,
            limits,
        }
    }
}

fn settings(options: &RedisOptions, limits: &Limits) -> Settings {
    // The engine gives a step up at its timeout; whoever is silent is given up
    // before that, so that the repeat has another connection.
    let patience = (limits.operation_timeout() * 4 / 5).max(Duration::from_millis(1));
    Settings {
        patience,
        connect: options.connect_timeout.unwrap_or(patience),
        map: options.map.clone(),
    }
}

/// The one server, or the nodes of a Cluster.
fn target(setup: &Setup) -> Result<Target, Vec<redis::ConnectionInfo>> {
    match setup {
        Setup::Server(info) => Ok(Target::Server(info.clone())),
        Setup::Sentinel(sentinels, name, like) => Ok(Target::Master {
            sentinels: Arc::new(sentinels.clone()),
            name: name.as_str().into(),
            like: like.clone(),
        }),
        Setup::Cluster(seeds) => Err(seeds.clone()),
    }
}

impl RedisStorage {
    /// Connects, as [`RedisAdapter::connect`]: the steps without the engine, for
    /// engines with a storage around this one.
    ///
    /// # Errors
    /// As [`RedisAdapter::connect`].
    pub async fn connect(options: impl IntoRedisOptions, limits: &Limits) -> Result<Self> {
        let options = options.into_redis_options()?;
        let setup = options.setup().await?;
        let opened = match target(&setup) {
            Ok(target) => {
                let node = Node::new(target, (String::new(), 0));
                Self::open(node, &setup, &options, limits, true).await
            }
            Err(seeds) => Self::open_cluster(seeds, &options, limits).await,
        };
        opened.map_err(|error| explain(error, setup.is_tls()))
    }

    async fn open(
        node: Arc<Node>,
        setup: &Setup,
        options: &RedisOptions,
        limits: &Limits,
        cluster_too: bool,
    ) -> Result<Self> {
        let settings = settings(options, limits);
        let conn = node.conn(Lane::Control, &settings).await?;
        let identity = conn.identity().clone();
        check::version(&identity)?;
        if identity.cluster {
            return match (setup, cluster_too) {
                (Setup::Server(info), true) => {
                    Self::open_cluster(vec![info.clone()], options, limits).await
                }
                _ => Err(error::unusable("a node of a Cluster cannot be used so")),
            };
        }
        if identity.eviction.starts_with("allkeys") {
            tracing::warn!(
                policy = identity.eviction,
                "the server may evict live sessions; use `noeviction`"
            );
        }
        let router = Router::one(node, &options.prefix, settings);
        Self::checked(router, limits).await
    }

    async fn open_cluster(
        seeds: Vec<redis::ConnectionInfo>,
        options: &RedisOptions,
        limits: &Limits,
    ) -> Result<Self> {
        let settings = settings(options, limits);
        let router = Router::cluster(seeds, &options.prefix, settings).await?;
        for identity in router.identify().await? {
            check::version(&identity)?;
        }
        Self::checked(router, limits).await
    }

    async fn checked(router: Router, limits: &Limits) -> Result<Self> {
        let storage = Self::new(Arc::new(router), limits);
        check::rights(&storage).await?;
        Ok(storage)
    }
}

impl EngineAdapter for RedisAdapter {
    type Storage = RedisStorage;

    fn engine(&self) -> &Engine<RedisStorage> {
        &self.engine
    }
}

impl fmt::Debug for RedisAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisAdapter").finish_non_exhaustive()
    }
}
