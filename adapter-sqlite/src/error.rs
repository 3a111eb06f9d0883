//! What can go wrong with a file.

use std::{io, sync::Arc};

use mcp_adapter_core::{Applied, Error, ErrorKind};
use rusqlite::ErrorCode;

/// Why a step failed: the [source](std::error::Error::source) of every
/// [`Error`] of this adapter.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteError {
    /// The file lies on a network file system, given by its type as `statfs`
    /// tells it. Locks and shared memory do not work there as SQLite needs them.
    #[error("the file is on a network file system (type {0:#x}), where SQLite's locks do not hold")]
    NetworkFileSystem(u64),
    /// The path names no file that SQLite would keep: it is empty, `:memory:`, or
    /// that of a folder or a device.
    #[error("the path names no regular file")]
    NoRegularFile,
    /// The folder of the file does not exist.
    #[error("the folder of the file does not exist")]
    NoFolder,
    /// The SQLite library that this program is linked with is older than the first
    /// that keeps the log of a file whole where several processes write to it.
    /// Only a program that was told not to compile SQLite in can have one.
    #[error("SQLite {found} is older than {needed}, the first that is safe with several processes")]
    OldLibrary {
        /// The version of the library.
        found: &'static str,
        /// The oldest that is accepted.
        needed: &'static str,
    },
    /// The file is not there any more, and a running process makes no new one.
    #[error("the file is not there")]
    NoFile,
    /// The file was removed or replaced while it was in use.
    #[error("the file was removed or replaced while it was in use")]
    Replaced,
    /// The file, or its folder, cannot be written.
    #[error("the file or its folder cannot be written")]
    ReadOnly,
    /// The file was written by a newer version of this crate.
    #[error("the file has schema version {found}, and this version knows {known}")]
    NewerSchema {
        /// The version of the file.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// The file is something else.
    #[error("the file is not an SQLite database")]
    NotADatabase,
    /// The disk is full, or the file has its largest size. Nothing was changed;
    /// work goes on when there is room.
    #[error("the disk is full, or the file has its largest size")]
    Full,
    /// Another process held the write lock until the deadline.
    #[error("another transaction held the write lock until the deadline")]
    Locked,
    /// It waited in the queue until its deadline.
    #[error("it waited in the queue until its deadline")]
    Late,
    /// A record cannot be decoded.
    #[error("a record cannot be decoded")]
    Corrupt,
    /// Any other error of SQLite.
    #[error("SQLite: {0}")]
    Sqlite(Arc<rusqlite::Error>),
    /// The operating system refused something.
    #[error("the operating system: {0}")]
    Io(Arc<io::Error>),
}

pub(crate) type Done<T> = Result<T, SqliteError>;

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            Some(ErrorCode::NotADatabase) => Self::NotADatabase,
            _ => Self::Sqlite(Arc::new(error)),
        }
    }
}

impl From<io::Error> for SqliteError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl SqliteError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NewerSchema { .. } => ErrorKind::UnsupportedFormat,
            Self::NotADatabase | Self::Corrupt => ErrorKind::Corrupt,
            Self::NetworkFileSystem(_)
            | Self::NoRegularFile
            | Self::NoFolder
            | Self::OldLibrary { .. } => ErrorKind::InvalidArgument,
            Self::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt) => ErrorKind::Corrupt,
                _ => ErrorKind::Unavailable,
            },
            Self::Late => ErrorKind::Timeout,
            _ => ErrorKind::Unavailable,
        }
    }

    /// Whether a commit that fails with it may have happened.
    pub(crate) fn of_commit(&self) -> Applied {
        match self {
            Self::Full | Self::Locked | Self::ReadOnly => Applied::No,
            _ => Applied::Unknown,
        }
    }

    pub(crate) fn into_error(self, operation: &'static str, applied: Applied) -> Error {
        Error::new(self.kind(), operation)
            .with_applied(applied)
            .with_message(self.to_string())
            .with_source(self)
    }
}
