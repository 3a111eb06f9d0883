//! Where instances keep what they share: the only place that knows the transport
//! and its adapters. (A soak looks into their servers, without them.)
//!
//! Another backend is one more [`Backend`], a line in [`Backend::hint`] and an
//! arm in [`Store::open`].

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use axum::{Json, http::StatusCode, response::IntoResponse, routing};
use clap::ValueEnum;
use mcp_adapter_core::{Adapter, Count, EngineAdapter, Limits};
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_sqlite::{SqliteAdapter, SqliteOptions};
pub(crate) use mcp_adapter_transport::{FleetHandle, ListChanged};
use mcp_adapter_transport::{Session, StreamableHttpTransport};
use rmcp::{RoleServer, service::RequestContext};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    error::Failure,
    server::{ExampleServer, Instance},
};

/// Path of the MCP endpoint.
const ENDPOINT: &str = "/mcp";
/// Path of what is stored, as JSON.
pub(crate) const STORED: &str = "/stored";
/// Notes kept in the state of a session, which must stay small.
const MAX_NOTES: usize = 32;

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The memory of this process; instances are services of it
    Memory,
    /// A file; instances are processes
    Sqlite,
    /// A server; instances are processes (Cargo feature `redis`)
    Redis,
    /// A server; instances are processes (Cargo feature `postgres`)
    Postgres,
}

impl Backend {
    /// What runs where nothing is said.
    pub(crate) const DEFAULT: Self = Self::Sqlite;

    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// Whether instances may be processes of their own.
    pub(crate) fn is_shared(self) -> bool {
        self != Self::Memory
    }

    fn is_compiled_in(self) -> bool {
        match self {
            Self::Memory | Self::Sqlite => true,
            Self::Redis => cfg!(feature = "redis"),
            Self::Postgres => cfg!(feature = "postgres"),
        }
    }

    /// An example of `--url`.
    fn hint(self) -> &'static str {
        match self {
            Self::Memory => "",
            Self::Sqlite => "/var/lib/mcp/sessions.db",
            Self::Redis => "redis://127.0.0.1:6379",
            Self::Postgres => "postgres://postgres@127.0.0.1/postgres",
        }
    }

    /// Whether this program can open it at `url`.
    fn check(self, url: Option<&str>) -> Result<(), Failure> {
        let name = self.as_str();
        if !self.is_compiled_in() {
            return Err(Failure::new(format!(
                "the {name} backend is not compiled in; run\n\n    \
                 cargo run --release -p fleet --features {name} -- --backend {name} --url {}\n",
                self.hint()
            )));
        }
        match url {
            Some(_) if self == Self::Memory => Err(Failure::new(
                "the memory backend is in this process and has no --url",
            )),
            None if self.is_shared() => Err(Failure::new(format!(
                "the {name} backend needs --url, such as {}",
                self.hint()
            ))),
            _ => Ok(()),
        }
    }
}

/// Where a server keeps the data of fleets, apart from all else: prefix or schema.
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) const SPACE: &str = "fleet";

/// How long an instance may be silent before the others take it for dead. A
/// shorter lease than the default shows within seconds what a kill does.
const LEASE: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The limits of a fleet whose idle sessions expire after `ttl`, if need be
/// before the adapters' own default.
fn limits(ttl: Option<Duration>) -> Result<Limits, Failure> {
    let limits = Limits::builder().lease(LEASE).heartbeat(HEARTBEAT);
    let limits = match ttl {
        Some(ttl) => limits.idle_ttl(ttl),
        None => limits,
    };
    limits
        .build()
        .map_err(Failure::context("the limits do not fit"))
}

/// Where the instances of a fleet meet. What was made for it is removed when
/// it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    backend: Backend,
    url: Option<String>,
    folder: Option<TempDir>,
}

impl Place {
    /// A place at `url`; where a file is needed and none is named, in a
    /// temporary folder.
    pub(crate) fn prepare(backend: Backend, url: Option<&str>) -> Result<Self, Failure> {
        let mut place = Self {
            backend,
            url: url.map(Into::into),
            folder: None,
        };
        if backend == Backend::Sqlite && url.is_none() {
            let folder = tempfile::Builder::new().prefix("fleet-").tempdir();
            let folder = folder.map_err(Failure::context("cannot make a temporary folder"))?;
            let file = folder.path().join("sessions.db");
            place.url = Some(file.to_string_lossy().into_owned());
            place.folder = Some(folder);
        }
        backend.check(place.url.as_deref())?;
        Ok(place)
    }

    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// May hold a password: not for command lines, which anyone can read.
    pub(crate) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Sizes of the file and of its write-ahead log.
    pub(crate) fn bytes(&self) -> Option<[u64; 2]> {
        if self.backend != Backend::Sqlite {
            return None;
        }
        let file = file(self.url.as_deref()?);
        let name = file.file_name()?.to_string_lossy().into_owned();
        Some(["", "-wal"].map(|end| {
            let part = file.with_file_name(format!("{name}{end}"));
            // One that is not there has no size.
            std::fs::metadata(part).map_or(0, |part| part.len())
        }))
    }
}

/// The file that `--url` names, as a path or in the form of an address.
fn file(url: &str) -> PathBuf {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    PathBuf::from(path.strip_prefix("//").unwrap_or(path))
}

/// An open store; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// For instances that are services of this process.
    Memory(Box<MemoryAdapter>),
    /// For the one instance of this process.
    Shared(Arc<dyn Adapter>),
}

impl Store {
    /// Opens the store. `ttl`: after how long idle sessions expire.
    pub(crate) async fn open(
        backend: Backend,
        url: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<Self, Failure> {
        backend.check(url)?;
        let limits = limits(ttl)?;
        match backend {
            Backend::Memory => Ok(Self::Memory(Box::new(MemoryAdapter::new(limits)))),
            Backend::Sqlite => {
                let file = file(url.unwrap_or_default());
                let opened = SqliteAdapter::open(SqliteOptions::new(&file).limits(limits)).await;
                let adapter =
                    opened.map_err(Failure::context(format!("cannot open {}", file.display())))?;
                Ok(Self::Shared(Arc::new(adapter)))
            }
            #[cfg(feature = "redis")]
            Backend::Redis => {
                use mcp_adapter_redis::{RedisAdapter, RedisOptions};
                let cannot = || Failure::context("cannot use Redis");
                let options = RedisOptions::new(url.unwrap_or_default()).map_err(cannot())?;
                let opened = RedisAdapter::connect(options.with_prefix(SPACE), limits).await;
                Ok(Self::Shared(Arc::new(opened.map_err(cannot())?)))
            }
            #[cfg(feature = "postgres")]
            Backend::Postgres => {
                use mcp_adapter_postgres::{PostgresAdapter, PostgresOptions};
                let options: PostgresOptions = url
                    .unwrap_or_default()
                    .parse()
                    .map_err(Failure::context("cannot use Postgres"))?;
                let opened = PostgresAdapter::connect_with(options.schema(SPACE), limits).await;
                let adapter = opened.map_err(Failure::context("cannot use Postgres"))?;
                Ok(Self::Shared(Arc::new(adapter)))
            }
            #[cfg(not(all(feature = "redis", feature = "postgres")))]
            // Refused by the check.
            _ => Err(Failure::new("this backend is not compiled in")),
        }
    }

    /// Opens another instance on the store. Its tasks run on the runtime that this
    /// is called in and die with it. `idle`: after how long without work a
    /// session leaves an instance's memory.
    pub(crate) fn mount(&self, instance: Arc<Instance>, idle: Option<Duration>) -> Mounted {
        let (adapter, memory): (Arc<dyn Adapter>, _) = match self {
            Self::Memory(adapter) => {
                let adapter = adapter.instance();
                (Arc::new(adapter.clone()), Some(adapter))
            }
            Self::Shared(adapter) => (Arc::clone(adapter), None),
        };
        let mut transport =
            StreamableHttpTransport::new().with_shared_adapter(Arc::clone(&adapter));
        if let Some(idle) = idle {
            transport = transport.with_worker_idle_timeout(idle);
        }
        let fleet = transport.fleet();
        let reach = fleet.clone();
        let service =
            transport.bind(move || Ok(ExampleServer::new(Arc::clone(&instance), reach.clone())));
        let asked = Arc::clone(&adapter);
        let router = axum::Router::new()
            .nest_service(ENDPOINT, service)
            .route(STORED, routing::get(move || stored(Arc::clone(&asked))));
        Mounted {
            router,
            fleet,
            adapter,
            memory,
        }
    }
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) sessions: u64,
    pub(crate) streams: u64,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) pending_requests: u64,
}

async fn stored(adapter: Arc<dyn Adapter>) -> axum::response::Response {
    let of = |count: Count| count.value();
    match adapter.stats().await {
        Ok(stats) => Json(Stored {
            sessions: of(stats.sessions),
            streams: of(stats.streams),
            events: of(stats.events),
            bytes: of(stats.bytes),
            pending_requests: of(stats.pending_requests),
        })
        .into_response(),
        Err(error) => {
            tracing::warn!(%error, "cannot tell what is stored");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

/// An instance that can be served.
#[derive(Clone)]
pub(crate) struct Mounted {
    pub(crate) router: axum::Router,
    fleet: FleetHandle,
    adapter: Arc<dyn Adapter>,
    /// What a process would take with it when it dies.
    memory: Option<MemoryAdapter>,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").finish_non_exhaustive()
    }
}

impl Mounted {
    /// Leaves everything as it is: what dropping it does from now on reaches no
    /// store, as if its process had died.
    pub(crate) fn kill(&self) {
        if let Some(adapter) = &self.memory {
            adapter.engine().kill();
        }
    }

    /// Announces its end.
    pub(crate) fn start_drain(&self) {
        self.fleet.start_drain();
    }

    /// Ends the instance's work: calls may run on until the deadline.
    pub(crate) async fn drain(&self, deadline: Duration) {
        let drained = self.fleet.drain(deadline).await;
        tracing::info!(aborted = drained.aborted, "drained");
    }

    /// Takes leave of the store.
    pub(crate) async fn close(&self) {
        if let Err(error) = self.adapter.close().await {
            // The others find it dead after a lease.
            tracing::warn!(%error, "the store was not told of the end");
        }
    }
}

/// Closes the response that a request's stream is read through; the client comes
/// back after `retry`. Requests without a session have no stream to come back to.
pub(crate) fn close_stream(context: &RequestContext<RoleServer>, retry: Duration) -> bool {
    context
        .extensions
        .get::<Session>()
        .is_some_and(|session| session.close_stream(Some(retry)))
}

/// Writes a note into the shared state of the request's session, where every
/// instance finds it. The oldest notes go first.
pub(crate) async fn note(context: &RequestContext<RoleServer>, tag: &str, text: &str) {
    let Some(session) = context.extensions.get::<Session>() else {
        return;
    };
    loop {
        let written = async {
            let seen = session.state().await?;
            let mut notes = seen.as_array().cloned().unwrap_or_default();
            notes.push(json!([tag, text]));
            let surplus = notes.len().saturating_sub(MAX_NOTES);
            notes.drain(..surplus);
            session.compare_and_set(&seen, Value::Array(notes)).await
        };
        match written.await {
            Ok(true) => return,
            // Another call of the session was faster.
            Ok(false) => {}
            Err(error) => return tracing::debug!(%error, "no note was left"),
        }
    }
}

/// The note with this tag, whichever instance left it.
pub(crate) async fn noted(context: &RequestContext<RoleServer>, tag: &str) -> Option<String> {
    let state = context.extensions.get::<Session>()?.state().await.ok()?;
    let note = state.as_array()?.iter().rfind(|note| note[0] == tag)?;
    note[1].as_str().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_compiled_in_says_what_to_run() {
        for backend in Backend::value_variants() {
            if backend.is_compiled_in() {
                continue;
            }
            let error = Place::prepare(*backend, Some("x")).unwrap_err().to_string();
            let wanted = format!("--features {0} -- --backend {0}", backend.as_str());
            assert!(error.contains(&wanted), "{error}");
        }
    }

    #[test]
    fn a_url_is_a_path_or_an_address() {
        for url in ["/a/b.db", "sqlite:/a/b.db", "sqlite:///a/b.db"] {
            assert_eq!(file(url), PathBuf::from("/a/b.db"));
        }
    }
}
