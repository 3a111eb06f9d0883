//! One run: a storm, then all quiet, then the reckoning.

use std::{sync::Arc, time::Duration};

use mcp_adapter_core::{Limits, StreamId, storage::Storage};
use mcp_adapter_memory::MemoryStorage;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    adversary::{Adversary, Exposure},
    check::{self, Violation},
    fleet::Fleet,
    history::{Entry, History, What},
    link::{Server, Weather, World},
    load::{Business, Group, Habits, Load, Start},
    reference::{Defects, Reference},
    rng::Rng,
};

/// The store that a run is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Reference(Defects),
    Memory,
}

/// What a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) store: Store,
    pub(crate) exposure: Exposure,
    pub(crate) repair: bool,
    pub(crate) no_catch_up: bool,
    /// Sessions that are deleted soon, at least.
    pub(crate) brief: u64,
}

impl Plan {
    /// The plan of a seed: three of eight are with losses of the backend, and
    /// one is over the memory backend, which cannot lose anything.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork("plan", 0);
        let kind = rng.below(8);
        Self {
            seed,
            store: if kind == 0 {
                Store::Memory
            } else {
                Store::Reference(Defects::default())
            },
            exposure: Exposure {
                faults: true,
                deaths: rng.chance(600),
                losses: kind >= 5,
                silence: rng.chance(100),
                stalls_only: rng.chance(120),
            },
            repair: rng.chance(667),
            no_catch_up: false,
            brief: 0,
        }
    }
}

/// Silence after which a reader has seen all there is: longer than a lost stream
/// takes to be noticed.
pub(crate) const QUIET: Duration = Duration::from_secs(15);

pub(crate) struct Done {
    pub(crate) history: Vec<Entry>,
    pub(crate) violations: Vec<Violation>,
}

/// In half of the runs little may be stored, and in most of those sessions are shrunk.
fn limits(rng: &mut Rng) -> (Limits, bool) {
    let (few, tight) = (rng.chance(250), rng.chance(500));
    let session_bytes = usize::try_from(rng.within(1600, 4500)).unwrap_or(4500);
    let limits = Limits::builder()
        .idle_ttl(Duration::from_secs(120))
        .finished_ttl(Duration::from_secs(60))
        .result_ttl(Duration::from_secs(60))
        .request_timeout(Duration::from_secs(30))
        .max_outage(Duration::from_secs(40))
        .event_bytes(if tight { 1000 } else { 4096 })
        .stream_bytes(if tight { 1500 } else { 1 << 20 })
        .session_bytes(if tight { session_bytes } else { 16 << 20 })
        .stream_events(if few { 6 } else { 1024 })
        .build();
    match limits {
        Ok(limits) => (limits, tight),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a plan to its end, and checks what happened.
pub(crate) fn run(plan: Plan) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(simulate(plan)),
        Err(error) => panic!("no runtime: {error}"),
    }
}

async fn simulate(plan: Plan) -> Done {
    let rng = Rng::new(plan.seed);
    let (limits, tight) = limits(&mut rng.fork("limits", 0));
    let (store, reference): (Arc<dyn Storage>, _) = match plan.store {
        Store::Reference(defects) => {
            let reference = Reference::new(defects);
            (Arc::new(reference.clone()), Some(reference))
        }
        Store::Memory => (Arc::new(MemoryStorage::new()), None),
    };
    let world = Arc::new(World {
        rng: rng.fork("world", 0),
        history: History::new(),
        storage: store,
        server: watch::Sender::new(Server { up: true, boots: 1 }),
        weather: Mutex::new(Weather::default()),
        patience: limits.operation_timeout(),
        prompt_creates: plan.store == Store::Memory,
        repair: plan.repair,
        no_catch_up: plan.no_catch_up,
    });
    let history = world.history.clone();
    history.fault(format!("{plan:?}"));
    let fleet = Arc::new(Fleet::new(world, limits.clone()));
    let until = Instant::now() + rng.fork("length", 0).millis(25_000, 80_000);
    let lossy = plan.exposure.losses;
    let load = Load::new(
        Arc::clone(&fleet),
        plan.seed,
        until,
        lossy,
        if tight { 800 } else { 50 },
    );
    storm(plan, &load, reference.clone(), &rng).await;
    Adversary::heal(&fleet);
    reckon(&load, reference, &limits, rng.fork("reckoning", 0)).await;
    let history = history.take();
    let violations = check::check(&history, &limits);
    Done {
        history,
        violations,
    }
}

async fn storm(plan: Plan, load: &Arc<Load>, store: Option<Reference>, rng: &Rng) {
    let mut size = rng.fork("size", 0);
    // One is never used: it must expire.
    {
        let (load, rng) = (Arc::clone(load), rng.fork("idle", 0));
        Arc::clone(&load).spawn(Group::Work, "an idle session".into(), async move {
            load.open(true, false, rng).await;
        });
    }
    for number in 0..size.within(1, 3) {
        let business = Business {
            calls: size.within(1, 6),
            requests: size.within(0, 6),
            appends: size.within(0, 10),
            updates: size.within(0, 4),
            deleted: 300,
            shared: 400,
        };
        let work = Arc::clone(load).session(business, rng.fork("business", number));
        load.spawn(Group::Work, format!("business {number}"), work);
    }
    for number in 0..size.within(0, 4).max(plan.brief) {
        let brief = Arc::clone(load).brief(rng.fork("brief", number));
        load.spawn(Group::Work, format!("a brief session, {number}"), brief);
    }
    let adversary = Adversary {
        fleet: Arc::clone(&load.fleet),
        store,
        exposure: plan.exposure,
        rng: rng.fork("adversary", 0),
        until: load.until,
    };
    load.spawn(Group::Work, "adversary".into(), adversary.run());
    sleep_until(load.until).await;
    // A fault that is under way ends soon.
    sleep(Duration::from_secs(4)).await;
}

async fn reckon(load: &Arc<Load>, reference: Option<Reference>, limits: &Limits, mut rng: Rng) {
    // A call that was cancelled in vain goes on for a while.
    let calls = Duration::from_secs(120);
    let longest = limits.max_outage() + limits.request_timeout() + limits.lease() * 3 + calls;
    load.through(Group::Work, longest).await;
    let calls = load.calls.lock().clone();
    let habits = Habits {
        cuts: 0,
        patience: Some(QUIET),
    };
    for (client, stream, id) in calls {
        let reader = rng.fork("reader", stream.into());
        load.read(
            Group::Work,
            &client,
            (stream, id),
            Start::First,
            habits,
            reader,
        );
    }
    let clients = load.clients.lock().clone();
    for client in &clients {
        let reader = rng.fork("reader", client.standalone.into());
        if client.shared {
            let (load, client, mut rng) = (Arc::clone(load), client.clone(), reader);
            let name = format!("last events of session {}", client.no);
            Arc::clone(&load).spawn(Group::Work, name, async move {
                load.settle(&client, &mut rng).await;
            });
            continue;
        }
        let (load, client) = (Arc::clone(load), client.clone());
        let name = format!("a replay for session {}", client.no);
        Arc::clone(&load).spawn(Group::Work, name, async move {
            load.replay(&client, reader).await;
        });
    }
    load.through(Group::Work, limits.lease() * 6).await;
    // Whatever belongs to the dead is ended by now.
    sleep(limits.lease() * 2).await;
    for open in reference
        .into_iter()
        .flat_map(|store| store.copy().open_calls())
    {
        let number = |(_, no, id): &(_, u32, StreamId)| (*id == open).then_some(*no);
        let number = load.calls.lock().iter().find_map(number);
        // Nobody was ever told of it. The data that said how it ended are lost,
        // and nobody can meet it: it goes with its session.
        if number.is_none() && load.lossy {
            continue;
        }
        let text = format!("{open:?} (stream {number:?}) is open, and nobody writes it");
        load.history.push(What::Leftover(text));
    }
    for client in &clients {
        // The first one is left alone: it must expire.
        if client.no != clients[0].no && load.visit(client, &mut rng).await {
            load.history.push(What::Kept { session: client.no });
            if client.shared {
                continue;
            }
            let stream = (client.standalone, StreamId::standalone());
            let patience = None;
            let habits = Habits { cuts: 0, patience };
            let reader = rng.fork("keeper", client.no.into());
            load.read(
                Group::Session,
                client,
                stream,
                Start::Standalone,
                habits,
                reader,
            );
        }
    }
    sleep(limits.idle_ttl() + Duration::from_secs(30)).await;
    for client in &clients {
        load.visit(client, &mut rng).await;
    }
    for client in &clients {
        load.delete(client, &mut rng).await;
    }
    for client in &clients {
        load.visit(client, &mut rng).await;
    }
    load.through(Group::Session, limits.lease()).await;
}
