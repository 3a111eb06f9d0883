//! What can go wrong with a file, by name.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod common;

use std::{path::Path, time::Duration};

use common::{LONG, ME, cause, new_session, session, shared, store, texts};
use futures::StreamExt as _;
use mcp_adapter_core::{
    Applied, ErrorKind, InstanceId, Limits, SessionAdapter, SessionId, SessionRecord,
    storage::Storage,
};
use mcp_adapter_sqlite::{SqliteAdapter, SqliteError, SqliteOptions, SqliteStorage};

fn quick() -> Limits {
    Limits::builder()
        .operation_timeout(Duration::from_millis(1500))
        .build()
        .unwrap()
}

async fn refused(options: SqliteOptions) -> (ErrorKind, SqliteError) {
    let error = SqliteAdapter::open(options.limits(quick()))
        .await
        .unwrap_err();
    assert_eq!(error.applied(), Applied::No);
    (error.kind(), cause(&error))
}

#[tokio::test]
async fn a_network_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    for kind in [0x6969, 0xff53_4d42, 0x0102_1997] {
        let options = SqliteOptions::new(&path).pretend_file_system(kind);
        let (kind_of, error) = refused(options).await;
        assert_eq!(kind_of, ErrorKind::InvalidArgument);
        assert!(matches!(error, SqliteError::NetworkFileSystem(found) if found == kind));
    }
    assert!(!path.exists(), "nothing was made there");
    // ext4, and what this machine really has.
    let local = SqliteOptions::new(&path).pretend_file_system(0xef53);
    SqliteAdapter::open(local).await.unwrap();
    SqliteAdapter::open(SqliteOptions::new(&path))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_folder_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (_, error) = refused(SqliteOptions::new(folder.path().join("none/mcp"))).await;
    assert!(matches!(error, SqliteError::NoFolder), "{error}");
}

#[tokio::test]
async fn a_path_that_names_no_regular_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    for path in ["", ":memory:", folder, "/", "/dev/null"] {
        let (kind, error) = refused(SqliteOptions::new(path)).await;
        assert!(
            matches!(error, SqliteError::NoRegularFile),
            "{path:?}: {error}"
        );
        assert_eq!(kind, ErrorKind::InvalidArgument);
    }
}

/// SQLite keeps the log beside the file that the link leads to.
#[cfg(unix)]
#[tokio::test]
async fn a_link_is_the_file_that_it_leads_to() {
    let folder = tempfile::tempdir().unwrap();
    let [file, link, log] = ["mcp", "link", "mcp-wal"].map(|name| folder.path().join(name));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let storage = SqliteStorage::new(SqliteOptions::new(&link).limits(quick())).unwrap();
    let key = session(&storage).await;
    let direct = SqliteStorage::new(SqliteOptions::new(&file)).unwrap();
    store(&direct, &shared(key, 1, 1, b"1")).await.unwrap();
    assert_eq!(texts(&storage, key).await, ["1"]);
    drop(direct);
    std::fs::remove_file(&log).unwrap();
    let error = storage.create(&new_session()).await.unwrap_err();
    assert!(matches!(cause(&error), SqliteError::Replaced), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let text = "this is no database, and it must stay as it is. ".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let (kind, error) = refused(SqliteOptions::new(&path)).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(matches!(error, SqliteError::NotADatabase), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn a_file_of_a_newer_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    SqliteAdapter::open(SqliteOptions::new(&path))
        .await
        .unwrap();
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute("UPDATE mcp_file SET version = 99", [])
        .unwrap();
    let (kind, error) = refused(SqliteOptions::new(&path)).await;
    assert_eq!(kind, ErrorKind::UnsupportedFormat);
    let newer = matches!(error, SqliteError::NewerSchema { found: 99, known } if known < 99);
    assert!(newer, "{error}");
    // It is left alone.
    let version: i64 = conn
        .query_row("SELECT version FROM mcp_file", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

#[tokio::test]
async fn a_file_of_the_host_application() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch(
        "PRAGMA application_id = 77; PRAGMA user_version = 5;
         CREATE TABLE session(id); INSERT INTO session VALUES (1);",
    )
    .unwrap();
    let adapter = SqliteAdapter::open(SqliteOptions::new(&path))
        .await
        .unwrap();
    let id = SessionId::generate();
    adapter.create(&id, SessionRecord::default()).await.unwrap();
    let number = |sql: &str| -> i64 { conn.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(number("PRAGMA application_id"), 77);
    assert_eq!(number("PRAGMA user_version"), 5);
    assert_eq!(number("SELECT count(*) FROM session"), 1);
    let foreign = "SELECT count(*) FROM sqlite_schema
        WHERE name NOT LIKE 'mcp\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    assert_eq!(number(foreign), 1, "all tables of ours have the prefix");
}

/// Runs `test` of this file again, as a user who may not write what root may.
#[cfg(unix)]
fn as_nobody(test: &str, folder: &Path) -> bool {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt as _};
    const NOBODY: u32 = 65534;
    if std::env::var_os("MCP_TEST_FOLDER").is_some() {
        return false;
    }
    // Where a test program lies nobody else may look: a copy lies in the folder.
    let program = folder.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(&program);
    command
        .args(["--exact", test, "--nocapture"])
        .current_dir("/")
        .env("MCP_TEST_FOLDER", folder);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let status = command.status().unwrap();
    assert!(status.success(), "{status}");
    true
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let folder = match std::env::var_os("MCP_TEST_FOLDER") {
        Some(folder) => folder.into(),
        None => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("mcp");
            let storage = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
            session(&storage).await;
            drop(storage);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
            assert!(as_nobody("a_file_that_cannot_be_written", folder.path()));
            return;
        }
    };
    let folder: std::path::PathBuf = folder;
    // The file, and a folder in which none can be made.
    for name in ["mcp", "another"] {
        let (kind, error) = refused(SqliteOptions::new(folder.join(name))).await;
        assert_eq!(kind, ErrorKind::Unavailable);
        assert!(matches!(error, SqliteError::ReadOnly), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_work_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let options = SqliteOptions::new(&path).limits(quick()).max_pages(200);
    let storage = SqliteStorage::new(options).unwrap();
    let large = new_session();
    storage.create(&large).await.unwrap();
    let small = session(&storage).await;
    let mut stored = Vec::new();
    let mut tag = 0;
    let full = loop {
        tag += 1;
        let text = format!("{tag:01000}");
        let (to_large, to_small) = (tag * 2, tag * 2 + 1);
        let filling = shared(large.session, 1, to_large, &[b'x'; 3000]);
        if let Err(error) = store(&storage, &filling).await {
            break error;
        }
        match store(&storage, &shared(small, 1, to_small, text.as_bytes())).await {
            Ok(_) => stored.push(text),
            Err(error) => break error,
        }
        assert!(tag < 10_000, "it never gets full");
    };
    assert!(matches!(cause(&full), SqliteError::Full), "{full}");
    assert_eq!((full.applied(), full.is_retryable()), (Applied::No, true));
    assert!(stored.len() > 20, "{}", stored.len());
    // What was acknowledged is there, here and for another process.
    let other = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
    for handle in [&storage, &other] {
        assert_eq!(texts(handle, small).await, stored);
    }
    // Room is made, by a process that may grow the file, or by the sweep.
    assert!(other.delete(&large.session, &ME).await.unwrap().is_some());
    while other.sweep(100, &[], LONG).await.unwrap().more {}
    let text = format!("{:01000}", tag + 1);
    let again = shared(small, 1, tag * 2 + 3, text.as_bytes());
    store(&storage, &again).await.unwrap();
    stored.push(text);
    assert_eq!(texts(&other, small).await, stored);
}

#[tokio::test]
async fn a_file_that_is_removed_under_a_running_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let options = SqliteOptions::new(&path).limits(quick());
    let storage = SqliteStorage::new(options.clone()).unwrap();
    let me = InstanceId(1);
    let first = storage.attach(me).await.unwrap();
    let mut bell = storage.doorbell(me).await.unwrap();
    let key = session(&storage).await;
    assert!(texts_or_gone(&storage, key).await.is_ok());
    for name in ["mcp", "mcp-wal", "mcp-shm"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let error = storage.create(&new_session()).await.unwrap_err();
    assert!(matches!(cause(&error), SqliteError::Replaced), "{error}");
    assert_eq!(error.applied(), Applied::No);
    let error = texts_or_gone(&storage, key).await.unwrap_err();
    assert!(matches!(cause(&error), SqliteError::Replaced), "{error}");
    let told = tokio::time::timeout(Duration::from_secs(5), bell.next());
    let told = told.await.unwrap().unwrap().unwrap_err();
    assert!(matches!(cause(&told), SqliteError::Replaced), "{told}");
    // Nobody makes a new one under the feet of the others.
    let error = storage.attach(me).await.unwrap_err();
    assert!(matches!(cause(&error), SqliteError::NoFile), "{error}");
    assert!(!path.exists());
    // A new process does. Nothing is done to its file before its generation
    // was read.
    let new = SqliteStorage::new(options).unwrap();
    session(&new).await;
    let error = storage.create(&new_session()).await.unwrap_err();
    assert!(matches!(cause(&error), SqliteError::Replaced), "{error}");
    let second = storage.attach(me).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(second, new.attach(InstanceId(2)).await.unwrap());
    session(&storage).await;
    assert!(texts_or_gone(&storage, key).await.is_ok());
}

/// Reads, whatever the answer is.
async fn texts_or_gone(
    storage: &SqliteStorage,
    session: mcp_adapter_core::SessionKey,
) -> mcp_adapter_core::Result<()> {
    let stream = mcp_adapter_core::StreamId::standalone();
    let cursor = mcp_adapter_core::storage::Cursor::state_of(session, stream);
    storage.read(&[cursor]).await.map(drop)
}

#[tokio::test]
async fn a_copy_in_its_place_is_another_history() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let options = SqliteOptions::new(&path);
    let storage = SqliteStorage::new(options.clone()).unwrap();
    let first = storage.attach(InstanceId(1)).await.unwrap();
    let key = session(&storage).await;
    let before = store(&storage, &shared(key, 1, 1, b"before"))
        .await
        .unwrap();
    // A backup, as SQLite makes them, and its return.
    let copy = folder.path().join("copy");
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute("VACUUM INTO ?", [copy.to_str().unwrap()])
        .unwrap();
    drop(conn);
    let lost = store(&storage, &shared(key, 1, 2, b"lost")).await.unwrap();
    drop(storage);
    // The last connection takes the log along.
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while folder.path().join("mcp-wal").exists() {
        assert!(
            tokio::time::Instant::now() < until,
            "the thread does not end"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::rename(&copy, &path).unwrap();
    let storage = SqliteStorage::new(options).unwrap();
    let second = storage.attach(InstanceId(1)).await.unwrap();
    assert_ne!(first, second, "acknowledged writes are missing");
    let after = store(&storage, &shared(key, 1, 3, b"after")).await.unwrap();
    assert!(after.epoch > before.epoch && after > lost, "{after:?}");
    let cursor = mcp_adapter_core::storage::Cursor {
        max_events: 10,
        max_bytes: 1000,
        ..mcp_adapter_core::storage::Cursor::state_of(key, mcp_adapter_core::StreamId::standalone())
    };
    let page = storage.read(&[cursor]).await.unwrap().pop().unwrap();
    let mcp_adapter_core::storage::Read::Page { events, .. } = page else {
        panic!("{page:?}");
    };
    let last = events.last().unwrap();
    assert!(
        !last.position.follows(last.prev, lost) && !last.position.follows(last.prev, before),
        "whoever read the lost event is told of a gap: {last:?}"
    );
}

#[tokio::test]
async fn a_stranger_who_holds_the_lock_for_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let storage = SqliteStorage::new(SqliteOptions::new(&path).limits(quick())).unwrap();
    let key = session(&storage).await;
    store(&storage, &shared(key, 1, 1, b"1")).await.unwrap();
    let stranger = rusqlite::Connection::open(&path).unwrap();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let started = tokio::time::Instant::now();
    let error = store(&storage, &shared(key, 1, 2, b"2")).await.unwrap_err();
    assert!(started.elapsed() < quick().operation_timeout());
    assert!(matches!(cause(&error), SqliteError::Locked), "{error}");
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true));
    // Reading goes on meanwhile.
    assert_eq!(texts(&storage, key).await, ["1"]);
    // Who waits when it is released gets its turn.
    let waiting = shared(key, 1, 2, b"2");
    let waiting = store(&storage, &waiting);
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stranger.execute_batch("COMMIT").unwrap();
    };
    let (stored, ()) = futures::join!(waiting, release);
    stored.unwrap();
    assert_eq!(texts(&storage, key).await, ["1", "2"]);
}

#[tokio::test]
async fn a_step_that_nobody_waits_for_breaks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let storage = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
    let key = session(&storage).await;
    for tag in 1..=200 {
        let append = shared(key, 1, tag, tag.to_string().as_bytes());
        let step = store(&storage, &append);
        if tag % 2 == 0 {
            step.await.unwrap();
        } else {
            // Dropped while it is queued, runs, or has been done.
            let patience = Duration::from_micros(tag * 3);
            let _ = tokio::time::timeout(patience, step).await;
        }
    }
    let found = texts(&storage, key).await;
    let numbers: Vec<u64> = found.iter().map(|text| text.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    for tag in (2..=200).step_by(2) {
        assert!(numbers.contains(&tag), "{tag} was acknowledged");
    }
}
