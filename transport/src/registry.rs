//! The workers of this instance.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use http::request::Parts;
use mcp_adapter_core::{Principal, Session as Stored, SessionId, SessionRecord};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::Bus,
    config::Backends,
    signals,
    verdict::{HANDSHAKE_TIMEOUT, Verdict},
    worker::{NewWorker, Worker},
};

/// A session whose worker is to be made here.
pub(crate) struct Restore {
    pub(crate) worker: Arc<Worker>,
    pub(crate) record: Arc<SessionRecord>,
    pub(crate) parts: Parts,
}

/// Runs a server for a worker. `false`: it did not come up.
pub(crate) type Restorer = Arc<dyn Fn(Restore) -> BoxFuture<'static, bool> + Send + Sync>;

pub(crate) struct Registry {
    pub(crate) backends: Arc<Backends>,
    pub(crate) bus: Arc<Bus>,
    restorer: Restorer,
    slots: Mutex<HashMap<SessionId, Slot>>,
    standing: Mutex<HashMap<SessionId, Standers>>,
    /// Ends streams that outlive their requests.
    gets: Mutex<CancellationToken>,
    /// rmcp's: ends its workers. Cancelled last.
    pub(crate) stopped: CancellationToken,
    refusing: AtomicBool,
    /// Requests without a session that rmcp answers.
    stateless: AtomicUsize,
    started: OnceLock<()>,
}

enum Slot {
    Live(Arc<Worker>),
    Restoring(watch::Receiver<Option<Restored>>),
}

type Restored = Result<Arc<Worker>, Verdict>;

struct Standers {
    principal: Option<Principal>,
    count: usize,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stopped.cancel();
        for slot in std::mem::take(&mut *self.slots.lock()).into_values() {
            if let Slot::Live(worker) = slot {
                worker.close();
            }
        }
    }
}

impl Registry {
    pub(crate) fn new(
        backends: Arc<Backends>,
        bus: Arc<Bus>,
        restorer: Restorer,
        stopped: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            backends,
            bus,
            restorer,
            slots: Mutex::default(),
            standing: Mutex::default(),
            gets: Mutex::new(stopped.child_token()),
            stopped,
            refusing: AtomicBool::new(false),
            stateless: AtomicUsize::new(0),
            started: OnceLock::new(),
        })
    }

    /// Starts what runs beside requests, at the first one: only then there is
    /// surely a runtime.
    pub(crate) fn start(self: &Arc<Self>) {
        if self.started.set(()).is_err() {
            return;
        }
        let (registry, stopped) = (Arc::downgrade(self), self.stopped.clone());
        let idle = self.backends.settings.worker_idle;
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep((idle / 4).max(Duration::from_millis(10))).await;
                let Some(registry) = registry.upgrade() else {
                    return;
                };
                registry.evict(idle);
            }
        }));
    }

    /// Closes workers in which nothing has run for `idle`. Their sessions stay.
    fn evict(&self, idle: Duration) {
        let workers = self.workers();
        let evicted = workers.iter().filter(|worker| worker.close_if_idle(idle));
        let evicted = evicted.inspect(|worker| self.forget(worker)).count();
        if evicted > 0 {
            metrics::counter!("mcp_transport_worker_evictions_total").increment(evicted as u64);
            tracing::debug!(evicted, "idle workers left memory");
        }
    }

    pub(crate) fn workers(&self) -> Vec<Arc<Worker>> {
        let slots = self.slots.lock();
        let live = slots.values().filter_map(|slot| match slot {
            Slot::Live(worker) => Some(Arc::clone(worker)),
            Slot::Restoring(_) => None,
        });
        live.collect()
    }

    /// The session's worker here, if there is one.
    pub(crate) fn live(&self, session: &SessionId) -> Option<Arc<Worker>> {
        match self.slots.lock().get(session)? {
            Slot::Live(worker) if !worker.is_closed() => Some(Arc::clone(worker)),
            _ => None,
        }
    }

    /// Adds the worker of a session that was just created.
    pub(crate) fn add(&self, worker: Arc<Worker>) {
        self.slots
            .lock()
            .insert(worker.session.clone(), Slot::Live(worker));
        self.count();
    }

    /// Removes this worker, and no other one of the same session (P17).
    pub(crate) fn forget(&self, worker: &Arc<Worker>) {
        let removed = {
            let mut slots = self.slots.lock();
            match slots.get(&worker.session) {
                Some(Slot::Live(live)) if Arc::ptr_eq(live, worker) => {
                    slots.remove(&worker.session)
                }
                _ => None,
            }
        };
        drop(removed);
        self.count();
        self.backends.settled.notify_waiters();
    }

    fn count(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        let count = self.slots.lock().len() as f64;
        metrics::gauge!("mcp_transport_workers").set(count);
    }

    /// The session is over: its worker has nothing more to do.
    pub(crate) fn session_ended(&self, session: &SessionId) {
        if let Some(worker) = self.live(session) {
            worker.end_session();
            self.forget(&worker);
        }
    }

    /// The session's worker, made if there is none. One request makes it, and
    /// those that come meanwhile wait; all of them have been checked against
    /// the session before.
    pub(crate) async fn worker(
        self: &Arc<Self>,
        session: &SessionId,
        stored: &Stored,
        parts: &Parts,
    ) -> Result<Arc<Worker>, Verdict> {
        let mut waiting = {
            let mut slots = self.slots.lock();
            match slots.get(session) {
                Some(Slot::Live(worker)) if !worker.is_closed() => return Ok(Arc::clone(worker)),
                Some(Slot::Restoring(restoring)) => restoring.clone(),
                _ => {
                    let (sender, restoring) = watch::channel(None);
                    slots.insert(session.clone(), Slot::Restoring(restoring.clone()));
                    // A task of its own: the request that caused it may go away.
                    tokio::spawn(Arc::clone(self).restore(
                        session.clone(),
                        stored.clone(),
                        parts.clone(),
                        sender,
                    ));
                    restoring
                }
            }
        };
        let restored =
            tokio::time::timeout(2 * HANDSHAKE_TIMEOUT, waiting.wait_for(Option::is_some));
        match restored.await {
            Ok(Ok(restored)) => restored.clone().unwrap_or(Err(Verdict::Internal)),
            _ => Err(Verdict::Unavailable),
        }
    }

    async fn restore(
        self: Arc<Self>,
        session: SessionId,
        stored: Stored,
        parts: Parts,
        sender: watch::Sender<Option<Restored>>,
    ) {
        let mut restoring = Restoring {
            registry: Arc::clone(&self),
            session: session.clone(),
            sender,
            outcome: Err(Verdict::Internal),
        };
        let begun = Instant::now();
        let worker = Worker::new(
            session,
            stored.record.principal.clone(),
            Arc::clone(&self.backends),
            Arc::downgrade(&self),
        );
        // Those that have had `initialized` elsewhere do not get it again.
        worker.skip_initialized();
        let new = NewWorker::new(Arc::clone(&worker));
        let up = (self.restorer)(Restore {
            worker: Arc::clone(&worker),
            record: Arc::clone(&stored.record),
            parts: parts.clone(),
        });
        let (up, ()) = tokio::join!(
            tokio::time::timeout(HANDSHAKE_TIMEOUT, up),
            signals::listen(&worker)
        );
        let up = up.unwrap_or(false) && !worker.is_closed();
        metrics::counter!("mcp_transport_restores_total", "up" => if up { "yes" } else { "no" })
            .increment(1);
        if up && let Some(worker) = new.keep() {
            metrics::histogram!("mcp_transport_restore_seconds").record(begun.elapsed());
            worker.sync_now(&stored, Some(&parts));
            restoring.outcome = Ok(worker);
        } else {
            tracing::error!(session = ?worker.session, "a session's worker did not come up");
        }
    }

    /// Cancelled when the clients that listen here by then are to go elsewhere.
    pub(crate) fn gets(&self) -> CancellationToken {
        self.gets.lock().clone()
    }

    /// Sends all clients that listen here elsewhere. Who comes back, since the
    /// listener is still open, is served.
    pub(crate) fn end_gets(&self) {
        let ended = std::mem::replace(&mut *self.gets.lock(), self.stopped.child_token());
        ended.cancel();
        self.bus.end_listeners();
    }

    /// Whether nothing is served any more.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Acquire)
    }

    pub(crate) fn refuse(&self) {
        self.refusing.store(true, Ordering::Release);
        self.bus.end();
    }

    /// Whether this worker still runs here.
    pub(crate) fn has(&self, worker: &Arc<Worker>) -> bool {
        let slots = self.slots.lock();
        let slot = slots.get(&worker.session);
        matches!(slot, Some(Slot::Live(live)) if Arc::ptr_eq(live, worker))
    }

    /// Whether a call runs here, with a session or without one.
    pub(crate) fn is_busy(&self) -> bool {
        self.stateless.load(Ordering::Acquire) > 0
            || self.workers().iter().any(|worker| worker.is_busy())
    }

    /// A request without a session, which counts once it is told to.
    pub(crate) fn stateless(self: &Arc<Self>) -> Stateless {
        Stateless {
            registry: Arc::clone(self),
            counted: AtomicBool::new(false),
        }
    }

    /// Counts a client that listens here.
    pub(crate) fn stand(
        self: &Arc<Self>,
        session: &SessionId,
        principal: Option<&Principal>,
    ) -> Standing {
        let mut standing = self.standing.lock();
        let standers = standing.entry(session.clone()).or_insert_with(|| Standers {
            principal: principal.cloned(),
            count: 0,
        });
        standers.count += 1;
        Standing {
            registry: Arc::clone(self),
            session: session.clone(),
        }
    }

    /// The sessions that this instance knows of: those with a worker here and
    /// those whose client listens here.
    pub(crate) fn sessions(&self) -> HashMap<SessionId, Option<Principal>> {
        let workers = self.workers().into_iter();
        let mut sessions: HashMap<_, _> = workers
            .map(|worker| (worker.session.clone(), worker.principal.clone()))
            .collect();
        for (session, standers) in &*self.standing.lock() {
            sessions
                .entry(session.clone())
                .or_insert_with(|| standers.principal.clone());
        }
        sessions
    }
}

/// Ends a restore, whatever becomes of its task.
struct Restoring {
    registry: Arc<Registry>,
    session: SessionId,
    sender: watch::Sender<Option<Restored>>,
    outcome: Restored,
}

impl Drop for Restoring {
    fn drop(&mut self) {
        {
            let mut slots = self.registry.slots.lock();
            match &self.outcome {
                Ok(worker) if !worker.is_closed() => {
                    slots.insert(self.session.clone(), Slot::Live(Arc::clone(worker)));
                }
                _ => {
                    slots.remove(&self.session);
                }
            }
        }
        self.registry.count();
        self.sender.send_replace(Some(self.outcome.clone()));
    }
}

/// A client that listens here, until it is dropped.
#[derive(Debug)]
pub(crate) struct Standing {
    registry: Arc<Registry>,
    session: SessionId,
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut standing = self.registry.standing.lock();
        if let Some(standers) = standing.get_mut(&self.session) {
            standers.count -= 1;
            if standers.count == 0 {
                standing.remove(&self.session);
            }
        }
    }
}

/// A request without a session, until it is answered.
#[derive(Debug)]
pub(crate) struct Stateless {
    registry: Arc<Registry>,
    counted: AtomicBool,
}

impl Stateless {
    /// From now on a drain waits for it.
    pub(crate) fn count(&self) {
        if !self.counted.swap(true, Ordering::AcqRel) {
            self.registry.stateless.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Stateless {
    fn drop(&mut self) {
        if *self.counted.get_mut() {
            self.registry.stateless.fetch_sub(1, Ordering::AcqRel);
            self.registry.backends.settled.notify_waiters();
        }
    }
}
