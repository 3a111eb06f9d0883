//! Wake-ups of appends: none is forgotten, and a busy writer does not send many.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Setting, number, sql};
use futures::{StreamExt, future::join_all};
use mcp_adapter_core::{
    EventId, Limits, Position, RpcId, SessionAdapter, SessionId, SessionRecord, StreamWriter, Tail,
    TailEvent, TailFrom,
};
use mcp_adapter_postgres::{
    PostgresAdapter, PostgresOptions,
    sqlx::{PgConnection, postgres::PgListener},
};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

/// Two instances that see what they were not woken for much later than [`SOON`].
async fn patient(setting: &Setting) -> (PostgresAdapter, PostgresAdapter) {
    let limits = Limits::builder().catch_up(Duration::from_secs(120));
    let options: PostgresOptions = setting.url.parse().unwrap();
    let a = PostgresAdapter::connect_with(options, limits.build().unwrap());
    let a = a.await.unwrap();
    let b = a.instance();
    a.stats().await.unwrap();
    b.stats().await.unwrap();
    (a, b)
}

async fn call(a: &PostgresAdapter) -> (SessionId, Box<dyn StreamWriter>) {
    let id = SessionId::generate();
    a.create(&id, SessionRecord::default()).await.unwrap();
    let entered = a.enter(&id, None, Some(&RpcId::Number(1))).await.unwrap();
    (id, entered.writer.unwrap())
}

async fn follow(b: &PostgresAdapter, id: &SessionId, writer: &dyn StreamWriter) -> Tail {
    let from = EventId::new(writer.stream().clone(), Position::START);
    b.tail(id, TailFrom::After(from)).await.unwrap()
}

async fn next(tail: &mut Tail) -> Bytes {
    match timeout(SOON, tail.next()).await.expect("nobody was woken") {
        Some(TailEvent::Event { data, .. }) => data,
        other => panic!("{other:?}"),
    }
}

async fn until(connection: &mut PgConnection, condition: &str) {
    let end = Instant::now() + SOON;
    while number(connection, &format!("SELECT count(*) FROM {condition}")).await == 0 {
        assert!(Instant::now() < end, "{condition}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Sixteen followers of a writer that never pauses: each sees everything long before
/// the catch-up, and the server sends far fewer notifications than there are batches.
#[tokio::test(flavor = "multi_thread")]
async fn gathered_wake_ups_are_all_sent() {
    const STREAMS: usize = 16;
    const EACH: u32 = 200;
    let setting = Setting::start(&[]).await;
    let (a, b) = patient(&setting).await;
    let mut admin = setting.admin().await;
    let mut calls = Vec::new();
    for _ in 0..STREAMS {
        let (id, writer) = call(&a).await;
        let tail = follow(&b, &id, &*writer).await;
        calls.push((writer, tail));
    }
    // What is heard on all doors, `b` has only one.
    let channels = "SELECT string_agg(channel, ' ') FROM mcp_adapter.door";
    let channels: String = mcp_adapter_postgres::sqlx::query_scalar(channels)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let mut heard = PgListener::connect(&setting.url).await.unwrap();
    heard.listen_all(channels.split(' ')).await.unwrap();
    let start = Instant::now();
    let runs = calls.into_iter().map(|(writer, mut tail)| {
        tokio::spawn(async move {
            let write = async {
                for n in 0..EACH {
                    writer.append(Bytes::from(n.to_string())).await.unwrap();
                }
            };
            let read = async {
                for n in 0..EACH {
                    assert_eq!(next(&mut tail).await, n.to_string().as_bytes());
                }
            };
            tokio::join!(write, read);
        })
    });
    for run in join_all(runs.collect::<Vec<_>>()).await {
        run.unwrap();
    }
    let pauses = start.elapsed().as_millis() / 5;
    let mut notifications = 0;
    while let Ok(heard) = timeout(Duration::from_millis(200), heard.recv()).await {
        notifications += u128::from(heard.unwrap().payload().starts_with('w'));
    }
    // At most one per pause, and the first of each stream, whose writer knew of no
    // holder yet.
    let most = pauses + STREAMS as u128 + 2;
    assert!(
        (1..=most).contains(&notifications),
        "{notifications} of {most}"
    );
}

/// Every append waits, after it was stored and before it is committed, for who has
/// this lock.
const GATE: &str = "CREATE FUNCTION mcp_adapter.gate() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;
     CREATE TRIGGER gate AFTER INSERT ON mcp_adapter.event
     FOR EACH STATEMENT EXECUTE FUNCTION mcp_adapter.gate();
     SELECT pg_advisory_lock(4711)";

/// The stream is taken over while an append is under way that knows the former
/// holder. It is committed after the takeover, and wakes nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_under_way_during_a_takeover_is_seen() {
    let setting = Setting::start(&[]).await;
    let (a, b) = patient(&setting).await;
    let (mut gate, mut admin) = (setting.admin().await, setting.admin().await);
    let (id, writer) = call(&a).await;
    writer.append(Bytes::from_static(b"1")).await.unwrap();
    writer.append(Bytes::from_static(b"2")).await.unwrap();
    sql(&mut gate, GATE).await;
    let held = writer.append(Bytes::from_static(b"3"));
    until(&mut admin, "pg_locks WHERE objid = 4711 AND NOT granted").await;
    let (from, writer) = (writer.stream().clone(), writer);
    let follower = tokio::spawn(async move {
        let from = EventId::new(from, Position::START);
        let mut tail = b.tail(&id, TailFrom::After(from)).await.unwrap();
        for expected in [b"1", b"2", b"3"] {
            assert_eq!(next(&mut tail).await, &expected[..]);
        }
    });
    until(&mut admin, "mcp_adapter.stream WHERE number = 2").await;
    // It waits for the append; or it does not, and then it has read by now.
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
        AND mode = 'ExclusiveLock'";
    let end = Instant::now() + Duration::from_millis(500);
    while number(&mut admin, waits).await == 0 && Instant::now() < end {
        sleep(Duration::from_millis(2)).await;
    }
    sql(&mut gate, "SELECT pg_advisory_unlock(4711)").await;
    held.await.unwrap();
    follower.await.unwrap();
    drop(writer);
}

/// An append that does not end holds a takeover up for a moment, not for longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_does_not_wait_for_an_append_that_hangs() {
    let setting = Setting::start(&[]).await;
    let (mut gate, mut admin) = (setting.admin().await, setting.admin().await);
    let (id, writer) = call(&setting.a).await;
    writer.append(Bytes::from_static(b"1")).await.unwrap();
    sql(&mut gate, GATE).await;
    let held = writer.append(Bytes::from_static(b"2"));
    until(&mut admin, "pg_locks WHERE objid = 4711 AND NOT granted").await;
    let start = Instant::now();
    let mut tail = follow(&setting.b, &id, &*writer).await;
    assert_eq!(next(&mut tail).await, "1");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    sql(&mut gate, "SELECT pg_advisory_unlock(4711)").await;
    held.await.unwrap();
    // By the catch-up.
    assert_eq!(next(&mut tail).await, "2");
}
