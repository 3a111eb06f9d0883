//! Load generator: sessions that check everything they receive.

mod answer;
mod check;
mod http;
mod outage;
mod raw;
mod script;
mod sdk;
mod sse;
mod steps;
mod stream;
mod tally;
mod world;

use std::{sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::{sync::Semaphore, task::JoinSet};

use self::{http::Endpoint, world::World};
pub(crate) use self::{
    outage::Outages,
    tally::{Sample, Tally, Totals, percentile_ms},
};
use crate::error::Failure;

const REFRESH: Duration = Duration::from_millis(100);

/// Size and seed of a load.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Where the server, or the proxy before it, listens.
    pub(crate) url: String,
    /// Sessions in all.
    pub(crate) sessions: usize,
    /// Sessions at a time.
    pub(crate) concurrency: usize,
    /// Tool calls per session.
    pub(crate) calls: usize,
    /// Deadline of every wait.
    pub(crate) patience: Duration,
    /// Decides scripts and cuts.
    pub(crate) seed: u64,
}

impl Plan {
    /// Calls of the whole run.
    pub(crate) fn total_calls(&self) -> u64 {
        u64::try_from(self.sessions.saturating_mul(self.calls)).unwrap_or(u64::MAX)
    }
}

/// Runs all sessions to their end.
pub(crate) async fn run(
    plan: &Plan,
    tally: Arc<Tally>,
    outages: Arc<Outages>,
) -> Result<Totals, Failure> {
    let world = Arc::new(World {
        endpoint: Endpoint::new(&plan.url).map_err(Failure::context(format!(
            "cannot be a client of {}",
            plan.url
        )))?,
        tally: Arc::clone(&tally),
        outages,
        patience: plan.patience,
    });
    let bar = progress_bar(plan.total_calls());
    let painter = tokio::spawn(paint(bar.clone(), Arc::clone(&tally)));
    let slots = Arc::new(Semaphore::new(plan.concurrency.max(1)));
    let mut seeds = fastrand::Rng::with_seed(plan.seed);
    let mut sessions = JoinSet::new();
    for number in 1..=plan.sessions {
        let rng = seeds.fork();
        let (world, slots, calls) = (Arc::clone(&world), Arc::clone(&slots), plan.calls);
        sessions.spawn(async move {
            // Fails only when closed, which nobody does.
            let _slot = slots.acquire_owned().await;
            // The halves alternate in pairs, so that each has all kinds of sessions.
            if number.is_multiple_of(2) {
                sdk::run(world, number, calls, rng).await;
            } else {
                raw::run(world, number.div_ceil(2), calls, rng).await;
            }
        });
    }
    while let Some(ended) = sessions.join_next().await {
        if let Err(error) = ended {
            tally.error(format_args!("a session ended early: {error}"));
        }
    }
    painter.abort();
    bar.finish_and_clear();
    Ok(tally.finish())
}

/// Draws on a terminal only.
fn progress_bar(calls: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} calls {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(calls).with_style(style)
}

async fn paint(bar: ProgressBar, tally: Arc<Tally>) {
    let mut tick = tokio::time::interval(REFRESH);
    loop {
        tick.tick().await;
        bar.set_position(tally.calls_ended());
    }
}
