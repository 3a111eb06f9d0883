//! A failover to a replica that lags behind.

use mcp_adapter_conformance::{faults::Signal, server::RedisSentinel};

use crate::load::{Expect, Load, eventually, limits, two, works};

/// What the replica did not get is lost, and there again: the writers live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_to_a_lagging_replica_lost_is_written_again() {
    let mut set = RedisSentinel::start().unwrap();
    let (a, b) = two(&set.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 8).await;
    load.goes_on(100).await;
    // All sessions have got there; what follows has not.
    set.wait_until_replicated().unwrap();
    assert_eq!(
        set.master().unwrap(),
        set.servers[0].addr(),
        "nobody has failed over before"
    );
    let [master, replica] = &mut set.servers;
    replica.program().signal(Signal::Stop).unwrap();
    // Or it would find all of it in its socket when it goes on.
    master
        .command(&["CLIENT", "KILL", "TYPE", "replica"])
        .unwrap();
    load.goes_on(100).await;
    master.program().end(true).unwrap();
    replica.program().signal(Signal::Continue).unwrap();
    let replica = replica.addr();
    eventually("the replica is the master", async || {
        (set.master().ok()? == replica).then_some(())
    })
    .await;
    load.goes_on(100).await;
    load.check(Expect::Repaired).await;
    works(&a, &b).await;
}
