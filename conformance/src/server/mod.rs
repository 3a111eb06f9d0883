//! Servers for tests: Redis and Postgres.
//!
//! [`redis()`] and [`postgres()`] give the URL of a server that all cases of this
//! process share. In this order:
//!
//! 1. the URL in `MCP_ADAPTER_TEST_REDIS_URL` or `MCP_ADAPTER_TEST_POSTGRES_URL`;
//! 2. a container, with the feature `testcontainers` and Docker at hand;
//! 3. a server program of this machine (`redis-server`; `initdb` and `postgres`
//!    on the `PATH` or below `/usr/lib/postgresql`), on a free port and with a
//!    folder of its own, both gone when the test ends.
//!
//! Where there is none of them the case **fails**: a suite that did not run is
//! not green. [`Redis`], [`Postgres`] and [`PgBouncer`] start servers that a test
//! has for itself, to stop, kill and restart them.

#[cfg(feature = "testcontainers")]
mod container;
mod pgbouncer;
mod postgres;
mod redis;

use std::{
    env, fmt, io,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;

pub use self::{
    pgbouncer::PgBouncer,
    postgres::Postgres,
    redis::{Redis, RedisCluster, RedisSentinel},
};
use crate::Restart;

/// There is no server.
#[derive(Debug)]
pub struct ServerError(String);

impl ServerError {
    fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServerError {}

/// A server that this process has started.
enum Shared {
    Redis(Redis),
    Postgres(Postgres),
    #[cfg(feature = "testcontainers")]
    Container(Box<container::Container>),
}

impl Shared {
    fn url(&self) -> String {
        match self {
            Self::Redis(redis) => redis.url(),
            Self::Postgres(postgres) => postgres.url(),
            #[cfg(feature = "testcontainers")]
            Self::Container(container) => container.url(),
        }
    }
}

const REDIS_URL: &str = "MCP_ADAPTER_TEST_REDIS_URL";
const POSTGRES_URL: &str = "MCP_ADAPTER_TEST_POSTGRES_URL";

static REDIS: Mutex<Option<Shared>> = Mutex::new(None);
static POSTGRES: Mutex<Option<Shared>> = Mutex::new(None);

/// The URL of a Redis server, of which a test has what begins with its
/// namespace.
///
/// # Errors
/// Where there is none; the error says what to install.
pub async fn redis() -> Result<String, ServerError> {
    shared(REDIS_URL, &REDIS, || {
        #[cfg(feature = "testcontainers")]
        if let Some(container) = container::redis() {
            return container.map(|container| Shared::Container(Box::new(container)));
        }
        Redis::start(&redis::LOG).map(Shared::Redis)
    })
    .await
}

/// How the suite restarts the server of [`redis()`]. One that is not this process's
/// cannot be restarted: then the cases that would are ignored, with that reason.
#[must_use]
pub fn redis_restart() -> Restart {
    restart(REDIS_URL, &REDIS)
}

/// As [`redis_restart`], of [`postgres()`].
#[must_use]
pub fn postgres_restart() -> Restart {
    restart(POSTGRES_URL, &POSTGRES)
}

fn restart(variable: &'static str, slot: &'static Mutex<Option<Shared>>) -> Restart {
    if env::var_os(variable).is_some() {
        return Restart::none(format!("the server is that of {variable}"));
    }
    Restart::by(move |_| async move {
        let restarted = tokio::task::spawn_blocking(move || {
            let mut slot = slot.lock();
            let program = match slot.as_mut() {
                Some(Shared::Redis(redis)) => redis.program(),
                Some(Shared::Postgres(postgres)) => postgres.program(),
                #[cfg(feature = "testcontainers")]
                Some(Shared::Container(container)) => return container.restart(),
                None => return Err(ServerError::new("no server was started")),
            };
            program.restart().map_err(ServerError::new)
        });
        Ok(restarted.await??)
    })
}

/// The URL of a Postgres server, of which a test has the schema of its
/// namespace.
///
/// # Errors
/// Where there is none; the error says what to install.
pub async fn postgres() -> Result<String, ServerError> {
    shared(POSTGRES_URL, &POSTGRES, || {
        #[cfg(feature = "testcontainers")]
        if let Some(container) = container::postgres() {
            return container.map(|container| Shared::Container(Box::new(container)));
        }
        Postgres::start(&[]).map(Shared::Postgres)
    })
    .await
}

async fn shared(
    variable: &'static str,
    slot: &'static Mutex<Option<Shared>>,
    start: impl FnOnce() -> Result<Shared, ServerError> + Send + 'static,
) -> Result<String, ServerError> {
    if let Ok(url) = env::var(variable) {
        return Ok(url);
    }
    // Starting blocks, and the first that asks starts it for all.
    let started = tokio::task::spawn_blocking(move || {
        let mut slot = slot.lock();
        if slot.is_none() {
            *slot = Some(start()?);
        }
        slot.as_ref()
            .map(Shared::url)
            .ok_or_else(|| ServerError::new("no server"))
    });
    started.await.map_err(ServerError::new)?
}

/// Ends the servers that this process has started for all its cases.
/// [`run`](crate::run) does so at its end. Program servers end with the process
/// in any case; containers do not.
pub fn stop() {
    REDIS.lock().take();
    POSTGRES.lock().take();
}

/// Where a program is: on the `PATH`, or in the newest of these folders.
fn find(program: &str, more: &[PathBuf]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(more.iter().cloned());
    folders
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.is_file()
}

/// Asks a server that may not be there yet; short, so that it can be repeated.
fn ask(addr: SocketAddr, question: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(question)?;
    stream.read(answer)
}
