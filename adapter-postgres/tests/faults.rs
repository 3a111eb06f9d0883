//! What goes wrong with a server and on the way to it, while calls run.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{os::unix::fs::MetadataExt, process::Command, time::Duration};

use bytes::Bytes;
use common::{
    Load, NOTICED, Setting, behind_a_proxy, hop, is_pushed, limits, number, sql, stand_still,
};
use mcp_adapter_conformance::faults::Signal;
use mcp_adapter_core::{Applied, Health, Role, RpcId, SessionAdapter, SessionId, SessionRecord};
use mcp_adapter_postgres::{
    ConnectError, PostgresAdapter, PostgresOptions,
    sqlx::{self, Connection, Executor, PgConnection},
};
use tokio::time::{Instant, sleep};

const CALLS: usize = 8;

/// Errors that the server throws in the middle of a statement, by a trigger.
async fn throw(connection: &mut PgConnection, table: &str, code: &str, one_in: u32) {
    sql(
        connection,
        format!(
            "CREATE OR REPLACE FUNCTION mcp_adapter.throw() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF random() * {one_in} < 1 THEN
                     RAISE EXCEPTION 'thrown by a test' USING ERRCODE = '{code}';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER throw BEFORE INSERT OR UPDATE ON mcp_adapter.{table}
             FOR EACH STATEMENT EXECUTE FUNCTION mcp_adapter.throw()"
        ),
    )
    .await;
}

async fn throw_no_more(connection: &mut PgConnection, table: &str) {
    sql(
        connection,
        format!("DROP TRIGGER throw ON mcp_adapter.{table}"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_and_writers_are_terminated_in_a_loop() {
    let setting = Setting::start(&[]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    let mut admin = setting.admin().await;
    let mut ended = 0;
    for _ in 0..40 {
        ended += number(
            &mut admin,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE application_name = 'mcp-adapter' AND (query LIKE 'LISTEN%' OR random() < 0.5)",
        )
        .await;
        sleep(Duration::from_millis(75)).await;
    }
    assert!(ended > 40, "{ended}");
    is_pushed(&setting.a, &setting.b).await;
    load.end(false).await;
    setting.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_cancelled_in_a_loop() {
    let setting = Setting::start(&[]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    let mut admin = setting.admin().await;
    for _ in 0..200 {
        number(
            &mut admin,
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
             WHERE application_name = 'mcp-adapter' AND state = 'active'",
        )
        .await;
        sleep(Duration::from_millis(10)).await;
    }
    load.end(false).await;
    setting.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_stands_still_for_two_seconds() {
    let mut setting = Setting::start(&[]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    sleep(Duration::from_millis(300)).await;
    stand_still(&mut setting, Duration::from_secs(2)).await;
    is_pushed(&setting.a, &setting.b).await;
    load.end(false).await;
    setting.recovers().await;
}

/// Longer than a lease: nobody is dead of it, for nobody's heartbeat is read.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_stands_still_for_longer_than_a_lease() {
    let mut setting = Setting::start(&[]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    sleep(Duration::from_millis(300)).await;
    stand_still(&mut setting, Duration::from_secs(12)).await;
    is_pushed(&setting.a, &setting.b).await;
    load.end(true).await;
    setting.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_shut_down_at_once_and_comes_back() {
    let mut setting = Setting::start(&[]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    for _ in 0..2 {
        sleep(Duration::from_millis(500)).await;
        setting.server.program().signal(Signal::Quit).unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(matches!(setting.a.health(), Health::Down { .. }));
        let program = setting.server.program();
        tokio::task::block_in_place(|| program.restart().unwrap());
    }
    is_pushed(&setting.a, &setting.b).await;
    load.end(false).await;
    setting.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_is_taken() {
    let setting = Setting::start(&["max_connections=24", "superuser_reserved_connections=0"]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    sleep(Duration::from_millis(300)).await;
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(&setting.url).await {
        taken.push(connection);
    }
    assert!(!taken.is_empty());
    // A new instance says why it cannot start; those that run go on with theirs.
    let refused = PostgresAdapter::connect(&setting.url, limits()).await;
    assert!(
        matches!(refused, Err(ConnectError::Unreachable(_))),
        "{refused:?}"
    );
    assert!(hop(&setting.a, &setting.b).await < Duration::from_secs(5));
    drop(taken);
    is_pushed(&setting.a, &setting.b).await;
    load.end(false).await;
    let late = PostgresAdapter::connect(&setting.url, limits())
        .await
        .unwrap();
    late.stats().await.unwrap();
}

/// A file system of a megabyte, where this user may mount one.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(setting: &mut Setting) -> Option<Self> {
        let folder = setting.server.program().folder().join("small");
        std::fs::create_dir(&folder).ok()?;
        let data = std::fs::metadata(folder.with_file_name("data")).ok()?;
        let options = format!("size=1m,mode=700,uid={},gid={}", data.uid(), data.gid());
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&folder)
            .output()
            .ok()?;
        mount.status.success().then_some(Self(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the server may still have files there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// The disk has no room for events, or, where no small one can be mounted, the error is
/// thrown where they are stored: the batch has changed nothing, and appends go on when
/// there is room again.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_is_full() {
    let mut setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    let disk = Disk::mount(&mut setting);
    println!(
        "the disk is {}",
        if disk.is_some() {
            "full"
        } else {
            "said to be full"
        }
    );
    if let Some(Disk(folder)) = &disk {
        let space = format!("CREATE TABLESPACE small LOCATION '{}'", folder.display());
        sql(&mut admin, space).await;
        sql(
            &mut admin,
            "ALTER TABLE mcp_adapter.event SET TABLESPACE small",
        )
        .await;
    }
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    let id = SessionId::generate();
    setting
        .a
        .create(&id, SessionRecord::default())
        .await
        .unwrap();
    let entered = setting.a.enter(&id, None, Some(&RpcId::Number(1)));
    let writer = entered.await.unwrap().writer.unwrap();
    if disk.is_some() {
        sql(&mut admin, "CREATE TABLE filler (x text) TABLESPACE small").await;
        let fill = "INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 100)";
        let full = loop {
            if let Err(error) = admin.execute(sqlx::raw_sql(fill)).await {
                break error;
            }
        };
        let code = full.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("53100"), "{full}");
    } else {
        throw(&mut admin, "event", "53100", 1).await;
    }
    // Its pages may have room for a few.
    let mut stored = 0;
    let refused = loop {
        match writer.append(Bytes::from(vec![b'x'; 4000])).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 300, "there is room on a full disk");
    };
    assert!(refused.is_retryable(), "{refused:?}");
    if disk.is_some() {
        sql(&mut admin, "DROP TABLE filler").await;
    } else {
        throw_no_more(&mut admin, "event").await;
    }
    writer.append(Bytes::from_static(b"y")).await.unwrap();
    load.end(true).await;
    setting.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_fail_by_serialization_and_deadlock() {
    let setting = Setting::start(&[]).await;
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    let mut admin = setting.admin().await;
    for (table, code) in [
        ("event", "40001"),
        ("event", "40P01"),
        ("request", "40001"),
        ("request", "40P01"),
        ("session", "40P01"),
    ] {
        throw(&mut admin, table, code, 3).await;
        sleep(Duration::from_millis(600)).await;
        throw_no_more(&mut admin, table).await;
    }
    load.end(false).await;
    setting.recovers().await;
}

/// A session that listens and sits in a transaction keeps all notifications. From
/// Postgres 17 on the queue can be made small enough to be filled; below it the function
/// that notifies throws what the server would.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_notifications_is_full() {
    const THROWS: &str = "ALTER FUNCTION mcp_adapter.send_v1 RENAME TO send_v1_works;
         CREATE FUNCTION mcp_adapter.send_v1(p_all text, p_to bytea[], p_payload text[])
         RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             RAISE EXCEPTION 'too many notifications in the NOTIFY queue'
                 USING ERRCODE = '54000';
         END $$";
    const THROWS_NO_MORE: &str = "DROP FUNCTION mcp_adapter.send_v1;
         ALTER FUNCTION mcp_adapter.send_v1_works RENAME TO send_v1";
    let mut setting = Setting::start(&[]).await;
    let real = setting.version().await >= 170_000;
    if real {
        setting = Setting::start(&["max_notify_queue_pages=64"]).await;
    }
    println!(
        "the queue is {}",
        if real { "full" } else { "said to be full" }
    );
    let load = Load::start(&setting.a, &setting.b, CALLS).await;
    let (mut admin, mut idler) = (setting.admin().await, setting.admin().await);
    if real {
        sql(&mut idler, "LISTEN nobody_uses_this; BEGIN").await;
        let filler = "SELECT pg_notify('nobody_uses_this', n || repeat('x', 7000)) \
            FROM generate_series(1, 8) n";
        let full = loop {
            if let Err(error) = admin.execute(sqlx::raw_sql(filler)).await {
                break error;
            }
        };
        let code = full.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("54000"), "{full}");
        // What is left of the last page is used up soon by what is smaller.
        let small = "SELECT pg_notify('nobody_uses_this', '')";
        while admin.execute(sqlx::raw_sql(small)).await.is_ok() {}
    } else {
        sql(&mut admin, THROWS).await;
    }
    sleep(Duration::from_millis(500)).await;
    // Stored all the same, and seen with the next round of catching up.
    for _ in 0..3 {
        let took = hop(&setting.a, &setting.b).await;
        assert!(took < limits().catch_up() * 3, "{took:?}");
    }
    if real {
        sql(&mut idler, "ROLLBACK").await;
    } else {
        sql(&mut admin, THROWS_NO_MORE).await;
    }
    is_pushed(&setting.a, &setting.b).await;
    load.end(false).await;
    setting.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_turns_into_a_standby_and_back() {
    let mut setting = Setting::start(&["wal_level=replica", "max_wal_senders=2"]).await;
    let id = SessionId::generate();
    setting
        .a
        .create(&id, SessionRecord::default())
        .await
        .unwrap();
    let turn = |setting: &mut Setting, standby: bool| {
        let program = setting.server.program();
        let signal = program.folder().join("data/standby.signal");
        program.end(false).unwrap();
        if standby {
            std::fs::write(&signal, "").unwrap();
        } else {
            std::fs::remove_file(&signal).unwrap();
        }
        program.restart().unwrap();
    };
    tokio::task::block_in_place(|| turn(&mut setting, true));
    let refused = PostgresAdapter::connect(&setting.url, limits()).await;
    assert!(
        matches!(refused, Err(ConnectError::ReadOnly)),
        "{refused:?}"
    );
    let error = setting
        .a
        .append(&id, Bytes::from_static(b"x"))
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let other = SessionId::generate();
    let created = setting.a.create(&other, SessionRecord::default()).await;
    assert!(created.unwrap_err().is_retryable());
    tokio::task::block_in_place(|| turn(&mut setting, false));
    setting.recovers().await;
    setting
        .a
        .append(&id, Bytes::from_static(b"x"))
        .await
        .unwrap();
    is_pushed(&setting.a, &setting.b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_are_lost_after_the_commit() {
    let mut setting = Setting::start(&[]).await;
    let (link, _proxy, far) = behind_a_proxy(&mut setting, limits()).await;
    let load = Load::start(&far, &setting.b, CALLS).await;
    for _ in 0..30 {
        link.lose_replies(2);
        sleep(Duration::from_millis(60)).await;
    }
    link.mend();
    load.end(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_of_a_start_is_named() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    sql(
        &mut admin,
        "CREATE ROLE poor LOGIN; REVOKE CREATE ON DATABASE postgres FROM PUBLIC",
    )
    .await;
    let url = setting.url.replace("postgres@", "poor@");
    let open = |url: &str, schema: &str| {
        let options: PostgresOptions = url.parse().unwrap();
        PostgresAdapter::connect_with(options.schema(schema), limits())
    };
    let refused = open(&url, "fresh").await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Privilege { .. }),
        "{refused:?}"
    );
    let refused = open(&url, "mcp_adapter").await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Privilege { .. }),
        "{refused:?}"
    );
    let refused = open(&setting.url, "Bad-Name").await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::InvalidOption(..)),
        "{refused:?}"
    );
    let refused = PostgresAdapter::connect("postgres://postgres@127.0.0.1:1/x", limits());
    let refused = refused.await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Unreachable(_)),
        "{refused:?}"
    );
    let options: PostgresOptions = setting.url.parse().unwrap();
    let bare = options.schema("bare").migrate(false);
    let refused = PostgresAdapter::connect_with(bare, limits())
        .await
        .unwrap_err();
    assert!(matches!(refused, ConnectError::NotMigrated), "{refused:?}");
    // With the least that is needed it works.
    sql(
        &mut admin,
        "GRANT USAGE ON SCHEMA mcp_adapter TO poor; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA mcp_adapter TO poor",
    )
    .await;
    let poor = open(&url, "mcp_adapter").await.unwrap();
    let id = SessionId::generate();
    poor.create(&id, SessionRecord::default()).await.unwrap();
    is_pushed(&poor, &setting.b).await;
    assert!(setting.b.delete(&id, None).await.unwrap());
    // A version that this one does not understand has been here.
    sql(
        &mut admin,
        "INSERT INTO mcp_adapter.migration (version, needs) VALUES (9, 9)",
    )
    .await;
    let refused = PostgresAdapter::connect(&setting.url, limits())
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ConnectError::NewerSchema { needs: 9, .. }),
        "{refused:?}"
    );
    // One that only added is no obstacle, and those that run go on.
    sql(
        &mut admin,
        "UPDATE mcp_adapter.migration SET needs = 1 WHERE version = 9",
    )
    .await;
    let beside = PostgresAdapter::connect(&setting.url, limits())
        .await
        .unwrap();
    is_pushed(&setting.a, &beside).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_copy_is_another_history() {
    let setting = Setting::start(&[]).await;
    let id = SessionId::generate();
    setting
        .a
        .create(&id, SessionRecord::default())
        .await
        .unwrap();
    let first = setting
        .a
        .append(&id, Bytes::from_static(b"1"))
        .await
        .unwrap();
    let mut admin = setting.admin().await;
    // As if the log were shorter than it was: the copy of an older day.
    sql(
        &mut admin,
        "CREATE OR REPLACE FUNCTION mcp_adapter.lsn_v1() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    )
    .await;
    let until = Instant::now() + NOTICED;
    let second = loop {
        // Never an id of the former history: refused until it is attached anew.
        match setting.a.append(&id, Bytes::from_static(b"2")).await {
            Ok(second) => break second,
            Err(error) => assert_eq!(error.applied(), Applied::No, "{error:?}"),
        }
        assert!(Instant::now() < until, "it is not noticed");
    };
    assert!(
        second.position.epoch > first.position.epoch,
        "{second:?} after {first:?}"
    );
    setting.recovers().await;
}
