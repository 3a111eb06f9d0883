//! The instances of one case: each on a runtime of its own, so that one can be
//! killed or frozen while the others go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use mcp_adapter_core::{Adapter, Capabilities, Limits, LimitsBuilder};
use parking_lot::Mutex;
use tokio::runtime::{EnterGuard, Handle, Runtime};

use crate::{
    instance::Instance,
    on::On,
    options::Options,
    restart::{self, Restart},
    wait::{Failure, chain},
};

/// Any error of a test file.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens an instance.
pub(crate) type Open =
    dyn Fn(Options) -> BoxFuture<'static, Result<Arc<dyn Adapter>, BoxError>> + Send + Sync;

/// One instance and its runtime.
pub(crate) struct Node {
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    alive: AtomicBool,
}

impl Node {
    fn start() -> std::io::Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("instance")
            .enable_all()
            .build()?;
        Ok(Arc::new(Self {
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            alive: AtomicBool::new(true),
        }))
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Ends the instance as the kernel ends a process: nothing of it runs any
    /// more, and no destructor has a say.
    pub(crate) async fn kill(&self) {
        self.alive.store(false, Ordering::SeqCst);
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            // A runtime must not be dropped where something waits for it.
            let _ = tokio::task::spawn_blocking(move || {
                runtime.shutdown_timeout(Duration::from_secs(5));
            })
            .await;
        }
    }

    /// Stops all that the instance does, as SIGSTOP stops a process, until the
    /// guard is dropped.
    pub(crate) async fn freeze(&self) -> Frozen {
        let (thaw, thawed) = mpsc::channel::<()>();
        let (stopped, is_stopped) = tokio::sync::oneshot::channel();
        // Its only worker: nobody else turns its timers and sockets.
        self.handle.spawn(async move {
            let _ = stopped.send(());
            let _ = thawed.recv();
        });
        let _ = is_stopped.await;
        Frozen(thaw)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It was never opened, or the case ended early; and a runtime must not
        // be dropped where something waits.
        if let Some(runtime) = self.runtime.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}

/// An instance stands still until this is dropped.
#[must_use = "it thaws when this is dropped"]
pub(crate) struct Frozen(#[expect(dead_code, reason = "its end is the message")] mpsc::Sender<()>);

struct Opened {
    node: Arc<Node>,
    adapter: Arc<dyn Adapter>,
}

/// The store of one case and the instances on it.
#[derive(Clone)]
pub(crate) struct Fleet {
    open: Arc<Open>,
    options: Options,
    limits: Limits,
    /// As the test file says.
    declared: Capabilities,
    /// The unit of all times: far above the backend's granularity.
    tick: Duration,
    patience: Duration,
    restart: Option<Restart>,
    opened: Arc<Mutex<Vec<Opened>>>,
}

/// How all instances end before the store is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Each is closed as its adapter provides for.
    Closed,
    /// With no last words, as a process that is killed; a handle in this process is
    /// dropped all the same, or the store would stay open.
    Killed,
}

impl Fleet {
    pub(crate) fn new(
        open: &Arc<Open>,
        namespace: String,
        capabilities: Capabilities,
        patience: Duration,
    ) -> Self {
        let tick = capabilities.time_precision.max(Duration::from_millis(10));
        let limits = Limits::default();
        let fleet = Self {
            open: Arc::clone(open),
            options: Options::new(namespace, limits.clone()),
            limits,
            declared: capabilities,
            tick,
            patience: patience + tick * 100,
            restart: None,
            opened: Arc::default(),
        };
        // Values that are in range whatever the tick is.
        let base = fleet.with(|limits| {
            limits
                .idle_ttl(tick * 6000)
                .finished_ttl(tick * 6000)
                .request_timeout(tick * 6000)
                .result_ttl(tick * 6000)
                .catch_up(tick * 10)
                .heartbeat(tick * 10)
                .lease(tick * 60)
                .probe_after(tick * 30)
                .probe_timeout(tick * 20)
                .operation_timeout(tick * 200)
                .max_outage(tick * 1000)
        });
        base.unwrap_or(fleet)
    }

    pub(crate) fn with_restart(self, restart: Option<Restart>) -> Self {
        Self { restart, ..self }
    }

    /// Ends all instances, closes the store, and leaves it to the next instance to
    /// open it again. Nothing of an instance may be kept: it would keep the store open.
    pub(crate) async fn restart(&self, ending: Ending) -> Result<(), Failure> {
        let fleet = self.clone();
        let ended = tokio::task::spawn_blocking(move || fleet.end_all(ending));
        ended.await.map_err(Failure::new)?;
        restart::close(self.restart.as_ref(), &self.options).await
    }

    /// The same store with other limits.
    pub(crate) fn with(
        &self,
        change: impl FnOnce(LimitsBuilder) -> LimitsBuilder,
    ) -> Result<Self, Failure> {
        Ok(Self {
            limits: change(self.limits.to_builder()).build()?,
            ..self.clone()
        })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// So many units of time.
    pub(crate) fn ticks(&self, ticks: u32) -> Duration {
        self.tick * ticks
    }

    /// How long to wait for what must come; never reached by a good backend.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Opens one more instance on the store.
    pub(crate) async fn instance(&self) -> Result<Instance, Failure> {
        let node = Node::start().map_err(Failure::new)?;
        let options = self.options.for_instance(self.limits.clone());
        let link = options.link().clone();
        let opening = {
            let _runtime = node.enter();
            (self.open)(options)
        };
        let opened = On::new(&node, opening);
        let opened = tokio::time::timeout(self.patience() * 6, opened).await;
        let adapter = opened
            .map_err(|_| Failure::new("an instance did not open in time"))?
            .map_err(|error| {
                let why = chain(error.as_ref());
                Failure::new(format!("an instance could not be opened: {why}"))
            })?;
        self.opened.lock().push(Opened {
            node: Arc::clone(&node),
            adapter: Arc::clone(&adapter),
        });
        if let Some(claim) = overclaim(self.declared, adapter.capabilities()) {
            return Err(Failure::new(format!(
                "the adapter claims more of itself than the test file says, so that it is not \
                 certified: {claim}"
            )));
        }
        Ok(Instance::new(node, adapter, link))
    }

    /// Opens `N` instances on the store.
    pub(crate) async fn instances<const N: usize>(&self) -> Result<[Instance; N], Failure> {
        let mut instances = Vec::with_capacity(N);
        for _ in 0..N {
            instances.push(self.instance().await?);
        }
        instances
            .try_into()
            .map_err(|_| Failure::new("as many as were opened"))
    }

    /// An instance whose link a case can cut.
    pub(crate) async fn linked(&self) -> Result<Instance, Failure> {
        let instance = self.instance().await?;
        if instance.link().is_used() {
            return Ok(instance);
        }
        Err(Failure::new(
            "this case cuts the connections of an instance: let it connect to the address \
             that `Options::proxy` gives, or declare `Absent::Link` where there is none",
        ))
    }

    /// Closes what is still open; to be called where nothing runs.
    pub(crate) fn end(&self) {
        self.end_all(Ending::Closed);
    }

    fn end_all(&self, ending: Ending) {
        for Opened { node, adapter } in self.opened.lock().drain(..) {
            let runtime = node.runtime.lock().take();
            let Some(runtime) = runtime else {
                // It was killed: no destructor runs.
                Box::leak(Box::new(adapter));
                continue;
            };
            if ending == Ending::Killed {
                // Its processes first: they are killed with the runtime.
                node.alive.store(false, Ordering::SeqCst);
                runtime.shutdown_timeout(CLOSING);
                drop(adapter);
                continue;
            }
            let close = adapter.close();
            let _ = runtime.block_on(async { tokio::time::timeout(CLOSING, close).await.is_ok() });
            {
                let _runtime = runtime.enter();
                drop(adapter);
            }
            node.alive.store(false, Ordering::SeqCst);
            runtime.shutdown_timeout(CLOSING);
        }
    }
}

/// What an adapter tells its users that the suite was not told.
fn overclaim(declared: Capabilities, told: Capabilities) -> Option<&'static str> {
    let claims = [
        (told.shared && !declared.shared, "`Capabilities::shared`"),
        (told.durable && !declared.durable, "`Capabilities::durable`"),
        (told.push && !declared.push, "`Capabilities::push`"),
    ];
    let mut claims = claims.into_iter();
    claims.find_map(|(too_much, what)| too_much.then_some(what))
}

const CLOSING: Duration = Duration::from_secs(2);

/// Boxes what opens an adapter.
pub(crate) fn opener<A, O, F>(open: O) -> Arc<Open>
where
    A: Adapter,
    O: Fn(Options) -> F + Send + Sync + 'static,
    F: Future<Output = Result<A, BoxError>> + Send + 'static,
{
    Arc::new(move |options| {
        open(options)
            .map(|adapter| adapter.map(|adapter| Arc::new(adapter) as Arc<dyn Adapter>))
            .boxed()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_may_claim_less_than_it_is_certified_for_and_no_more() {
        let server = Capabilities::server(Duration::from_millis(1));
        let memory = Capabilities::in_process();
        assert_eq!(overclaim(server, memory), None);
        assert_eq!(overclaim(memory, memory), None);
        assert_eq!(overclaim(memory, server), Some("`Capabilities::shared`"));
        let mut polling = server;
        polling.push = false;
        assert_eq!(overclaim(polling, server), Some("`Capabilities::push`"));
    }
}
