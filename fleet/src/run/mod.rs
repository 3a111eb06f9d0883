//! The main job: instances, proxy, clients, kills, report.

mod kills;
mod soak;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use self::soak::{Judged, Kind, Soak, mebibytes};
use self::{
    kills::{Kills, kill_each},
    soak::Watch,
};
use crate::{
    backend::{Place, Store},
    cli::{FleetArgs, LoadArgs, RunArgs, UpArgs},
    error::Failure,
    load::{self, Outages, Plan, Tally, Totals},
    net,
    node::{Fleet, Node},
    proxy,
    report::Summary,
    server::StateKey,
};

/// Sockets that a session may hold at a time: the standalone stream, three calls
/// and their answers.
const SOCKETS_PER_SESSION: u64 = 7;
/// Ends of a socket in one process: client, proxy twice, instance.
const ENDS: u64 = 4;
const MAX_CONCURRENCY: usize = 512;

/// Everything a finished run shows.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    pub(crate) totals: Totals,
    /// Kills, in seconds after the start.
    pub(crate) kills: Vec<f64>,
    pub(crate) soak: Option<Soak>,
}

impl Outcome {
    /// Whether every promise was kept.
    pub(crate) fn is_clean(&self) -> bool {
        self.totals.counts.clean() && self.soak.as_ref().is_none_or(Soak::is_flat)
    }
}

/// Instances behind their proxy.
struct Standing {
    fleet: Arc<Fleet>,
    nodes: Vec<Node>,
    addr: SocketAddr,
    proxy: JoinHandle<Result<(), Failure>>,
    stop: CancellationToken,
}

async fn stand(
    args: &FleetArgs,
    ttl: Option<Duration>,
    listener: TcpListener,
    rng: &mut fastrand::Rng,
) -> Result<Standing, Failure> {
    let backend = args.backend.backend;
    let place = Place::prepare(backend, args.backend.url.as_deref())?;
    let store = if backend.is_shared() {
        None
    } else {
        Some(Store::open(backend, place.url(), ttl).await?)
    };
    let fleet = Arc::new(Fleet {
        place,
        store,
        key: StateKey::generate()?,
        ttl,
    });
    let mut nodes = Vec::new();
    for n in 1..=args.instances {
        nodes.push(Node::start(format!("instance-{n}"), Arc::clone(&fleet), rng).await?);
    }
    let addr = listener
        .local_addr()
        .map_err(Failure::context("cannot tell the proxy's port"))?;
    let stop = CancellationToken::new();
    let upstreams = nodes.iter().map(Node::addr).collect();
    let proxy = tokio::spawn(proxy::serve(listener, args.policy, upstreams, stop.clone()));
    Ok(Standing {
        fleet,
        nodes,
        addr,
        proxy,
        stop,
    })
}

/// The fleet without clients, until `end`.
pub(crate) async fn up(args: &UpArgs, end: CancellationToken) -> Result<(), Failure> {
    net::raise_descriptor_limit();
    let listener = net::listen(args.listen)?;
    let standing = stand(&args.fleet, None, listener, &mut fastrand::Rng::new()).await?;
    println!("listening on http://{}/mcp", standing.addr);
    end.cancelled().await;
    let complaints = stop_all(standing.nodes).await;
    standing.stop.cancel();
    standing
        .proxy
        .await
        .map_err(Failure::context("the proxy ended early"))??;
    match complaints.into_iter().next() {
        Some(complaint) => Err(complaint),
        None => Ok(()),
    }
}

/// Drains all instances at once; what went wrong with them.
async fn stop_all(mut nodes: Vec<Node>) -> Vec<Failure> {
    let stopped = futures::future::join_all(nodes.iter_mut().map(Node::stop)).await;
    stopped.into_iter().filter_map(Result::err).collect()
}

/// The whole thing, unless it is asked to stop: then nothing is left behind.
pub(crate) async fn run(args: &RunArgs, stop: CancellationToken) -> Result<Outcome, Failure> {
    tokio::select! {
        outcome = run_to_the_end(args) => outcome,
        () = stop.cancelled() => Err(Failure::new("interrupted")),
    }
}

async fn run_to_the_end(args: &RunArgs) -> Result<Outcome, Failure> {
    let limit = net::raise_descriptor_limit();
    let seed = args.size.seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let ttl = args.session_ttl.or(args.soak.map(|_| soak::TTL));
    let Standing {
        fleet,
        nodes,
        addr,
        proxy,
        stop,
    } = stand(&args.fleet, ttl, listener, &mut rng).await?;

    let mut plan = plan(
        &args.size,
        format!("http://{addr}/mcp"),
        args.kill,
        seed,
        limit,
    );
    plan.lasting = args.soak.map(|time| soak::lasting(time, ttl));
    let bar = load::progress_bar(&plan);
    let over = CancellationToken::new();
    let watching = match args.soak {
        Some(time) => {
            plan.concurrency = plan.concurrency.min(plan.sessions);
            let watch = Watch::new(&nodes, &fleet, time).await?;
            Some(tokio::spawn(watch.run(bar.clone(), over.clone())))
        }
        None => None,
    };
    let tally = Arc::new(Tally::new());
    let outages = Arc::new(Outages::recorded());
    let kills = Kills {
        calls: args.kill.then(|| plan.total_calls()),
        rng,
        tally: Arc::clone(&tally),
        outages: Arc::clone(&outages),
        over: over.clone(),
    };
    let killer = tokio::spawn(kill_each(nodes, kills));
    let start = tally.start();
    let loading = load::run(&plan, tally, Arc::clone(&outages), &bar);
    let mut totals = loading.await?;
    over.cancel();
    let nodes = killer
        .await
        .map_err(Failure::context("the kills ended early"))??;
    let mut complaints = Vec::new();
    let mut soak = None;
    if let Some(watching) = watching {
        match watching.await {
            Ok(Ok(seen)) => soak = Some(seen),
            // The instances may know more of the reason.
            Ok(Err(failure)) => complaints.push(failure),
            Err(error) => complaints.push(Failure::context("the watch ended early")(error)),
        }
    }
    complaints.extend(stop_all(nodes).await);
    for complaint in complaints {
        totals.counts.errors += 1;
        totals.complaints.push(format!("error: {complaint}"));
    }
    stop.cancel();
    proxy
        .await
        .map_err(Failure::context("the proxy ended early"))??;
    let kills = outages.times(start);
    let mut summary = Summary::new(&plan, &totals);
    summary.backend = Some(args.fleet.backend.backend.as_str());
    summary.instances = Some(args.fleet.instances);
    summary.policy = Some(args.fleet.policy.as_str());
    summary.kills = kills.len();
    summary.soak = soak.as_ref().map(|soak| soak.judged.clone());
    Ok(Outcome {
        summary,
        totals,
        kills,
        soak,
    })
}

/// The clients alone.
pub(crate) async fn load(args: &LoadArgs) -> Result<Outcome, Failure> {
    let limit = net::raise_descriptor_limit();
    net::reach(&args.url).await?;
    let plan = plan(
        &args.size,
        args.url.clone(),
        args.expect_kills,
        args.size.seed(),
        limit,
    );
    let outages = if args.expect_kills {
        Outages::unknown()
    } else {
        Outages::recorded()
    };
    let bar = load::progress_bar(&plan);
    let loading = load::run(&plan, Arc::new(Tally::new()), Arc::new(outages), &bar);
    let totals = loading.await?;
    Ok(Outcome {
        summary: Summary::new(&plan, &totals),
        totals,
        kills: Vec::new(),
        soak: None,
    })
}

fn plan(
    size: &crate::cli::SizeArgs,
    url: String,
    kills: bool,
    seed: u64,
    descriptors: u64,
) -> Plan {
    let affordable = descriptors / (SOCKETS_PER_SESSION * ENDS);
    let concurrency = usize::try_from(affordable).unwrap_or(MAX_CONCURRENCY);
    Plan {
        url,
        sessions: usize::try_from(size.sessions).unwrap_or(usize::MAX),
        concurrency: concurrency.clamp(1, MAX_CONCURRENCY),
        calls: usize::try_from(size.calls).unwrap_or(usize::MAX),
        patience: size.patience(kills),
        seed,
        lasting: None,
    }
}
