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

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

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
    /// Sessions in all; where the load lasts for a time, sessions at a time.
    pub(crate) sessions: usize,
    /// Sessions at a time.
    pub(crate) concurrency: usize,
    /// Tool calls per session.
    pub(crate) calls: usize,
    /// Deadline of every wait.
    pub(crate) patience: Duration,
    /// Decides scripts and cuts.
    pub(crate) seed: u64,
    pub(crate) lasting: Option<Lasting>,
}

/// A load that goes on: new sessions take the place of old ones, and none of them
/// sends DELETE.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lasting {
    /// For how long.
    pub(crate) time: Duration,
    /// A session's place is taken again after so long, or when it ends if that is
    /// later: the rate must not depend on what else the machine does.
    pub(crate) turn: Duration,
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
    bar: &ProgressBar,
) -> Result<Totals, Failure> {
    let world = Arc::new(World {
        endpoint: Endpoint::new(&plan.url).map_err(Failure::context(format!(
            "cannot be a client of {}",
            plan.url
        )))?,
        tally: Arc::clone(&tally),
        outages,
        patience: plan.patience,
        leaves: plan.lasting.is_some(),
    });
    let painter = tokio::spawn(paint(bar.clone(), Arc::clone(&tally), plan.lasting));
    let slots = Arc::new(Semaphore::new(plan.concurrency.max(1)));
    let mut seeds = fastrand::Rng::with_seed(plan.seed);
    let mut sessions = JoinSet::new();
    let over = |number: usize| match plan.lasting {
        None => number > plan.sessions,
        Some(lasting) => tally.start().elapsed() >= lasting.time,
    };
    let turn = plan.lasting.map(|lasting| lasting.turn);
    for number in 1.. {
        // Fails only when closed, which nobody does.
        let slot = Arc::clone(&slots).acquire_owned().await;
        while let Some(ended) = sessions.try_join_next() {
            note(&tally, ended);
        }
        if over(number) {
            break;
        }
        if let Some(turn) = turn
            && number <= plan.concurrency
        {
            // Evenly over the first turn, and so over all that follow.
            let places = u32::try_from(plan.concurrency).unwrap_or(u32::MAX);
            tokio::time::sleep(turn / places.max(1)).await;
        }
        let rng = seeds.fork();
        let (world, calls) = (Arc::clone(&world), plan.calls);
        sessions.spawn(async move {
            let begun = Instant::now();
            // The halves alternate in pairs, so that each has all kinds of sessions.
            if number.is_multiple_of(2) {
                sdk::run(world, number, calls, rng).await;
            } else {
                raw::run(world, number.div_ceil(2), calls, rng).await;
            }
            if let Some(turn) = turn {
                tokio::time::sleep(turn.saturating_sub(begun.elapsed())).await;
            }
            drop(slot);
        });
    }
    while let Some(ended) = sessions.join_next().await {
        note(&tally, ended);
    }
    painter.abort();
    bar.finish_and_clear();
    Ok(tally.finish())
}

fn note(tally: &Tally, ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tally.error(format_args!("a session ended early: {error}"));
    }
}

/// Draws on a terminal only.
pub(crate) fn progress_bar(plan: &Plan) -> ProgressBar {
    let (length, template) = match plan.lasting {
        None => (plan.total_calls(), "{wide_bar} {pos}/{len} calls {elapsed}"),
        Some(Lasting { time, .. }) => (time.as_secs(), "{wide_bar} {pos}/{len} s {msg} calls"),
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

async fn paint(bar: ProgressBar, tally: Arc<Tally>, lasting: Option<Lasting>) {
    let mut tick = tokio::time::interval(REFRESH);
    loop {
        tick.tick().await;
        let calls = tally.calls_ended();
        if lasting.is_some() {
            bar.set_position(tally.start().elapsed().as_secs());
            bar.set_message(calls.to_string());
        } else {
            bar.set_position(calls);
        }
    }
}
