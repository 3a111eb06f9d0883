//! Each option has its effect. Those of TLS are in `tls.rs`; `direct`, and what is
//! found out of poolers, in `schema.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{error::Error, net::TcpListener, time::Duration};

use common::{Setting, hop, limits, number, sql};
use futures::future::join_all;
use mcp_adapter_core::{SessionAdapter, SessionId, SessionRecord};
use mcp_adapter_postgres::{
    ConnectError, Pooler, PostgresAdapter, PostgresOptions, Wake,
    sqlx::{Connection, PgConnection, postgres::PgPoolOptions},
};
use tokio::time::Instant;

/// Parameters of the URL that give the connections of a test a name of their own.
fn named(setting: &Setting, name: &str) -> PostgresOptions {
    let url = format!("{}?application_name={name}", setting.url);
    url.parse().unwrap()
}

async fn open(options: PostgresOptions) -> PostgresAdapter {
    let adapter = PostgresAdapter::connect_with(options, limits());
    let adapter = adapter.await.unwrap();
    adapter.stats().await.unwrap();
    adapter
}

async fn refused(options: PostgresOptions) -> ConnectError {
    let adapter = PostgresAdapter::connect_with(options, limits());
    adapter.await.unwrap_err()
}

/// How many of these connections there are.
async fn connections(admin: &mut PgConnection, name: &str, and: &str) -> i64 {
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND {and}"
    );
    number(admin, &count).await
}

const LISTENS: &str = "query LIKE 'LISTEN%'";

/// As many steps at once as ask for more connections than there may be.
async fn crowd(adapter: &PostgresAdapter) {
    let steps = (0..64).map(|_| async {
        let id = SessionId::generate();
        adapter.create(&id, SessionRecord::default()).await.unwrap();
    });
    join_all(steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_opened_than_there_may_be() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    for max in [5, 12] {
        let name = format!("max{max}");
        let adapter = open(named(&setting, &name).max_connections(max)).await;
        for _ in 0..20 {
            crowd(&adapter).await;
        }
        let not = format!("NOT {LISTENS}");
        let opened = connections(&mut admin, &name, &not).await;
        // Four of them are for the engine's own tasks.
        let max = i64::from(max);
        assert!((max - 4..=max).contains(&opened), "{opened} of {max}");
        assert_eq!(connections(&mut admin, &name, LISTENS).await, 1);
    }
    let few = refused(named(&setting, "few").max_connections(4)).await;
    assert!(matches!(few, ConnectError::InvalidOption(..)), "{few:?}");
}

/// The application's pool has its own bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_handed_in_keeps_its_bound() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    let pool = |name: &str, max| {
        let url = format!("{}?application_name={name}", setting.url);
        let pool = PgPoolOptions::new().max_connections(max);
        pool.connect_lazy(&url).unwrap()
    };
    let adapter = open(PostgresOptions::with_pool(pool("handed", 6)).max_connections(50)).await;
    crowd(&adapter).await;
    let not = format!("NOT {LISTENS}");
    let opened = connections(&mut admin, "handed", &not).await;
    assert!((2..=6).contains(&opened), "{opened}");
    let few = refused(PostgresOptions::with_pool(pool("few", 4))).await;
    assert!(matches!(few, ConnectError::InvalidOption(..)), "{few:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_where_it_is_told_to_be() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    let longest = "a_".repeat(24);
    for schema in ["mcp", longest.as_str()] {
        let options: PostgresOptions = setting.url.parse().unwrap();
        let adapter = open(options.schema(schema)).await;
        let id = SessionId::generate();
        adapter.create(&id, SessionRecord::default()).await.unwrap();
        let there = format!("SELECT count(*) FROM {schema}.session");
        assert_eq!(number(&mut admin, &there).await, 1);
        let elsewhere = setting.a.enter(&id, None, None).await;
        assert!(elsewhere.is_err(), "another schema is another store");
    }
    let longer = "a".repeat(49);
    for schema in ["", "1a", "_a", "A", "a-b", "a.b", "pg_mcp", "\"a", &longer] {
        let options: PostgresOptions = setting.url.parse().unwrap();
        let no = refused(options.schema(schema)).await;
        assert!(
            matches!(no, ConnectError::InvalidOption(..)),
            "{schema}: {no:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_poll_does_not_listen() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    for (wake, listens) in [(Wake::Auto, 1), (Wake::Listen, 1), (Wake::Poll, 0)] {
        let name = format!("{wake:?}");
        let adapter = open(named(&setting, &name).wake(wake)).await;
        assert_eq!(adapter.polls(), listens == 0, "{wake:?}");
        let listening = connections(&mut admin, &name, LISTENS).await;
        assert_eq!(listening, listens, "{wake:?}");
        // Both ways it is woken.
        let took = hop(&setting.a, &adapter).await;
        assert!(took < limits().catch_up(), "{wake:?}: {took:?}");
    }
}

/// What a connection did last: in a transaction of its own that is its end.
#[tokio::test(flavor = "multi_thread")]
async fn statements_are_transactions_where_a_pooler_is_said_to_be() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    for (pooler, transactions) in [
        (Pooler::Auto, false),
        (Pooler::None, false),
        (Pooler::Transaction, true),
    ] {
        let name = format!("{pooler:?}");
        let adapter = open(named(&setting, &name).pooler(pooler)).await;
        crowd(&adapter).await;
        let ended = connections(&mut admin, &name, "query = 'COMMIT'").await > 0;
        assert_eq!(ended, transactions, "{pooler:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_only_where_they_may_be() {
    let setting = Setting::start(&[]).await;
    let options = |migrate| {
        let options: PostgresOptions = setting.url.parse().unwrap();
        options.schema("later").migrate(migrate)
    };
    let no = refused(options(false)).await;
    assert!(matches!(no, ConnectError::NotMigrated), "{no:?}");
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'later'";
    let mut admin = setting.admin().await;
    assert_eq!(number(&mut admin, schemas).await, 0, "nothing was made");
    open(options(true)).await;
    open(options(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_waited_for_as_long_as_is_said() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://x@{}/x", silent.local_addr().unwrap());
    let options: PostgresOptions = url.parse().unwrap();
    let limit = Duration::from_millis(300);
    let start = Instant::now();
    let no = refused(options.start_timeout(limit)).await;
    let took = start.elapsed();
    assert!(
        matches!(no, ConnectError::Timeout(said) if said == limit),
        "{no:?}"
    );
    assert!(took >= limit && took < limit * 10, "{took:?}");
}

/// What the URL sets is set, beside what the adapter sets; the listening connection has
/// it, too.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_url_arrive() {
    let setting = Setting::start(&[]).await;
    let mut admin = setting.admin().await;
    sql(&mut admin, "CREATE ROLE \"o w\" LOGIN PASSWORD 'p:@/w'").await;
    sql(&mut admin, "CREATE DATABASE \"d b\" OWNER \"o w\"").await;
    let host = setting.url.split(['@', '/']).nth(3).unwrap();
    let url = format!(
        "postgres://o%20w:p%3A%40%2Fw@{host}/d%20b?application_name=ours&options[work_mem]=5MB"
    );
    let options: PostgresOptions = url.parse().unwrap();
    let shown = format!("{options:?}");
    assert!(
        !shown.contains("p:@/w") && !shown.contains("p%3A"),
        "{shown}"
    );
    let adapter = open(options).await;
    crowd(&adapter).await;
    let all = connections(&mut admin, "ours", "true").await;
    assert!(all >= 2, "one that listens, and others: {all}");
    let ours = connections(&mut admin, "ours", "usename = 'o w' AND datname = 'd b'").await;
    assert_eq!(ours, all);
    // Seen from within: by a function that every step of a kind calls.
    let mut inside = PgConnection::connect(&url.replace("ours", "inside"))
        .await
        .unwrap();
    sql(
        &mut inside,
        "CREATE TABLE public.seen (memory text, path text);
         CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen VALUES
                 (current_setting('work_mem'), current_setting('search_path'));
             RETURN NULL; END $$;
         CREATE TRIGGER see AFTER INSERT ON mcp_adapter.session
         FOR EACH STATEMENT EXECUTE FUNCTION public.see()",
    )
    .await;
    crowd(&adapter).await;
    let seen =
        "SELECT count(*) FROM public.seen WHERE memory = '5MB' AND path LIKE '%mcp_adapter%'";
    assert_eq!(number(&mut inside, seen).await, 64);
}

/// Each says what is wrong, and not what is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_url_is_said() {
    let setting = Setting::start(&[]).await;
    let parse = |url: &str| url.parse::<PostgresOptions>();
    for url in [
        "",
        "postgres",
        "://",
        "postgres://h:x/",
        "postgres://h/d?sslmode=maybe",
    ] {
        let no = parse(url).unwrap_err();
        assert!(
            matches!(no, ConnectError::InvalidOption(..)),
            "{url}: {no:?}"
        );
        let direct = named(&setting, "x").direct_url(url).unwrap_err();
        assert!(matches!(direct, ConnectError::InvalidOption(..)), "{url}");
    }
    let unknown = setting.url.replace("postgres@", "nobody@");
    let no = refused(parse(&unknown).unwrap()).await;
    assert!(matches!(no, ConnectError::Login(_)), "{no:?}");
    let why = no.source().unwrap().to_string();
    assert!(why.contains("role \"nobody\" does not exist"), "{why}");
    let elsewhere = format!("{}/nowhere", setting.url.rsplit_once('/').unwrap().0);
    let no = refused(parse(&elsewhere).unwrap()).await;
    assert!(matches!(no, ConnectError::NoDatabase(_)), "{no:?}");
    let mut admin = setting.admin().await;
    sql(
        &mut admin,
        "CREATE ROLE stranger LOGIN; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
    )
    .await;
    let stranger = setting.url.replace("postgres@", "stranger@");
    let no = refused(parse(&stranger).unwrap()).await;
    assert!(matches!(no, ConnectError::Privilege { .. }), "{no:?}");
    // The same of the URL for notifications, and that it is this one.
    for (url, is) in [
        (unknown.as_str(), "Login"),
        (elsewhere.as_str(), "NoDatabase"),
        ("postgres://postgres@127.0.0.1:1/postgres", "Unreachable"),
    ] {
        let options = named(&setting, "x").direct_url(url).unwrap();
        let no = refused(options.clone()).await;
        let ConnectError::Direct(why) = &no else {
            panic!("{no:?}");
        };
        assert!(format!("{why:?}").starts_with(is), "{why:?}");
        // Who polls has no use for it.
        open(options.wake(Wake::Poll)).await;
    }
}
