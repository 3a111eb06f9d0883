//! Whatever is lost is noticed within seven seconds, with the intervals that a server has
//! by default (clause F2).
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Load, NOTICED, Setting, behind_a_proxy, family, hop, is_pushed, limits, number};
use mcp_adapter_conformance::faults::Signal;
use mcp_adapter_core::{Health, Limits, Role, SessionAdapter};
use mcp_adapter_postgres::PostgresAdapter;
use tokio::time::{Instant, sleep};

/// What a busy machine may add to seven seconds.
const LOOK: Duration = Duration::from_secs(1);

async fn usual(setting: &Setting) -> PostgresAdapter {
    let adapter = PostgresAdapter::connect(&setting.url, Limits::default());
    let adapter = adapter.await.unwrap();
    adapter.stats().await.unwrap();
    assert_eq!(adapter.health(), Health::Ok);
    adapter
}

async fn is_noticed(adapter: &PostgresAdapter, since: Instant) {
    while adapter.health() == Health::Ok {
        assert!(since.elapsed() < NOTICED + LOOK, "it is not noticed");
        sleep(Duration::from_millis(20)).await;
    }
}

/// While calls run, and without any.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_link_is_noticed_and_replaced() {
    let mut setting = Setting::start(&[]).await;
    let (link, _proxy, far) = behind_a_proxy(&mut setting, Limits::default()).await;
    let load = Load::start(&far, &setting.b, 8).await;
    assert!(hop(&setting.b, &far).await < limits().catch_up());
    link.freeze();
    is_noticed(&far, Instant::now()).await;
    sleep(Duration::from_secs(3)).await;
    link.mend();
    is_pushed(&setting.b, &far).await;
    load.end(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_link_is_noticed_where_nothing_runs() {
    let mut setting = Setting::start(&[]).await;
    let (link, _proxy, far) = behind_a_proxy(&mut setting, Limits::default()).await;
    link.freeze();
    is_noticed(&far, Instant::now()).await;
    link.mend();
    is_pushed(&setting.b, &far).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_noticed() {
    let mut setting = Setting::start(&[]).await;
    let adapter = usual(&setting).await;
    let family = family(setting.server.program().pid());
    for process in &family {
        // A connection may have ended meanwhile.
        let _ = Signal::Stop.send(*process);
    }
    let stopped = Instant::now();
    is_noticed(&adapter, stopped).await;
    for process in &family {
        let _ = Signal::Continue.send(*process);
    }
    is_pushed(&setting.b, &adapter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_noticed() {
    let mut setting = Setting::start(&[]).await;
    let adapter = usual(&setting).await;
    tokio::task::block_in_place(|| setting.server.program().end(true).unwrap());
    is_noticed(&adapter, Instant::now()).await;
    tokio::task::block_in_place(|| setting.server.program().restart().unwrap());
    is_pushed(&setting.b, &adapter).await;
}

/// All connections at once; each instance listens again over another one.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_killed_are_replaced() {
    let setting = Setting::start(&[]).await;
    let adapter = usual(&setting).await;
    let mut admin = setting.admin().await;
    let started = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let killed_at = number(&mut admin, started).await;
    let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE application_name = 'mcp-adapter'";
    assert!(number(&mut admin, killed).await >= 3);
    let since = Instant::now();
    let listening = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' \
         AND extract(epoch FROM backend_start) * 1000000 > {killed_at}"
    );
    while number(&mut admin, &listening).await < 3 {
        assert!(since.elapsed() < NOTICED, "they do not listen again");
        sleep(Duration::from_millis(20)).await;
    }
    is_pushed(&setting.a, &adapter).await;
}
