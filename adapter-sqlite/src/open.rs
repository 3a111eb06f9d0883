//! Opening the file.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::{
    error::{Done, SqliteError},
    file::{self, Seal},
    lock::insist,
    options::{SqliteOptions, Synchronous},
    schema::{self, History},
};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Write,
    Read,
    Listen,
}

impl Use {
    /// Pages that it may keep, in KiB.
    fn cache(self) -> i64 {
        match self {
            Self::Write => 32 << 10,
            Self::Read => 8 << 10,
            Self::Listen => 512,
        }
    }
}

/// Pages of the log after which a commit copies them into the file.
const CHECKPOINT: i64 = 4000;
/// What the log may keep on the disk after it was larger, in bytes.
const LOG_BYTES: i64 = 64 << 20;
const STATEMENTS: usize = 128;

/// An open file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) conn: Connection,
    pub(crate) seal: Seal,
    pub(crate) history: History,
}

/// The first release without the error that lets a checkpoint of one process pass
/// over commits of another one, after which the file is corrupt.
const SAFE: (i32, &str) = (3_051_003, "3.51.3");

/// Refuses a library that is older than that. What is compiled in is not; but a
/// program may be linked with the system's, by a setting of its build.
fn check_library(number: i32, found: &'static str) -> Done<()> {
    let (safe, needed) = SAFE;
    if number < safe {
        return Err(SqliteError::OldLibrary { found, needed });
    }
    Ok(())
}

/// Opens the file, and makes it first where `create` says so.
pub(crate) fn open(options: &SqliteOptions, purpose: Use, create: bool) -> Done<Opened> {
    check_library(rusqlite::version_number(), rusqlite::version())?;
    file::check_path(options)?;
    let before = file::identity(&options.path)?;
    if before.is_none() && !create && cfg!(unix) {
        return Err(SqliteError::NoFile);
    }
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let until =
        Instant::now() + schema::PATIENCE.min(options.patience().max(Duration::from_secs(1)));
    let conn = insist(until, || {
        Connection::open_with_flags(&options.path, flags).map_err(|error| {
            match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::CannotOpen) => SqliteError::ReadOnly,
                _ => error.into(),
            }
        })
    })?;
    conn.busy_timeout(Duration::ZERO)?;
    if conn.is_readonly("main")? {
        return Err(SqliteError::ReadOnly);
    }
    let file = file::identity(&options.path)?;
    if cfg!(unix) && (file.is_none() || (before.is_some() && before != file)) {
        return Err(SqliteError::Replaced);
    }
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    set(&conn, "cache_size", -purpose.cache())?;
    set(&conn, "mmap_size", 0)?;
    set(&conn, "journal_size_limit", LOG_BYTES)?;
    set(&conn, "wal_autocheckpoint", CHECKPOINT)?;
    let synchronous = match options.synchronous {
        Synchronous::Normal => 1,
        Synchronous::Full => 2,
    };
    set(&conn, "synchronous", synchronous)?;
    if let Some(pages) = options.max_pages {
        set(&conn, "max_page_count", pages.into())?;
    }
    // Many processes may want to change the mode of a new file at once.
    insist(until, || Ok(use_wal(&conn)?))?;
    let inode = file.map_or(0, |file| file.inode);
    let history = insist(until, || {
        schema::prepare(&conn, inode, options.synchronous, until)
    })?;
    if purpose != Use::Write {
        conn.pragma_update(None, "query_only", true)?;
    }
    let seal = Seal::new(&options.path, file)?;
    Ok(Opened {
        conn,
        seal,
        history,
    })
}

/// Pragmas that answer and pragmas that do not.
fn set(conn: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    conn.pragma_update_and_check(None, name, value, |_| Ok(()))
        .or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            error => Err(error),
        })
}

fn use_wal(conn: &Connection) -> rusqlite::Result<()> {
    let mode = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    let now = conn.query_row("PRAGMA journal_mode", [], mode)?;
    if now.eq_ignore_ascii_case("wal") {
        return Ok(());
    }
    let now = conn.query_row("PRAGMA journal_mode = WAL", [], mode)?;
    if now.eq_ignore_ascii_case("wal") {
        return Ok(());
    }
    // Another process has the file open in the old mode.
    Err(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
        None,
    ))
}

#[cfg(test)]
mod tests {
    use mcp_adapter_core::{Applied, ErrorKind};

    use super::*;

    #[test]
    fn an_older_library_is_refused() {
        for (number, found) in [(3_051_002, "3.51.2"), (3_040_001, "3.40.1")] {
            let error = check_library(number, found).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "SQLite {found} is older than 3.51.3, the first that is safe with several processes"
                )
            );
            let error = error.into_error("open", Applied::No);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        for (number, found) in [(3_051_003, "3.51.3"), (3_054_001, "3.54.1")] {
            assert!(check_library(number, found).is_ok());
        }
    }

    #[test]
    fn each_connection_is_as_the_options_say() {
        let folder = tempfile::tempdir().unwrap();
        for (synchronous, level) in [(Synchronous::Normal, 1), (Synchronous::Full, 2)] {
            let options = SqliteOptions::new(folder.path().join("mcp"))
                .synchronous(synchronous)
                .max_pages(777);
            for purpose in [Use::Write, Use::Read, Use::Listen] {
                let conn = open(&options, purpose, true).unwrap().conn;
                let number = |pragma: &str| -> i64 {
                    conn.pragma_query_value(None, pragma, |row| row.get(0))
                        .unwrap()
                };
                assert_eq!(number("synchronous"), level);
                assert_eq!(number("max_page_count"), 777);
                assert_eq!(number("cache_size"), -purpose.cache());
                assert_eq!(number("mmap_size"), 0);
                assert_eq!(number("query_only") == 1, purpose != Use::Write);
            }
        }
    }
}
