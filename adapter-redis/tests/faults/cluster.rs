//! Slots that move under load, and masters that stand still.

use mcp_adapter_conformance::{faults::Signal, server::RedisCluster};
use tokio::time::Instant;

use crate::load::{Expect, Load, eventually, limits, noticed, slow_limits, two, works};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_lose_nothing() {
    let cluster = RedisCluster::start(3).unwrap();
    let (a, b) = two(&cluster.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 24).await;
    load.goes_on(100).await;
    // Of the slots of all partitions, those in which something is.
    let mut moved = 0;
    for from in 0..2 {
        for slot in used_slots(&cluster, from) {
            cluster.move_slot(slot, from, 2).unwrap();
            moved += 1;
            load.goes_on(5).await;
        }
    }
    assert!(moved > 10, "{moved} slots have moved");
    load.goes_on(100).await;
    load.check(Expect::Everything).await;
    works(&a, &b).await;
}

/// Slots of a node that have keys, up to a dozen.
fn used_slots(cluster: &RedisCluster, node: usize) -> Vec<u16> {
    let (first, last) = (16_384 * node / 3, 16_384 * (node + 1) / 3);
    let node = &cluster.nodes()[node];
    let used = (first..last).filter(|slot| {
        let count = node.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]);
        count.unwrap().trim() != ":0"
    });
    used.take(12)
        .map(|slot| u16::try_from(slot).unwrap())
        .collect()
}

/// What is on the other masters goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_stands_still_ends_no_call() {
    let mut cluster = RedisCluster::start(3).unwrap();
    for node in cluster.nodes() {
        let set = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
        node.command(&set).unwrap();
    }
    let (a, b) = two(&cluster.url(), &slow_limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 12).await;
    load.goes_on(100).await;
    let stopped = cluster.nodes_mut()[1].program();
    stopped.signal(Signal::Stop).unwrap();
    let since = Instant::now();
    // What was under way to all of them comes through first.
    load.goes_on(100).await;
    let calls = load.calls_that_go_on(20).await;
    assert!(calls >= 4, "{calls} of 12 calls go on");
    noticed(since, &[&a, &b]).await;
    let stopped = cluster.nodes_mut()[1].program();
    stopped.signal(Signal::Continue).unwrap();
    cluster.wait_until_agreed().unwrap();
    load.goes_on(100).await;
    load.check(Expect::Everything).await;
}

/// The Cluster itself makes a replica the master of its slots. What that lacked is
/// written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_is_followed_by_its_replica() {
    let mut cluster = RedisCluster::start(3).unwrap();
    cluster.add_replica(0).unwrap();
    let (a, b) = two(&cluster.url(), &limits().build().unwrap()).await;
    let load = Load::start(&a, &b, 12).await;
    load.goes_on(200).await;
    cluster.wait_until_replicated(0).unwrap();
    // What follows does not get there in time.
    let replica = cluster.nodes_mut()[3].program();
    replica.signal(Signal::Stop).unwrap();
    let kill = ["CLIENT", "KILL", "TYPE", "replica"];
    cluster.nodes()[0].command(&kill).unwrap();
    load.every_call_goes_on(5).await;
    cluster.nodes_mut()[0].program().end(true).unwrap();
    let replica = cluster.nodes_mut()[3].program();
    replica.signal(Signal::Continue).unwrap();
    eventually("the replica is a master", async || {
        let role = cluster.nodes()[3].command(&["ROLE"]).ok()?;
        role.contains("master").then_some(())
    })
    .await;
    load.every_call_goes_on(20).await;
    load.check(Expect::Repaired).await;
    works(&a, &b).await;
}
