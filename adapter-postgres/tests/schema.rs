//! The schema beside an application's own, and how it keeps its size.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Setting, hop, is_pushed, limits, number, sql};
use futures::future::try_join_all;
use mcp_adapter_conformance::server::{PgBouncer, Postgres};
use mcp_adapter_core::{Limits, RpcId, SessionAdapter, SessionId, SessionRecord};
use mcp_adapter_postgres::{
    Pooler, PostgresAdapter, PostgresOptions, Wake,
    sqlx::{Connection, PgConnection, postgres::PgPoolOptions},
};
use tokio::time::Instant;

/// What a migrator in the manner of sqlx does at each start of the application.
async fn migrate(connection: &mut PgConnection, migrations: &[(i64, &str)]) {
    sql(
        connection,
        "CREATE TABLE IF NOT EXISTS _sqlx_migrations (version bigint PRIMARY KEY,
         description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
         success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL)",
    )
    .await;
    let known = number(
        connection,
        "SELECT coalesce(max(version), 0) FROM _sqlx_migrations",
    )
    .await;
    let applied = number(connection, "SELECT count(*) FROM _sqlx_migrations").await;
    let ours = migrations
        .iter()
        .filter(|(version, _)| *version <= known)
        .count();
    // A row that is not the application's would stop it: `VersionMissing`.
    assert_eq!(applied, i64::try_from(ours).unwrap());
    for (version, text) in migrations.iter().filter(|(version, _)| *version > known) {
        sql(
            connection,
            format!(
                "BEGIN; {text}; INSERT INTO _sqlx_migrations VALUES
                 ({version}, 'test', now(), true, '', 0); COMMIT"
            ),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_migrations_go_on_beside_ours() {
    let server = tokio::task::spawn_blocking(|| Postgres::start(&[]))
        .await
        .unwrap()
        .unwrap();
    let url = server.url();
    let mut app = PgConnection::connect(&url).await.unwrap();
    // Names that could be taken for ours.
    let first = (
        1,
        "CREATE TABLE session (id int); CREATE TABLE migration (x int)",
    );
    let second = (
        2,
        "ALTER TABLE session ADD COLUMN name text; CREATE TABLE event (y int)",
    );
    migrate(&mut app, &[first]).await;
    let a = PostgresAdapter::connect(&url, limits()).await.unwrap();
    let b = a.instance();
    is_pushed(&a, &b).await;
    migrate(&mut app, &[first, second]).await;
    is_pushed(&a, &b).await;
    let late = PostgresAdapter::connect(&url, limits()).await.unwrap();
    is_pushed(&late, &b).await;
    migrate(&mut app, &[first, second]).await;
    let public = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
        WHERE nspname = 'public' AND relkind = 'r'";
    assert_eq!(
        number(&mut app, public).await,
        4,
        "nothing of ours is among the application's"
    );
    assert_eq!(number(&mut app, "SELECT count(*) FROM session").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_instances_start_at_once_on_an_empty_database() {
    let server = tokio::task::spawn_blocking(|| Postgres::start(&[]))
        .await
        .unwrap()
        .unwrap();
    let url = server.url();
    let open = || PostgresAdapter::connect(&url, limits());
    let all = try_join_all((0..10).map(|_| open())).await.unwrap();
    for pair in all.windows(2) {
        assert!(hop(&pair[0], &pair[1]).await < Duration::from_secs(3));
    }
    let mut admin = PgConnection::connect(&url).await.unwrap();
    let migrations = "SELECT count(*) FROM mcp_adapter.migration";
    assert_eq!(number(&mut admin, migrations).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_own_pool_does() {
    let server = tokio::task::spawn_blocking(|| Postgres::start(&[]))
        .await
        .unwrap()
        .unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect(&server.url())
        .await
        .unwrap();
    let a = PostgresAdapter::with_pool(pool.clone(), None, limits())
        .await
        .unwrap();
    let b = PostgresAdapter::with_pool(pool.clone(), Some(&server.url()), limits())
        .await
        .unwrap();
    assert!(!a.polls() && !b.polls());
    let load = common::Load::start(&a, &b, 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.end(false).await;
    is_pushed(&a, &b).await;
    // Its connections are as they were: nothing of ours is set in them.
    let mut connection = pool.acquire().await.unwrap();
    let timeout = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'";
    assert_eq!(number(&mut connection, timeout).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_is_found_out_and_a_direct_url_is_woken_through() {
    let (mut server, pooler) = tokio::task::spawn_blocking(|| {
        let mut server = Postgres::start(&[]).unwrap();
        // One that takes settings and does not hand them on.
        let ignoring = ["ignore_startup_parameters = extra_float_digits,options"];
        let pooler = PgBouncer::start(server.program().addr(), &ignoring).unwrap();
        (server, pooler)
    })
    .await
    .unwrap();
    let options: PostgresOptions = pooler.url().parse().unwrap();
    let polling = PostgresAdapter::connect_with(options.clone(), limits())
        .await
        .unwrap();
    assert!(polling.polls(), "nothing comes through the pooler");
    let direct = options.clone().direct_url(&server.url()).unwrap();
    let listening = PostgresAdapter::connect_with(direct, limits())
        .await
        .unwrap();
    assert!(!listening.polls());
    is_pushed(&polling, &listening).await;
    assert!(hop(&listening, &polling).await < limits().catch_up());
    let forced = PostgresAdapter::connect_with(options.wake(Wake::Listen), limits()).await;
    assert!(forced.is_err(), "it was asked not to poll");
    // The two are one store, in which both ways of waking are mixed.
    let load = common::Load::start(&polling, &listening, 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.end(false).await;
    assert!(server.program().pid() > 0);
}

/// A pooler that keeps sessions apart may hand no settings on: they are made by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_keeps_sessions_apart_does_without_transactions() {
    let setting = Setting::start(&[]).await;
    let addr = setting
        .url
        .split(['@', '/'])
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    let pooler = tokio::task::spawn_blocking(move || {
        let ignoring = "ignore_startup_parameters = extra_float_digits,options";
        PgBouncer::start(addr, &["pool_mode = session", ignoring]).unwrap()
    })
    .await
    .unwrap();
    let options: PostgresOptions = pooler.url().parse().unwrap();
    let options = options.pooler(Pooler::None);
    let through = PostgresAdapter::connect_with(options, limits())
        .await
        .unwrap();
    assert!(!through.polls(), "it may listen as well");
    let load = common::Load::start(&through, &setting.b, 4).await;
    is_pushed(&through, &setting.b).await;
    is_pushed(&setting.b, &through).await;
    load.end(false).await;
}

/// Sessions come and go, calls run in them: what is dead in tables and indexes stays
/// within bounds, and nothing is left at the end.
#[tokio::test(flavor = "multi_thread")]
async fn churn_leaves_no_bloat() {
    let setting = Setting::start(&["autovacuum_naptime=1s"]).await;
    let short = Limits::builder()
        .idle_ttl(Duration::from_secs(2))
        .finished_ttl(Duration::from_millis(500))
        .heartbeat(Duration::from_millis(300))
        .build()
        .unwrap();
    let options: PostgresOptions = setting.url.parse().unwrap();
    let options = options.schema("churn");
    let adapter = PostgresAdapter::connect_with(options, short).await.unwrap();
    let mut admin = setting.admin().await;
    let sizes = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c \
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'churn' AND c.relkind = 'r'";
    let run = async |time: Duration| {
        let until = Instant::now() + time;
        let workers = (0..6).map(|worker| {
            let adapter = adapter.clone();
            tokio::spawn(async move {
                let mut calls = 0_i64;
                while Instant::now() < until {
                    let id = SessionId::generate();
                    adapter.create(&id, SessionRecord::default()).await.unwrap();
                    for call in 0..5 {
                        let call = RpcId::Number(call);
                        let entered = adapter.enter(&id, None, Some(&call)).await.unwrap();
                        let writer = entered.writer.unwrap();
                        for _ in 0..3 {
                            writer.append(Bytes::from(vec![b'x'; 256])).await.unwrap();
                        }
                        writer
                            .finish(Some(Bytes::from_static(b"end")))
                            .await
                            .unwrap();
                        calls += 1;
                    }
                    if worker % 2 == 0 {
                        adapter.delete(&id, None).await.unwrap();
                    }
                }
                calls
            })
        });
        let mut calls = 0;
        for worker in workers.collect::<Vec<_>>() {
            calls += worker.await.unwrap();
        }
        calls
    };
    let mut calls = run(Duration::from_secs(6)).await;
    let early = number(&mut admin, sizes).await;
    calls += run(Duration::from_secs(12)).await;
    let late = number(&mut admin, sizes).await;
    let dead = "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables \
        WHERE schemaname = 'churn'";
    let dead = number(&mut admin, dead).await;
    println!("{calls} calls; {early} bytes after a third of them, {late} at the end; {dead} dead");
    assert!(calls > 100, "{calls}");
    // Twice as many calls again, and no more room than the first ones took.
    assert!(late < early * 2, "{early} bytes grew to {late}");
    let until = Instant::now() + Duration::from_secs(20);
    let left = "SELECT (SELECT count(*) FROM churn.session) + (SELECT count(*) FROM churn.stream) \
        + (SELECT count(*) FROM churn.event) + (SELECT count(*) FROM churn.grave)";
    while number(&mut admin, left).await > 0 {
        assert!(
            Instant::now() < until,
            "{} rows are left",
            number(&mut admin, left).await
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
