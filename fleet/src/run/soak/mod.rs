//! A soak: clients come, go away without a word, and their sessions expire.
//! What the instances take meanwhile must not grow.

mod held;
mod series;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use indicatif::ProgressBar;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::series::{Judged, Kind, Series, mebibytes};
use self::{held::Held, series::judge};
use crate::{
    backend::{STORED, Stored},
    error::Failure,
    load::Lasting,
    node::{Fleet, Node},
    usage,
};

/// Sessions of a soak expire after so long where nothing else is said.
pub(super) const TTL: Duration = Duration::from_secs(15);
/// A soak takes at least so many times the sessions' lives: one third to warm up,
/// two to compare.
const LIVES: u32 = 4;
/// Samples of a soak, if that is not more than one a second.
const SAMPLES: u32 = 60;
const SHORTEST: Duration = Duration::from_millis(250);
/// How long the last sessions may take to go after their time: the sweeps, and
/// idle connections of the proxy.
const SETTLE: Duration = Duration::from_secs(15);
const FETCH: Duration = Duration::from_secs(10);

/// A finished soak.
#[derive(Debug)]
pub(crate) struct Soak {
    pub(crate) series: Vec<Series>,
    pub(crate) judged: Vec<Judged>,
    /// From the start of the load to the last sample.
    pub(crate) took: Duration,
}

impl Soak {
    pub(crate) fn is_flat(&self) -> bool {
        self.judged.iter().all(|judged| judged.flat)
    }
}

/// A load of `time` with sessions that live for `ttl`.
pub(super) fn lasting(time: Duration, ttl: Option<Duration>) -> Lasting {
    Lasting {
        time,
        turn: ttl.unwrap_or(TTL) * 2 / 3,
    }
}

/// Looks at the instances and their store.
pub(super) struct Watch {
    held: Held,
    /// Those that share a process count as one.
    processes: Vec<(String, u32)>,
    /// Any of them can tell what is stored.
    asked: SocketAddr,
    client: reqwest::Client,
    series: Vec<Series>,
    start: Instant,
    interval: Duration,
    ttl: Duration,
}

impl Watch {
    /// Prepares for a soak of `time`.
    pub(super) async fn new(
        nodes: &[Node],
        fleet: &Arc<Fleet>,
        time: Duration,
    ) -> Result<Self, Failure> {
        let ttl = fleet.ttl.unwrap_or(TTL);
        check(time, ttl)?;
        let mut processes: Vec<(String, u32)> = Vec::new();
        for node in nodes {
            if let Some(pid) = node.pid()
                && processes.iter().all(|(_, known)| *known != pid)
            {
                let own = pid == std::process::id();
                let name = if own { "this process" } else { node.name() };
                processes.push((name.to_owned(), pid));
            }
        }
        let asked = nodes.first().map(Node::addr);
        let asked = asked.ok_or_else(|| Failure::new("a soak needs an instance"))?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(FETCH)
            .build()
            .map_err(Failure::context("cannot watch the instances"))?;
        let held = Held::open(fleet).await?;
        let mut series = vec![Series::new("stored sessions", Kind::Sessions)];
        series.extend(held.series());
        for (name, _) in &processes {
            series.push(Series::new(format!("{name} memory"), Kind::Memory));
            series.push(Series::new(
                format!("{name} descriptors"),
                Kind::Descriptors,
            ));
        }
        Ok(Self {
            held,
            processes,
            asked,
            client,
            series,
            start: Instant::now(),
            interval: (time / SAMPLES).max(SHORTEST),
            ttl,
        })
    }

    /// Samples until the load is over and the last sessions have gone; then
    /// tells how it went. Shows each sample above the bar.
    pub(super) async fn run(
        mut self,
        bar: ProgressBar,
        over: CancellationToken,
    ) -> Result<Soak, Failure> {
        let mut tick = tokio::time::interval(self.interval);
        let load = loop {
            tokio::select! {
                () = over.cancelled() => break self.start.elapsed(),
                _ = tick.tick() => self.sample(&bar).await?,
            }
        };
        let deadline = Instant::now() + self.ttl + SETTLE;
        loop {
            tokio::time::sleep(self.interval.min(Duration::from_secs(1))).await;
            self.sample(&bar).await?;
            let judged = judge(&self.series, load);
            let settled = judged.iter().all(|judged| judged.flat);
            if settled || Instant::now() >= deadline {
                return Ok(Soak {
                    judged,
                    took: self.start.elapsed(),
                    series: self.series,
                });
            }
        }
    }

    async fn sample(&mut self, bar: &ProgressBar) -> Result<(), Failure> {
        let mut values = vec![self.stored().await?.sessions];
        values.extend(self.held.look().await?);
        for (name, pid) in &self.processes {
            let usage = usage::of(*pid)
                .map_err(Failure::context(format!("cannot tell what {name} takes")))?;
            values.extend([usage.memory, usage.descriptors]);
        }
        let at = self.start.elapsed();
        let mut line = format!("{:>6.1} s", at.as_secs_f64());
        for (series, value) in self.series.iter_mut().zip(values) {
            series.values.push((at, value));
            line.push_str(&format!("  {} {}", series.name, series.kind.show(value)));
        }
        bar.suspend(|| println!("{line}"));
        Ok(())
    }

    async fn stored(&self) -> Result<Stored, Failure> {
        let cannot = || Failure::context("cannot tell what is stored");
        let url = format!("http://{}{STORED}", self.asked);
        let response = self.client.get(url).send().await.map_err(cannot())?;
        let response = response.error_for_status().map_err(cannot())?;
        let body = response.bytes().await.map_err(cannot())?;
        serde_json::from_slice(&body).map_err(Failure::context("cannot tell what is stored"))
    }
}

/// Whether a soak of `time` shows something.
fn check(time: Duration, ttl: Duration) -> Result<(), Failure> {
    let least = ttl * LIVES;
    if time < least {
        return Err(Failure::new(format!(
            "a soak of sessions that live {} s must last at least {} s",
            ttl.as_secs_f64(),
            least.as_secs_f64()
        )));
    }
    usage::of(std::process::id())
        .map(drop)
        .map_err(Failure::context(
            "a soak needs /proc, which this system does not have",
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_takes_several_lives() {
        let error = check(Duration::from_secs(30), TTL).unwrap_err().to_string();
        assert!(error.contains("at least 60 s"), "{error}");
    }
}
