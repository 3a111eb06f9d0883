//! Why no cursor of ours is a number that the server counts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use common::{Setting, number, sql};
use futures::{StreamExt, future::join_all};
use mcp_adapter_core::{
    Position, RpcId, SessionAdapter, SessionId, SessionRecord, StreamId, TailEvent, TailFrom,
    storage::{Cursor, Read, Storage},
};
use mcp_adapter_postgres::{PostgresOptions, PostgresStorage};
use tokio::time::{Instant, timeout};

/// A reader that goes on after the highest number it has seen loses the rows of
/// whoever took a number first and committed later.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_on_a_global_identity_loses_rows() {
    let setting = Setting::start(&[]).await;
    let (mut slow, mut quick) = (setting.admin().await, setting.admin().await);
    let mut reader = setting.admin().await;
    sql(
        &mut reader,
        "CREATE TABLE log (id bigint GENERATED ALWAYS AS IDENTITY, text text)",
    )
    .await;
    sql(&mut slow, "BEGIN; INSERT INTO log (text) VALUES ('first')").await;
    sql(&mut quick, "INSERT INTO log (text) VALUES ('second')").await;
    let cursor = number(&mut reader, "SELECT max(id) FROM log").await;
    assert_eq!(cursor, 2, "the second is seen first");
    sql(&mut slow, "COMMIT").await;
    let unseen = format!("SELECT count(*) FROM log WHERE id > {cursor}");
    assert_eq!(
        number(&mut reader, &unseen).await,
        0,
        "the first is never seen"
    );
    assert_eq!(number(&mut reader, "SELECT count(*) FROM log").await, 2);
}

/// The same with ours: 16 writers at 4 instances, a reader that follows them as
/// fast as it can, and a tail.
#[tokio::test(flavor = "multi_thread")]
async fn ours_loses_none_under_sixteen_writers() {
    const WRITERS: usize = 16;
    const EACH: usize = 50;
    let setting = Setting::start(&[]).await;
    let instances = [
        setting.a.clone(),
        setting.b.clone(),
        setting.a.instance(),
        setting.a.instance(),
    ];
    let id = SessionId::generate();
    setting
        .a
        .create(&id, SessionRecord::default())
        .await
        .unwrap();
    let mut tail = setting.b.tail(&id, TailFrom::Standalone).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let (instance, id) = (instances[writer % instances.len()].clone(), id.clone());
        tokio::spawn(async move {
            for n in 0..EACH {
                let text = format!("{writer} {n}");
                instance.append(&id, Bytes::from(text)).await.unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let options: PostgresOptions = setting.url.parse().unwrap();
    let storage = PostgresStorage::connect(options, &common::limits())
        .await
        .unwrap();
    let mut cursor = Cursor {
        session: id.key(),
        stream: StreamId::standalone(),
        after: Position::START,
        max_events: 7,
        max_bytes: 1 << 20,
        touch: false,
    };
    let until = Instant::now() + Duration::from_secs(60);
    let mut read = Vec::new();
    while read.len() < WRITERS * EACH {
        assert!(Instant::now() < until, "{} were read", read.len());
        let Read::Page { events, .. } = storage.read(&[cursor.clone()]).await.unwrap().remove(0)
        else {
            continue;
        };
        for event in events {
            let next = event.position.follows(event.prev, cursor.after);
            assert!(next, "{:?} after {:?}", event.position, cursor.after);
            cursor.after = event.position;
            read.push(String::from_utf8(event.data.unwrap().to_vec()).unwrap());
        }
    }
    join_all(writers).await;
    let distinct: HashSet<_> = read.iter().collect();
    assert_eq!(distinct.len(), WRITERS * EACH, "each once");
    for expected in &read {
        let next = async {
            loop {
                match tail.next().await {
                    Some(TailEvent::Event { data, .. }) => return data,
                    Some(TailEvent::Begins { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        let data = timeout(Duration::from_secs(20), next).await.unwrap();
        assert_eq!(data, expected.as_bytes());
    }
}

/// A statement that was held up is executed after everybody gave up on it and the
/// writer went on: it stores nothing between what was stored since.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_append_changes_nothing() {
    let setting = Setting::start(&[]).await;
    let id = SessionId::generate();
    setting
        .a
        .create(&id, SessionRecord::default())
        .await
        .unwrap();
    let entered = setting.a.enter(&id, None, Some(&RpcId::Number(1)));
    let writer = entered.await.unwrap().writer.unwrap();
    writer.append(Bytes::from_static(b"1")).await.unwrap();
    writer.append(Bytes::from_static(b"2")).await.unwrap();
    writer.finish(Some(Bytes::from_static(b"3"))).await.unwrap();
    let mut admin = setting.admin().await;
    sql(&mut admin, "SET search_path = mcp_adapter").await;
    // The same call as the writer's own, with a place that is taken, and one that is
    // past the end.
    for (seq, outcome) in [(2, "5"), (9, "2")] {
        let late = format!(
            "SELECT code::bigint FROM mcp_adapter.append_one_v1(
                (SELECT key FROM mcp_adapter.session), '{}', false,
                (SELECT owner FROM mcp_adapter.stream), 1, {seq}, true, 'late', NULL, NULL,
                NULL, 1::smallint, 10, 1000, NULL, NULL)",
            writer.stream().as_str()
        );
        assert_eq!(number(&mut admin, &late).await.to_string(), outcome);
    }
    let events = "SELECT count(*) FROM mcp_adapter.event";
    assert_eq!(number(&mut admin, events).await, 3);
}
