//! Kills during the load.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    error::Failure,
    load::{Outages, Tally},
    node::Node,
};

/// How often the progress of the load is looked at to time the kills.
const WATCH: Duration = Duration::from_millis(10);
/// How long a killed instance stays away, in milliseconds.
const AWAY_MS: std::ops::Range<u64> = 200..800;
/// Kills fall into this part of the load, in percent of its calls.
const KILL_FROM: u64 = 10;
const KILL_TO: u64 = 75;

/// What the kills need to know.
pub(super) struct Kills {
    /// Calls of the whole load; `None`: nobody is killed.
    pub(super) calls: Option<u64>,
    pub(super) rng: fastrand::Rng,
    pub(super) tally: Arc<Tally>,
    pub(super) outages: Arc<Outages>,
    /// Cancelled when the load is over.
    pub(super) over: CancellationToken,
}

/// Kills every instance once, one at a time, spread over the progress of the load,
/// as far as the load is long enough; gives the instances back when it is over.
pub(super) async fn kill_each(mut nodes: Vec<Node>, kills: Kills) -> Result<Vec<Node>, Failure> {
    let Kills {
        calls,
        mut rng,
        tally,
        outages,
        over,
    } = kills;
    if let Some(calls) = calls {
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        rng.shuffle(&mut order);
        let count = u64::try_from(order.len()).unwrap_or(1);
        let span = calls * (KILL_TO - KILL_FROM) / 100 / count;
        let mut slot = calls * KILL_FROM / 100;
        for index in order {
            let due = slot + rng.u64(0..=span);
            slot += span;
            while tally.calls_ended() < due && !over.is_cancelled() {
                tokio::time::sleep(WATCH).await;
            }
            if over.is_cancelled() {
                break;
            }
            let Some(node) = nodes.get_mut(index) else {
                continue;
            };
            let label = node.addr().to_string();
            outages.begin(&label);
            node.kill().await?;
            tokio::time::sleep(Duration::from_millis(rng.u64(AWAY_MS))).await;
            node.restart().await?;
            outages.end(&label);
        }
    }
    over.cancelled().await;
    Ok(nodes)
}
