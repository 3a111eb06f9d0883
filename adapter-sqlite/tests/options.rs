//! Each option has its effect. That of `max_pages`, of the path and of the deadline
//! of a step is in `errors.rs`; what is kept in memory is in the crate itself.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod common;

use std::{path::Path, time::Duration};

use common::session;
use mcp_adapter_core::{
    Count, ErrorKind, InstanceId, Limits, SessionAdapter, SessionId, SessionRecord,
    storage::{Generation, Storage},
};
use mcp_adapter_sqlite::{SqliteAdapter, SqliteOptions, SqliteStorage, Synchronous};

/// Opens the file as a process of its own would, and writes to it.
async fn generation(path: &Path, synchronous: Synchronous) -> Generation {
    let options = SqliteOptions::new(path).synchronous(synchronous);
    let storage = SqliteStorage::new(options).unwrap();
    let generation = storage.attach(InstanceId(1)).await.unwrap();
    session(&storage).await;
    generation
}

/// What the file says of the start of the system becomes another one's.
fn restart_the_system(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let changed = conn.execute("UPDATE mcp_file SET boot = 'another'", []);
    assert_eq!(changed.unwrap(), 1);
}

#[tokio::test]
async fn synchronous_decides_whether_a_restart_of_the_system_is_another_history() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full");
    let first = generation(&path, Synchronous::Full).await;
    restart_the_system(&path);
    let second = generation(&path, Synchronous::Full).await;
    assert_eq!(first, second, "nothing that was acknowledged is lost");
    restart_the_system(&path);
    // Whoever opens it then, it was written so before.
    assert_eq!(generation(&path, Synchronous::Normal).await, first);
    restart_the_system(&path);
    let third = generation(&path, Synchronous::Full).await;
    assert_ne!(first, third, "the last commits may be lost");
    // One that wrote with less is enough, whoever came after it.
    generation(&path, Synchronous::Normal).await;
    assert_eq!(generation(&path, Synchronous::Full).await, third);
    restart_the_system(&path);
    assert_ne!(generation(&path, Synchronous::Full).await, third);
    // The default is the one that loses some.
    let path = folder.path().join("default");
    let storage = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
    let first = storage.attach(InstanceId(1)).await.unwrap();
    drop(storage);
    restart_the_system(&path);
    assert_ne!(generation(&path, Synchronous::Full).await, first);
}

#[tokio::test]
async fn limits_hold_in_the_storage_in_the_adapter_and_in_its_instances() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::builder()
        .event_bytes(10)
        .heartbeat(Duration::from_millis(123))
        .build()
        .unwrap();
    let options = SqliteOptions::new(folder.path().join("mcp")).limits(limits);
    let adapter = SqliteAdapter::open(options.clone()).await.unwrap();
    let id = SessionId::generate();
    adapter.create(&id, SessionRecord::default()).await.unwrap();
    for adapter in [&adapter, &adapter.instance().unwrap()] {
        adapter.append(&id, "0123456789".into()).await.unwrap();
        let large = adapter.append(&id, "0123456789a".into()).await;
        assert_eq!(large.unwrap_err().kind(), ErrorKind::TooLarge);
    }
    let storage = SqliteStorage::new(options).unwrap();
    let stats = storage.stats().await.unwrap();
    let age = Duration::from_millis(123);
    assert_eq!(stats.sessions, Count::Estimate { value: 1, age });
}
