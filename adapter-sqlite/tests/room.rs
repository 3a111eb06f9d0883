//! The file does not grow for ever.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod common;

use std::time::Duration;

use common::{LONG, ME, new_session, session, shared, store, texts};
use mcp_adapter_core::storage::{Append, Storage};
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage};

fn pages(path: &std::path::Path) -> i64 {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap()
}

fn rows(path: &std::path::Path, table: &str) -> i64 {
    let conn = rusqlite::Connection::open(path).unwrap();
    let sql = format!("SELECT count(*) FROM {table}");
    conn.query_row(&sql, [], |row| row.get(0)).unwrap()
}

async fn sweep(storage: &SqliteStorage) {
    while storage.sweep(1000, &[], LONG).await.unwrap().more {}
}

#[tokio::test]
async fn what_is_evicted_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let storage = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
    let key = session(&storage).await;
    let mut sizes = Vec::new();
    for round in 0..6_u64 {
        for batch in 0..40_u64 {
            let batch: Vec<_> = (0..100)
                .map(|n| Append {
                    keep_events: 500,
                    ..shared(key, 1, round * 4000 + batch * 100 + n + 1, &[b'x'; 300])
                })
                .collect();
            storage.append(&batch).await.unwrap();
        }
        sizes.push(pages(&path));
    }
    assert_eq!(texts(&storage, key).await.len(), 500);
    sweep(&storage).await;
    assert_eq!(rows(&path, "mcp_event"), 500);
    // 4000 events of each round would be 400 pages; what waits is 8192 events.
    assert!(sizes[5] <= sizes[2] + 100, "{sizes:?}");
}

#[tokio::test]
async fn what_is_deleted_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let storage = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
    let stays = session(&storage).await;
    store(&storage, &shared(stays, 1, 1, b"stays"))
        .await
        .unwrap();
    let mut sizes = Vec::new();
    for round in 0..6_u64 {
        let goes = new_session();
        storage.create(&goes).await.unwrap();
        for batch in 0..20_u64 {
            let batch: Vec<_> = (0..100)
                .map(|n| shared(goes.session, 1, batch * 100 + n + 1, &[b'x'; 300]))
                .collect();
            storage.append(&batch).await.unwrap();
        }
        storage.delete(&goes.session, &ME).await.unwrap().unwrap();
        sweep(&storage).await;
        // The log of the file goes on in between: ids never come again.
        store(&storage, &shared(stays, 1, round + 2, b"x"))
            .await
            .unwrap();
        sizes.push(pages(&path));
    }
    assert_eq!(rows(&path, "mcp_event"), 7);
    assert_eq!(rows(&path, "mcp_trash"), 0);
    assert!(sizes[5] <= sizes[1] + 20, "{sizes:?}");
    assert_eq!(texts(&storage, stays).await.len(), 7);
}

#[tokio::test]
async fn knocks_and_changes_do_not_pile_up() {
    use mcp_adapter_core::{
        InstanceId,
        storage::{Door, Knock},
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp");
    let storage = SqliteStorage::new(SqliteOptions::new(&path)).unwrap();
    session(&storage).await;
    let knock = [(Door::Of(InstanceId(1)), Knock::Probe(1))];
    for _ in 0..50 {
        storage.knock(&knock).await.unwrap();
    }
    assert_eq!(rows(&path, "mcp_knock"), 50);
    // As if they had lain there for an hour.
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute("UPDATE mcp_knock SET at = at - 3600000", [])
        .unwrap();
    sweep(&storage).await;
    assert_eq!(rows(&path, "mcp_knock"), 1, "the last one keeps its number");
    let last: i64 = conn
        .query_row("SELECT id FROM mcp_knock", [], |row| row.get(0))
        .unwrap();
    assert_eq!(last, 50);
    let mut bell = storage.doorbell(InstanceId(1)).await.unwrap();
    storage.knock(&knock).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(5), futures::StreamExt::next(&mut bell));
    assert_eq!(next.await.unwrap().unwrap().unwrap(), Knock::Probe(1));
}
