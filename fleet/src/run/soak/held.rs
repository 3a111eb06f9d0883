//! What the store itself takes: its file, or what its server has of this fleet.

use std::sync::Arc;

#[cfg(feature = "postgres")]
use mcp_adapter_postgres::sqlx;

use super::{Kind, Series};
#[cfg(any(feature = "redis", feature = "postgres"))]
use crate::backend::{Backend, SPACE};
use crate::{error::Failure, node::Fleet};

#[cfg(any(feature = "redis", feature = "postgres"))]
const CANNOT: &str = "cannot look into the store";

#[cfg(feature = "redis")]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Where to look.
pub(super) enum Held {
    /// Nothing but the sessions can be counted.
    Nothing,
    File(Arc<Fleet>),
    #[cfg(feature = "redis")]
    Redis(redis::aio::MultiplexedConnection),
    #[cfg(feature = "postgres")]
    Postgres(Box<sqlx::PgConnection>),
}

impl Held {
    pub(super) async fn open(fleet: &Arc<Fleet>) -> Result<Self, Failure> {
        if fleet.place.bytes().is_some() {
            return Ok(Self::File(Arc::clone(fleet)));
        }
        #[cfg(any(feature = "redis", feature = "postgres"))]
        {
            let url = fleet.place.url().unwrap_or_default();
            match fleet.place.backend() {
                // Of a Cluster, or behind Sentinels, it would be one server of several.
                #[cfg(feature = "redis")]
                Backend::Redis if url.starts_with("redis://") => {
                    let client = redis::Client::open(url).map_err(Failure::context(CANNOT))?;
                    // A machine that is kept busy on purpose may be slow.
                    let patient = redis::AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(PATIENCE))
                        .set_response_timeout(Some(PATIENCE));
                    let connection = client.get_multiplexed_async_connection_with_config(&patient);
                    let connection = connection.await;
                    let connection = connection.map_err(Failure::context(CANNOT))?;
                    return Ok(Self::Redis(connection));
                }
                #[cfg(feature = "postgres")]
                Backend::Postgres => {
                    use sqlx::Connection as _;
                    let connection = sqlx::PgConnection::connect(url).await;
                    let connection = connection.map_err(Failure::context(CANNOT))?;
                    return Ok(Self::Postgres(Box::new(connection)));
                }
                _ => {}
            }
        }
        Ok(Self::Nothing)
    }

    /// A series for each value of [`look`](Self::look).
    pub(super) fn series(&self) -> Vec<Series> {
        match self {
            Self::Nothing => Vec::new(),
            Self::File(_) => vec![
                Series::new("file", Kind::File),
                Series::new("log of the file", Kind::Log),
            ],
            #[cfg(feature = "redis")]
            Self::Redis(_) => vec![
                Series::new("memory of the server", Kind::File),
                Series::new("keys without an expiry", Kind::Forever),
            ],
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => vec![Series::new("tables and indexes", Kind::File)],
        }
    }

    pub(super) async fn look(&mut self) -> Result<Vec<u64>, Failure> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::File(fleet) => Ok(fleet.place.bytes().into_iter().flatten().collect()),
            #[cfg(feature = "redis")]
            Self::Redis(connection) => look_at_redis(connection)
                .await
                .map_err(Failure::context("cannot look into Redis")),
            #[cfg(feature = "postgres")]
            Self::Postgres(connection) => look_at_postgres(connection)
                .await
                .map_err(Failure::context("cannot look into Postgres")),
        }
    }
}

/// Its memory, and how many keys of the fleet would stay for ever.
#[cfg(feature = "redis")]
async fn look_at_redis(
    connection: &mut redis::aio::MultiplexedConnection,
) -> redis::RedisResult<Vec<u64>> {
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query_async(connection)
        .await?;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used = used.and_then(|used| used.trim().parse().ok()).unwrap_or(0);
    let (mut forever, mut cursor) = (0, 0_u64);
    loop {
        let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("*{SPACE}:*"))
            .arg("COUNT")
            .arg(1000)
            .query_async(connection)
            .await?;
        let ours = |key: &&String| key.trim_start_matches('{').starts_with(SPACE);
        let mut lives = redis::pipe();
        for key in keys.iter().filter(ours) {
            lives.cmd("PTTL").arg(key);
        }
        if !lives.is_empty() {
            let lives: Vec<i64> = lives.query_async(connection).await?;
            forever += lives.iter().map(|life| u64::from(*life == -1)).sum::<u64>();
        }
        if next == 0 {
            return Ok(vec![used, forever]);
        }
        cursor = next;
    }
}

#[cfg(feature = "postgres")]
async fn look_at_postgres(connection: &mut sqlx::PgConnection) -> Result<Vec<u64>, sqlx::Error> {
    const SIZE: &str = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint \
        FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = $1::regnamespace";
    let size: i64 = sqlx::query_scalar(SIZE)
        .bind(SPACE)
        .fetch_one(connection)
        .await?;
    Ok(vec![u64::try_from(size).unwrap_or(0)])
}
