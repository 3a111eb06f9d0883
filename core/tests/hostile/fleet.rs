//! The instances, and the bounds within which what they are asked must end.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mcp_adapter_core::{Engine, Limits};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    history::{History, No, What},
    link::{Link, World},
    rng::Rng,
    wire::Wire,
};

pub(crate) const INSTANCES: usize = 3;

pub(crate) struct Instance {
    pub(crate) no: No,
    pub(crate) link: Arc<Link>,
    /// Gone when it is dead.
    engine: Mutex<Option<Engine<Wire>>>,
    history: History,
    operation: Duration,
}

/// What a wait is bounded by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// A call to the backend: a few times its deadline.
    Operation,
    /// Rides out an outage of this length.
    Outage(Duration),
    /// None of its own: whoever runs the whole thing watches it.
    Watched,
}

impl Instance {
    fn start(no: No, world: &Arc<World>, limits: &Limits) -> Arc<Self> {
        world.history.push(What::Started { instance: no });
        let link = Link::new(no, world);
        Arc::new(Self {
            no,
            engine: Mutex::new(Some(Engine::new(Wire(Arc::clone(&link)), limits.clone()))),
            link,
            history: world.history.clone(),
            operation: limits.operation_timeout(),
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.link.state.borrow().dead
    }

    pub(crate) fn engine(&self) -> Option<Engine<Wire>> {
        self.engine.lock().clone()
    }

    /// The process is gone: its tasks, its sockets, and with them all replies.
    pub(crate) fn die(&self) {
        self.history.push(What::Died { instance: self.no });
        self.link.change(|state| state.dead = true);
        self.engine.lock().take();
    }

    /// Runs what a process runs: it stands still with it and ends with it
    /// (`None`). What does not end within its bound is put on record.
    pub(crate) async fn run<T>(
        &self,
        what: &str,
        bound: Bound,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let mut state = self.link.state.subscribe();
        let patience = match bound {
            Bound::Operation => self.operation * 6,
            Bound::Outage(outage) => outage + self.operation * 6,
            Bound::Watched => Duration::from_secs(24 * 3600),
        };
        loop {
            if state
                .wait_for(|state| !state.frozen || state.dead)
                .await
                .is_err()
            {
                return None;
            }
            let begun = Instant::now();
            if state.borrow_and_update().dead {
                return None;
            }
            let stopped = state.wait_for(|state| state.frozen || state.dead);
            tokio::select! {
                biased;
                _ = stopped => {}
                done = &mut work => return Some(done),
                () = tokio::time::sleep(patience) => {
                    // A jump of all clocks is no wait.
                    if begun.elapsed() < patience * 2 {
                        let text = format!("{what} at {} does not end", self.no);
                        self.history.push(What::Hung(text));
                        return None;
                    }
                }
            }
        }
    }
}

/// All instances. A dead one keeps its place until it is replaced.
pub(crate) struct Fleet {
    pub(crate) world: Arc<World>,
    pub(crate) limits: Limits,
    slots: Mutex<Vec<Arc<Instance>>>,
    started: AtomicU32,
}

impl Fleet {
    pub(crate) fn new(world: Arc<World>, limits: Limits) -> Self {
        let fleet = Self {
            world,
            limits,
            slots: Mutex::default(),
            started: AtomicU32::new(0),
        };
        for _ in 0..INSTANCES {
            let instance = fleet.start();
            fleet.slots.lock().push(instance);
        }
        fleet
    }

    fn start(&self) -> Arc<Instance> {
        let no = self.started.fetch_add(1, Ordering::Relaxed);
        Instance::start(no, &self.world, &self.limits)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Instance>> {
        self.slots.lock().clone()
    }

    /// A new process in the place of a dead one.
    pub(crate) fn replace(&self, dead: &Arc<Instance>) {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.iter_mut().find(|slot| Arc::ptr_eq(slot, dead)) {
            *slot = self.start();
        }
    }

    /// Where a load balancer sends the next request: to any that is not known
    /// to be dead. It does not know who is frozen or cut off.
    pub(crate) fn pick(&self, rng: &mut Rng) -> Arc<Instance> {
        let all = self.all();
        let mut alive = all.clone();
        alive.retain(|instance| !instance.is_dead());
        Arc::clone(rng.pick(if alive.is_empty() { &all } else { &alive }))
    }
}
