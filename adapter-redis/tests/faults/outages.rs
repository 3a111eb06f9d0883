//! Servers that stand still, are killed, or come back with nothing.

use std::time::Duration;

use mcp_adapter_conformance::{faults::Signal, server::Redis};
use tokio::time::{Instant, sleep};

use crate::load::{Expect, Load, limits, noticed, slow_limits, two, works};

/// Longer than the lease: nobody is dead for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_ends_no_call() {
    for seconds in [2, 12] {
        let mut server = Redis::start(&[]).unwrap();
        let (a, b) = two(&server.url(), &slow_limits().build().unwrap()).await;
        let load = Load::start(&a, &b, 4).await;
        load.goes_on(50).await;
        server.program().signal(Signal::Stop).unwrap();
        let since = Instant::now();
        if seconds > 7 {
            noticed(since, &[&a, &b]).await;
        }
        sleep(Duration::from_secs(seconds).saturating_sub(since.elapsed())).await;
        server.program().signal(Signal::Continue).unwrap();
        load.goes_on(50).await;
        sleep(Duration::from_secs(1)).await;
        load.check(Expect::Everything).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_kept_its_data_loses_nothing() {
    let args = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = Redis::start(&args).unwrap();
    let (a, b) = two(&server.url(), &slow_limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 4).await;
    for _ in 0..2 {
        load.goes_on(50).await;
        server.program().end(true).unwrap();
        noticed(Instant::now(), &[&a, &b]).await;
        server.program().restart().unwrap();
        load.goes_on(50).await;
    }
    load.check(Expect::Everything).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_ends_what_is_lost() {
    let mut server = Redis::start(&[]).unwrap();
    let (a, b) = two(&server.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 4).await;
    load.goes_on(50).await;
    server.program().end(true).unwrap();
    server.program().restart().unwrap();
    works(&a, &b).await;
    load.check(Expect::Lost).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_server_ends_what_is_lost() {
    let server = Redis::start(&[]).unwrap();
    let (a, b) = two(&server.url(), &limits().build().unwrap()).await;
    for _ in 0..3 {
        let load = Load::start(&a, &b, 4).await;
        load.goes_on(50).await;
        server.command(&["FLUSHALL"]).unwrap();
        works(&a, &b).await;
        load.check(Expect::Lost).await;
    }
}
