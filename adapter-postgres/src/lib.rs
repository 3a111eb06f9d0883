#![doc = include_str!("../README.md")]

mod append;
mod bell;
mod call;
mod codec;
mod doorbell;
mod error;
mod known;
mod options;
mod pool;
mod request;
mod session;
mod start;
mod storage;
mod stream;
mod upkeep;

use std::{fmt, sync::Arc};

use mcp_adapter_core::{Engine, EngineAdapter, ErrorKind, Limits};
pub use sqlx;
use sqlx::PgPool;

use self::{call::Functions, pool::Pool, storage::Place};
pub use self::{
    error::ConnectError,
    options::{Pooler, PostgresOptions, Wake},
    storage::PostgresStorage,
};

/// The adapter for servers of many processes on one Postgres: all roles of the
/// contract, in a schema of its own.
///
/// Clones are the same instance; [`instance`](Self::instance) opens another one on
/// the same schema, as another process would be.
///
/// The limits of streams hold exactly. The bytes of sessions and principals are
/// counted by each instance, and written with its next sweep or when they are a
/// sixteenth of a session's limit: by so much, and no longer than that, each instance
/// may overshoot them (clause E4).
#[derive(Clone)]
pub struct PostgresAdapter {
    engine: Engine<PostgresStorage>,
    limits: Limits,
}

impl PostgresAdapter {
    /// Connects to `url`, `postgres://user:password@host:port/database`, and makes
    /// the tables in the schema `mcp_adapter` if they are not there. Without
    /// `?sslmode=` the connection may be plain text: see [TLS](crate#tls).
    ///
    /// # Errors
    /// [`ConnectError`], which says what is missing.
    pub async fn connect(url: &str, limits: Limits) -> Result<Self, ConnectError> {
        Self::connect_with(url.parse()?, limits).await
    }

    /// Connects as `options` say.
    ///
    /// # Errors
    /// [`ConnectError`], which says what is missing.
    pub async fn connect_with(
        options: PostgresOptions,
        limits: Limits,
    ) -> Result<Self, ConnectError> {
        let storage = PostgresStorage::connect(options, &limits).await?;
        Ok(Self::on(storage, limits))
    }

    /// Uses the application's own pool for all but LISTEN, for which each instance
    /// opens one connection: to `direct_url`, or to where the pool connects.
    ///
    /// # Errors
    /// [`ConnectError`], which says what is missing.
    pub async fn with_pool(
        pool: PgPool,
        direct_url: Option<&str>,
        limits: Limits,
    ) -> Result<Self, ConnectError> {
        let mut options = PostgresOptions::with_pool(pool);
        if let Some(url) = direct_url {
            options = options.direct_url(url)?;
        }
        Self::connect_with(options, limits).await
    }

    /// Another instance, with its own id, heartbeat and connections, on the same
    /// schema.
    #[must_use]
    pub fn instance(&self) -> Self {
        Self::on(self.engine.storage().another(), self.limits.clone())
    }

    /// Whether this instance polls for wake-ups because nothing comes through a
    /// listening connection, or because it was told to.
    #[must_use]
    pub fn polls(&self) -> bool {
        self.engine.storage().0.place.polls
    }

    fn on(storage: PostgresStorage, limits: Limits) -> Self {
        Self {
            engine: Engine::new(storage, limits.clone()),
            limits,
        }
    }
}

impl PostgresStorage {
    /// Opens the steps alone, without an engine: for tests of the seam.
    ///
    /// # Errors
    /// [`ConnectError`], which says what is missing.
    pub async fn connect(options: PostgresOptions, limits: &Limits) -> Result<Self, ConnectError> {
        options.check()?;
        let timeout = options.start_timeout;
        let opened = tokio::time::timeout(timeout, open(options, limits)).await;
        opened.map_err(|_| ConnectError::Timeout(timeout))?
    }
}

async fn open(options: PostgresOptions, limits: &Limits) -> Result<PostgresStorage, ConnectError> {
    // The server gives up when nobody waits any more.
    let statement = limits.operation_timeout();
    let found = start::start(&options, statement).await?;
    let begin: Arc<str> = start::begin(&options.schema, statement).into();
    let make_pool = || match &options.pool {
        Some(pool) => Pool::handed(pool.clone(), Arc::clone(&begin), statement),
        None => {
            let begin = found.pooled.then(|| Arc::clone(&begin));
            let set = found.set.as_deref().map(Arc::from);
            let connect = found.connect.clone();
            Pool::own(connect, options.max_connections, set, begin, statement)
        }
    };
    let listen = options.direct.as_ref().unwrap_or(&options.connect);
    let mut place = Place {
        schema: options.schema.as_str().into(),
        functions: Arc::new(Functions::of(&options.schema)),
        listen: start::quiet(listen),
        wake: options.wake,
        lossy: found.lossy,
        session_bytes: limits.session_bytes(),
        sweeps: limits.heartbeat(),
        polls: options.wake == Wake::Poll,
    };
    if place.polls {
        return Ok(PostgresStorage::new(place, make_pool()));
    }
    if options.direct.is_some() {
        start::try_direct(&place.listen).await?;
    }
    let storage = PostgresStorage::new(place.clone(), make_pool());
    // A pooler in between may refuse to listen, swallow it, or hand it to another
    // connection; only a notification that arrives proves anything.
    let heard = match storage.0.can_listen().await {
        Ok(heard) => heard,
        Err(error) if options.wake == Wake::Auto && found.pooled && options.direct.is_none() => {
            tracing::debug!(%error, "no listening through the pooler");
            false
        }
        Err(error) if error.kind() == ErrorKind::Timeout && options.wake == Wake::Auto => false,
        Err(error) => return Err(ConnectError::Step(error)),
    };
    if heard {
        return Ok(storage);
    }
    if options.wake == Wake::Listen {
        return Err(ConnectError::NoNotifications);
    }
    tracing::warn!(
        "notifications do not arrive over the listening connection, a pooler in transaction mode \
         for example: polling instead; give a direct URL to be woken at once"
    );
    place.polls = true;
    Ok(PostgresStorage::new(place, make_pool()))
}

impl EngineAdapter for PostgresAdapter {
    type Storage = PostgresStorage;

    fn engine(&self) -> &Engine<PostgresStorage> {
        &self.engine
    }
}

impl fmt::Debug for PostgresAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresAdapter").finish_non_exhaustive()
    }
}
