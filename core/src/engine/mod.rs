//! The engine: the semantics of the contract, written once over [`Storage`].

mod append;
mod contract;
mod follow;
mod holds;
mod interest;
mod lane;
mod link;
mod liveness;
mod observer;
mod records;
mod repair;
mod request;
mod retry;
mod signal;
mod tail;
mod writer;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use self::{
    holds::Holds,
    interest::{Interests, Owned},
    lane::{Budget, Lane},
    observer::Observer,
    records::Records,
    repair::Repair,
    signal::Listeners,
};
use crate::{
    adapter::Health,
    error::{Error, ErrorKind, Result},
    id::{InstanceId, SessionKey, StreamId},
    limits::Limits,
    storage::{Appended, Generation, Profile, Put, PutRequest, Settle, Settled, Storage},
};

/// One instance over a backend: implements all roles of the contract for any
/// [`Storage`]. Cloning it gives the same instance.
///
/// Its tasks start when it is made, or else with its first use, on the runtime that
/// this happens in, and end when the last clone is dropped or
/// [`close`](crate::Adapter::close) was called.
pub struct Engine<S: Storage> {
    shared: Arc<Shared<S>>,
    _alive: Arc<Alive>,
}

/// An adapter that is an engine with a backend: what implements this has all
/// traits of the contract.
pub trait EngineAdapter: fmt::Debug + Send + Sync + 'static {
    /// The backend.
    type Storage: Storage;

    /// The engine of this instance.
    fn engine(&self) -> &Engine<Self::Storage>;
}

impl<S: Storage> EngineAdapter for Engine<S> {
    type Storage = S;

    fn engine(&self) -> &Self {
        self
    }
}

/// Raised once, for good. Asked with every append, it costs no lock.
#[derive(Debug, Default)]
struct Flag {
    is_raised: AtomicBool,
    changed: Notify,
}

impl Flag {
    fn raise(&self) {
        self.is_raised.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn is_raised(&self) -> bool {
        self.is_raised.load(Ordering::Acquire)
    }

    async fn raised(&self) {
        // It counts from here on, and not from its first poll.
        let changed = self.changed.notified();
        if !self.is_raised() {
            changed.await;
        }
    }
}

/// Stops the tasks with the last handle.
struct Alive(watch::Sender<bool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// The state of the wake-up link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Starting,
    Up,
    Down,
}

struct Shared<S> {
    storage: S,
    profile: Profile,
    limits: Limits,
    me: InstanceId,
    interests: Interests,
    holds: Holds,
    records: Records,
    repair: Repair,
    listeners: Listeners,
    observer: Mutex<Observer>,
    generation: Mutex<Option<Generation>>,
    lanes: Lanes,
    /// Queues that the tasks take over at the start.
    queues: Mutex<Option<Queues>>,
    /// Tags of shared appends; a tag is given out and its append queued under
    /// one lock, or a later tag could be stored first and the earlier one be
    /// taken for a repeat.
    tags: Vec<Mutex<u64>>,
    /// One signal at a time.
    signal_turn: tokio::sync::Mutex<()>,
    /// Writers that a knock asked to look at their stream.
    checks: Mutex<Vec<Arc<Owned>>>,
    checked: Notify,
    started: AtomicBool,
    closed: AtomicBool,
    /// Raised by `kill`: then nothing completes.
    killed: Flag,
    link: watch::Sender<Link>,
    stop: watch::Sender<bool>,
    /// This instance's heartbeat counter.
    beats: AtomicU64,
    /// When this instance was surely alive for others: milliseconds after
    /// `origin` at which the last acknowledged heartbeat was sent, plus one.
    beaten: AtomicU64,
    /// When this instance was last back from a silence in which others may have
    /// held it dead.
    lapsed: Mutex<Option<Instant>>,
    /// When the last heartbeat failed, in the same measure; 0 when it did not.
    beat_failed: AtomicU64,
    origin: Instant,
    /// Since when the backend fails, in the same measure; 0 when it does not.
    failing: AtomicU64,
    /// Since when the link is down.
    link_down: AtomicU64,
    /// Whether a shard was away when this instance caught up last.
    apart: AtomicBool,
}

/// Per shard: several lanes of appends, and one of each of the others.
struct Lanes {
    append: Vec<Lane<writer::Pending, Appended>>,
    put: Vec<Lane<PutRequest, Put>>,
    settle: Vec<Lane<Settle, Settled>>,
}

struct Queues {
    append: Vec<lane::LaneQueue<writer::Pending, Appended>>,
    put: Vec<lane::LaneQueue<PutRequest, Put>>,
    settle: Vec<lane::LaneQueue<Settle, Settled>>,
}

/// Shards of tags; a stream always has the same.
const TAG_SHARDS: usize = 16;

impl<S: Storage> Engine<S> {
    /// A new instance over `storage`.
    #[must_use]
    pub fn new(storage: S, limits: Limits) -> Self {
        let profile = storage.profile();
        let me = InstanceId::generate();
        let budget = Budget::new(limits.queued_events(), limits.queued_bytes());
        let shards = profile.shards.max(1);
        let (append, append_queues) = lanes(&budget, &profile, shards * profile.lanes.max(1));
        let (put, put_queues) = lanes(&budget, &profile, shards);
        let (settle, settle_queues) = lanes(&budget, &profile, shards);
        let stop = watch::Sender::new(false);
        let shared = Arc::new(Shared {
            storage,
            profile,
            me,
            interests: Interests::new(),
            holds: Holds::default(),
            records: Records::new(),
            repair: Repair::new(),
            listeners: Listeners::default(),
            observer: Mutex::new(Observer::new(me, limits.lease())),
            generation: Mutex::new(None),
            lanes: Lanes {
                append,
                put,
                settle,
            },
            queues: Mutex::new(Some(Queues {
                append: append_queues,
                put: put_queues,
                settle: settle_queues,
            })),
            tags: (0..TAG_SHARDS).map(|_| Mutex::new(0)).collect(),
            signal_turn: tokio::sync::Mutex::new(()),
            checks: Mutex::new(Vec::new()),
            checked: Notify::new(),
            started: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            killed: Flag::default(),
            link: watch::Sender::new(Link::Starting),
            stop: stop.clone(),
            beats: AtomicU64::new(0),
            beaten: AtomicU64::new(0),
            lapsed: Mutex::new(None),
            beat_failed: AtomicU64::new(0),
            origin: Instant::now(),
            failing: AtomicU64::new(0),
            link_down: AtomicU64::new(0),
            apart: AtomicBool::new(false),
            limits,
        });
        crate::describe_metrics();
        shared.start_once();
        Self {
            shared,
            _alive: Arc::new(Alive(stop)),
        }
    }

    /// The backend.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.shared.storage
    }

    /// Stops this instance as the end of its process would: its tasks end, what
    /// is called or waited for from now on never completes, and nothing is
    /// written any more, not even by what is dropped later. For tests of what
    /// other instances make of it (clause F3);
    /// [`close`](crate::Adapter::close) is the end for everything else.
    pub fn kill(&self) {
        self.shared.killed.raise();
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }
}

impl<S: Storage> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            _alive: Arc::clone(&self._alive),
        }
    }
}

impl<S: Storage> fmt::Debug for Engine<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("backend", &self.shared.profile.name)
            .field("instance", &self.shared.me)
            .finish_non_exhaustive()
    }
}

impl<S: Storage> Shared<S> {
    /// Starts the tasks with the first use, and waits until wake-ups can
    /// arrive or cannot: what is written after this is heard.
    async fn ready(self: &Arc<Self>, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, operation));
        }
        self.start_once();
        if *self.link.borrow() != Link::Starting {
            return Ok(());
        }
        let mut link = self.link.subscribe();
        let known = link.wait_for(|link| *link != Link::Starting);
        // Without a link the backend may still serve; its own error says more
        // than this wait could.
        let _ = tokio::time::timeout(self.limits.operation_timeout() / 2, known).await;
        Ok(())
    }

    /// Outside of a runtime the tasks wait for the first use.
    fn start_once(self: &Arc<Self>) {
        if tokio::runtime::Handle::try_current().is_ok()
            && !self.started.swap(true, Ordering::AcqRel)
        {
            self.start();
        }
    }

    fn start(self: &Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(self).run_link());
        tasks.spawn(Arc::clone(self).run_catch_up());
        tasks.spawn(Arc::clone(self).run_heartbeat());
        tasks.spawn(Arc::clone(self).run_sweep());
        if let Some(queues) = self.queues.lock().take() {
            for queue in queues.append {
                tasks.spawn(Arc::clone(self).run_appends(queue));
            }
            for queue in queues.put {
                tasks.spawn(Arc::clone(self).run_puts(queue));
            }
            for queue in queues.settle {
                tasks.spawn(Arc::clone(self).run_settles(queue));
            }
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = shared.stopped() => {}
                () = shared.killed.raised() => {}
            }
            tasks.shutdown().await;
        });
    }

    /// Runs `work` beside the caller; without a runtime there is nobody left to
    /// do it for.
    fn spawn(work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(work);
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.limits.operation_timeout()
    }

    fn is_killed(&self) -> bool {
        self.killed.is_raised()
    }

    /// Never completes in a killed instance.
    async fn unless_killed(&self) {
        if self.is_killed() {
            std::future::pending().await
        }
    }

    /// Completes when this instance is closed or dropped.
    async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // An error means that nobody can stop it any more: it is stopped.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// One step for a caller that waits: with its deadline and its repeats.
    async fn step<'a, T, F>(
        &'a self,
        operation: &'static str,
        mut step: impl FnMut(&'a S) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.unless_killed().await;
        if self.profile.inline {
            let result = step(&self.storage).await;
            self.note(&result);
            return result;
        }
        let began = Instant::now();
        let result = retry::repeat(operation, self.deadline(), || step(&self.storage)).await;
        self.measure(operation, began);
        self.note(&result);
        result
    }

    /// How long a step took, its repeats included. Only of backends that are far
    /// away: a step of an inline one is a plain call.
    fn measure(&self, operation: &'static str, began: Instant) {
        metrics::histogram!("mcp_adapter_step_seconds",
            "backend" => self.profile.name, "step" => operation)
        .record(began.elapsed());
    }

    /// Keeps health true.
    fn note<T>(&self, result: &Result<T>) {
        match result {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                let now = self.millis();
                let _ = self
                    .failing
                    .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
            _ => {
                if self.failing.load(Ordering::Relaxed) != 0 {
                    self.failing.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// Milliseconds since this instance was made, plus one: never 0.
    fn millis(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).map_or(u64::MAX, |now| now + 1)
    }

    fn since(&self, millis: u64) -> Duration {
        Duration::from_millis(self.millis().saturating_sub(millis))
    }

    fn health(self: &Arc<Self>) -> Health {
        self.start_once();
        // Whether the backend answers is not known before it was reached once.
        if *self.link.borrow() == Link::Starting && !self.profile.inline {
            return Health::Down {
                since: self.origin.elapsed(),
            };
        }
        match (
            self.failing.load(Ordering::Relaxed),
            self.link_down.load(Ordering::Relaxed),
        ) {
            (0, 0) => Health::Ok,
            (0, down) => Health::Degraded {
                since: self.since(down),
            },
            (failing, _) => Health::Down {
                since: self.since(failing),
            },
        }
    }

    /// Whether nobody can hold this instance dead: then its writers may deliver
    /// before the backend has acknowledged.
    fn is_surely_alive(&self) -> bool {
        let beaten = self.beaten.load(Ordering::Relaxed);
        beaten != 0 && self.since(beaten) < self.limits.lease() / 2
    }

    fn tag_shard(&self, session: &SessionKey) -> &Mutex<u64> {
        &self.tags[usize::from(session.0[0]) % TAG_SHARDS]
    }

    fn append_lane(
        &self,
        session: &SessionKey,
        stream: &StreamId,
    ) -> &Lane<writer::Pending, Appended> {
        let hash = stream
            .as_str()
            .bytes()
            .fold(usize::from(session.0[1]), |hash, byte| {
                hash.wrapping_mul(31).wrapping_add(usize::from(byte))
            });
        let lanes = self.profile.lanes.max(1);
        &self.lanes.append[self.shard_of(session) * lanes + hash % lanes]
    }

    /// A number beyond the profile's would be the backend's mistake: it is taken
    /// for one of them, always the same.
    fn shard_of(&self, session: &SessionKey) -> usize {
        self.storage.shard_of(session) % self.profile.shards.max(1)
    }
}

/// So many lanes with a common budget, and their queues.
#[expect(clippy::type_complexity, reason = "both ends of each")]
fn lanes<T, R>(
    budget: &Arc<Budget>,
    profile: &Profile,
    count: usize,
) -> (Vec<Lane<T, R>>, Vec<lane::LaneQueue<T, R>>) {
    (0..count)
        .map(|_| lane::lane(budget, profile.batch_events, profile.batch_bytes))
        .unzip()
}

/// The result of a step of an inline backend.
pub(crate) fn inline<T>(
    operation: &'static str,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    step.now_or_never().unwrap_or_else(|| {
        Err(Error::new(ErrorKind::Unavailable, operation)
            .with_message("the backend calls itself inline, but its step had to wait"))
    })
}

/// One answer per entry is a rule of the seam.
pub(crate) fn only<T>(operation: &'static str, answers: Vec<T>) -> Result<T> {
    answers.into_iter().next().ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, operation).with_message("the backend gave no answer")
    })
}
