//! The main job: instances, proxy, clients, kills, report.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::Store,
    cli::{FleetArgs, LoadArgs, RunArgs, UpArgs},
    error::Failure,
    load::{self, Outages, Plan, Tally, Totals},
    net,
    node::Node,
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
/// How often the progress of the load is looked at to time the kills.
const WATCH: Duration = Duration::from_millis(10);
/// How long a killed instance stays away, in milliseconds.
const AWAY_MS: std::ops::Range<u64> = 200..800;
/// Kills fall into this part of the load, in percent of its calls.
const KILL_FROM: u64 = 10;
const KILL_TO: u64 = 75;

/// Everything a finished run shows.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    pub(crate) totals: Totals,
    /// Kills, in seconds after the start.
    pub(crate) kills: Vec<f64>,
}

/// Instances behind their proxy.
struct Standing {
    nodes: Vec<Node>,
    addr: SocketAddr,
    proxy: JoinHandle<Result<(), Failure>>,
    stop: CancellationToken,
}

async fn stand(
    args: &FleetArgs,
    listener: TcpListener,
    rng: &mut fastrand::Rng,
) -> Result<Standing, Failure> {
    let store = Store::open(args.backend.backend, args.backend.url.as_deref())?;
    let key = StateKey::generate()?;
    let mut nodes = Vec::new();
    for n in 1..=args.instances {
        let listener = net::listen_for_instance(rng)?;
        let name = format!("instance-{n}");
        nodes.push(Node::start(name, listener, store.clone(), key.clone()).await?);
    }
    let addr = listener
        .local_addr()
        .map_err(Failure::context("cannot tell the proxy's port"))?;
    let stop = CancellationToken::new();
    let upstreams = nodes.iter().map(Node::addr).collect();
    let proxy = tokio::spawn(proxy::serve(listener, args.policy, upstreams, stop.clone()));
    Ok(Standing {
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
    let standing = stand(&args.fleet, listener, &mut fastrand::Rng::new()).await?;
    println!("listening on http://{}/mcp", standing.addr);
    end.cancelled().await;
    for node in standing.nodes {
        node.stop().await?;
    }
    standing.stop.cancel();
    standing
        .proxy
        .await
        .map_err(Failure::context("the proxy ended early"))?
}

/// The whole thing.
pub(crate) async fn run(args: &RunArgs) -> Result<Outcome, Failure> {
    let limit = net::raise_descriptor_limit();
    let seed = args.size.seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let Standing {
        nodes,
        addr,
        proxy,
        stop,
    } = stand(&args.fleet, listener, &mut rng).await?;

    let plan = plan(
        &args.size,
        format!("http://{addr}/mcp"),
        args.kill,
        seed,
        limit,
    );
    let tally = Arc::new(Tally::new());
    let outages = Arc::new(Outages::recorded());
    let over = CancellationToken::new();
    let killer = tokio::spawn(kill_each(
        nodes,
        args.kill,
        plan.total_calls(),
        rng,
        Arc::clone(&tally),
        Arc::clone(&outages),
        over.clone(),
    ));
    let start = tally.start();
    let totals = load::run(&plan, tally, Arc::clone(&outages)).await?;
    over.cancel();
    let nodes = killer
        .await
        .map_err(Failure::context("the kills ended early"))??;
    for node in nodes {
        node.stop().await?;
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
    Ok(Outcome {
        summary,
        totals,
        kills,
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
    let totals = load::run(&plan, Arc::new(Tally::new()), Arc::new(outages)).await?;
    Ok(Outcome {
        summary: Summary::new(&plan, &totals),
        totals,
        kills: Vec::new(),
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
    }
}

/// Kills every instance once, one at a time, spread over the progress of the load,
/// as far as the load is long enough; gives the instances back when it is over.
async fn kill_each(
    mut nodes: Vec<Node>,
    armed: bool,
    calls: u64,
    mut rng: fastrand::Rng,
    tally: Arc<Tally>,
    outages: Arc<Outages>,
    over: CancellationToken,
) -> Result<Vec<Node>, Failure> {
    if armed {
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        rng.shuffle(&mut order);
        let kills = u64::try_from(order.len()).unwrap_or(1);
        let span = calls * (KILL_TO - KILL_FROM) / 100 / kills;
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
            node.kill().await;
            tokio::time::sleep(Duration::from_millis(rng.u64(AWAY_MS))).await;
            node.restart().await?;
            outages.end(&label);
        }
    }
    over.cancelled().await;
    Ok(nodes)
}
