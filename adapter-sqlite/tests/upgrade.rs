//! A file of the version before is brought to this one, and nothing of it is lost.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod common;

use std::{collections::BTreeMap, path::Path};

use common::{ME, new_session, session, shared, store, texts};
use mcp_adapter_core::{
    InstanceId, StreamId, WaiterToken,
    storage::{Cursor, Entered, Read, Storage},
};
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage};
use rusqlite::Connection;

type Columns = BTreeMap<String, Vec<(String, String, bool, Option<String>, bool)>>;

/// Each table with its columns, and all indexes.
fn shape(path: &Path) -> (Columns, Vec<String>) {
    let conn = Connection::open(path).unwrap();
    let names = |kind: &str| -> Vec<String> {
        let sql = "SELECT name FROM sqlite_schema WHERE type = ? ORDER BY name";
        let mut statement = conn.prepare(sql).unwrap();
        let names = statement.query_map([kind], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    };
    let tables = names("table").into_iter().map(|table| {
        let sql = format!(
            "SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info('{table}')"
        );
        let mut statement = conn.prepare(&sql).unwrap();
        let columns = statement.query_map([], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        });
        let mut columns: Vec<_> = columns.unwrap().map(Result::unwrap).collect();
        // What is added comes last.
        columns.sort();
        (table, columns)
    });
    (tables.collect(), names("index"))
}

/// A file as version 1 has left it, with what `from` has.
fn version_1(from: &Path, to: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let conn = Connection::open(to).unwrap();
    conn.execute_batch(include_str!("schema_1.sql")).unwrap();
    let from = from.to_str().unwrap();
    conn.execute("ATTACH ? AS later", [from]).unwrap();
    for (table, columns) in shape(to).0 {
        let names: Vec<_> = columns.into_iter().map(|column| column.0).collect();
        let names = names.join(", ");
        let sql = format!("INSERT INTO main.{table}({names}) SELECT {names} FROM later.{table}");
        conn.execute(&sql, []).unwrap();
    }
    // It is the same file, which was not copied.
    let inode = std::fs::metadata(to).unwrap().ino().cast_signed();
    let sql = "UPDATE mcp_file SET version = 1, inode = ?";
    assert_eq!(conn.execute(sql, [inode]).unwrap(), 1);
}

#[tokio::test]
async fn a_file_of_version_1_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let [new, old] = ["new", "old"].map(|name| folder.path().join(name));
    let storage = SqliteStorage::new(SqliteOptions::new(&new)).unwrap();
    let key = session(&storage).await;
    let deleted = new_session();
    storage.create(&deleted).await.unwrap();
    storage
        .delete(&deleted.session, &ME)
        .await
        .unwrap()
        .unwrap();
    let generation = storage.attach(InstanceId(1)).await.unwrap();
    store(&storage, &shared(key, 1, 1, b"1")).await.unwrap();
    version_1(&new, &old);
    assert_ne!(shape(&old), shape(&new));

    let handles = [(); 3].map(|()| SqliteStorage::new(SqliteOptions::new(&old)).unwrap());
    let attached = futures::future::join_all(handles.iter().map(|one| one.attach(InstanceId(1))));
    for attached in attached.await {
        assert_eq!(attached.unwrap(), generation, "the same history");
    }
    assert_eq!(shape(&old), shape(&new));
    let [storage, ..] = &handles;
    assert_eq!(texts(storage, key).await, ["1"]);
    assert!(!storage.create(&deleted).await.unwrap(), "it is remembered");
    let entered = storage.enter(&key, &ME, None).await.unwrap();
    assert!(matches!(entered, Entered::Session { revision: 1, .. }));
    let update = mcp_adapter_core::storage::UpdateSession {
        session: key,
        principal: ME,
        revision: 1,
        record: "{}".into(),
        attempt: WaiterToken(1),
    };
    for _ in 0..2 {
        let done = mcp_adapter_core::storage::Updated::Done(2);
        assert_eq!(storage.update(&update).await.unwrap(), done);
    }
    let cursor = Cursor::state_of(key, StreamId::standalone());
    let Some(Read::Page { state, .. }) = storage.read(&[cursor]).await.unwrap().pop() else {
        panic!()
    };
    assert!(state.holds.is_empty());
}
