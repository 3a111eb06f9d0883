#![doc = include_str!("../README.md")]

mod append;
mod cache;
mod clock;
mod doomed;
mod doorbell;
mod error;
mod file;
mod lock;
mod log;
mod open;
mod options;
mod reader;
mod record;
mod request;
mod rows;
mod schema;
mod session;
mod storage;
mod stream;
mod sweep;
mod tail;
mod watch;
mod worker;
mod writer;

use std::fmt;

use mcp_adapter_core::{Engine, EngineAdapter, Error, ErrorKind, Result};

pub use error::SqliteError;
pub use options::{SqliteOptions, Synchronous};
pub use storage::SqliteStorage;

/// The adapter for servers that run as several processes of one host: all roles
/// of the contract, on one file.
///
/// Each process opens the same file. Clones are the same instance;
/// [`instance`](Self::instance) opens another one in this process.
#[derive(Clone)]
pub struct SqliteAdapter {
    engine: Engine<SqliteStorage>,
    options: SqliteOptions,
}

impl SqliteAdapter {
    /// Opens an instance on a file, which is made where it is not there.
    ///
    /// ```
    /// use mcp_adapter_core::{SessionAdapter, SessionId, SessionRecord};
    /// use mcp_adapter_sqlite::{SqliteAdapter, SqliteOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let adapter = SqliteAdapter::open(SqliteOptions::new(folder.path().join("mcp.sqlite"))).await?;
    /// let id = SessionId::generate();
    /// adapter.create(&id, SessionRecord::default()).await?;
    /// // Another process would open the same file; this stands for one.
    /// let other = adapter.instance()?;
    /// assert!(other.enter(&id, None, None).await.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where the file cannot be used; the source is a [`SqliteError`] that says
    /// why.
    pub async fn open(options: SqliteOptions) -> Result<Self> {
        let adapter = Self::on(options)?;
        storage::ready(adapter.engine.storage()).await?;
        Ok(adapter)
    }

    /// Another instance, with its own id, heartbeat and connections, on the same
    /// file.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn instance(&self) -> Result<Self> {
        Self::on(self.options.clone())
    }

    fn on(options: SqliteOptions) -> Result<Self> {
        let storage = SqliteStorage::new(options.clone())
            .map_err(|error| Error::new(ErrorKind::Unavailable, "open").with_source(error))?;
        Ok(Self {
            engine: Engine::new(storage, options.limits.clone()),
            options,
        })
    }
}

impl EngineAdapter for SqliteAdapter {
    type Storage = SqliteStorage;

    fn engine(&self) -> &Engine<SqliteStorage> {
        &self.engine
    }
}

impl fmt::Debug for SqliteAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteAdapter")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
