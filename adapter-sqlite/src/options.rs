//! Where the file is and how it is kept.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mcp_adapter_core::Limits;

/// How much an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// The end of any process, by whatever signal. The last commits before a
    /// power failure or a crash of the system may be lost; the file is whole
    /// all the same, and writers open a new epoch, so that nobody is misled
    /// (clause E1).
    #[default]
    Normal,
    /// The loss of power, too, where the disk does not lie about what it has
    /// written. Each commit waits for the disk.
    Full,
}

/// Where the file is and how it is kept. All processes on a file should use
/// the same.
///
/// ```
/// use mcp_adapter_core::Limits;
/// use mcp_adapter_sqlite::{SqliteOptions, Synchronous};
///
/// let options = SqliteOptions::new("/var/lib/acme/mcp.sqlite")
///     .limits(Limits::default())
///     .synchronous(Synchronous::Full);
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteOptions {
    pub(crate) path: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) synchronous: Synchronous,
    pub(crate) max_pages: Option<u32>,
    pub(crate) file_system: Option<u64>,
    pub(crate) watch: bool,
}

impl SqliteOptions {
    /// The file at `path`, or that to which a link there leads; it is made where
    /// it is not there, its folder is not. It may be a file of the host
    /// application's own: all tables are called `mcp_...`. A path that is empty,
    /// `:memory:`, or that of a folder or a device, is refused when it is opened,
    /// with [`SqliteError::NoRegularFile`](crate::SqliteError::NoRegularFile).
    ///
    /// Beside it SQLite keeps `<path>-wal` and `<path>-shm`. Nobody may open,
    /// copy or remove one of the three while a process runs: closing a file
    /// takes away all locks that the process has on it.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            limits: Limits::default(),
            synchronous: Synchronous::default(),
            max_pages: None,
            file_system: None,
            watch: true,
        }
    }

    /// Limits and intervals. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What acknowledged writes survive. Default: [`Synchronous::Normal`].
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// The largest size of the file, in pages (4096 bytes in a file of our
    /// making). At it writes fail with [`SqliteError::Full`] until something
    /// was swept. Default: no bound but the disk.
    ///
    /// [`SqliteError::Full`]: crate::SqliteError::Full
    pub fn max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }

    /// Wake-ups by polling alone, as where the system has no inotify.
    #[doc(hidden)]
    pub fn poll_only(mut self) -> Self {
        self.watch = false;
        self
    }

    /// For tests: the type that `statfs` is to tell.
    #[doc(hidden)]
    pub fn pretend_file_system(mut self, kind: u64) -> Self {
        self.file_system = Some(kind);
        self
    }

    /// How long a step may wait for the lock and the queue: it ends with an
    /// error of its own before the engine's deadline ends it without.
    pub(crate) fn patience(&self) -> Duration {
        self.limits.operation_timeout().mul_f64(0.8)
    }
}
