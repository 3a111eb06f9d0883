//! One instance of the example server, in this process.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use axum::serve::ListenerExt;
use tokio::{runtime::Runtime, sync::oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{Mounted, Store},
    error::Failure,
    net,
    server::{Instance, StateKey},
};

/// How long calls may run on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long connections may stay open after that.
const LINGER: Duration = Duration::from_secs(2);
/// A killed instance's port is free when its tasks are dropped.
const REBIND: Duration = Duration::from_secs(10);
const WORKERS: usize = 2;

/// Serves MCP on `listener` until `stop`, then drains.
pub(crate) async fn serve(
    listener: TcpListener,
    mounted: Mounted,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(Failure::context("cannot use the server's socket"))?
        .tap_io(|stream| {
            // Small events must not wait for a delayed ACK.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "connection closed at once");
            }
        });
    ready();
    let drained = CancellationToken::new();
    let server = axum::serve(listener, mounted.router.clone())
        .with_graceful_shutdown(drained.clone().cancelled_owned());
    let mut server = std::pin::pin!(std::future::IntoFuture::into_future(server));
    let failed = |error: io::Error| Failure::new(format!("the server stopped: {error}"));
    tokio::select! {
        ended = &mut server => return ended.map_err(failed),
        () = async {
            stop.cancelled().await;
            mounted.drain(DRAIN).await;
        } => drained.cancel(),
    }
    // Connections that no client closes must not keep the process.
    match tokio::time::timeout(LINGER, server).await {
        Ok(ended) => ended.map_err(failed),
        Err(_) => Ok(()),
    }
}

/// An instance that can be killed and started again on its port.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    addr: SocketAddr,
    store: Store,
    key: StateKey,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    runtime: Runtime,
    mounted: Mounted,
    stop: CancellationToken,
    ended: oneshot::Receiver<Result<(), Failure>>,
}

impl Node {
    /// Starts an instance on `listener`.
    pub(crate) async fn start(
        name: String,
        listener: TcpListener,
        store: Store,
        key: StateKey,
    ) -> Result<Self, Failure> {
        let addr = listener
            .local_addr()
            .map_err(Failure::context("cannot tell the instance's port"))?;
        let mut node = Self {
            name,
            addr,
            store,
            key,
            running: None,
        };
        node.run(listener).await?;
        Ok(node)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    async fn run(&mut self, listener: TcpListener) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name(&self.name)
            .enable_all()
            .build()
            .map_err(Failure::context("cannot start a runtime"))?;
        let (ready, is_ready) = oneshot::channel();
        let (end, mut ended) = oneshot::channel();
        let stop = CancellationToken::new();
        let mounted = self.store.mount(Instance::new(&self.name, &self.key));
        let (served, token) = (mounted.clone(), stop.clone());
        runtime.spawn(async move {
            let ready = move || {
                // Whoever started this instance may be gone.
                let _ = ready.send(());
            };
            let result = serve(listener, served, token, ready).await;
            let _ = end.send(result);
        });
        if is_ready.await.is_err() {
            let why = match ended.try_recv() {
                Ok(Err(failure)) => failure,
                _ => Failure::new("it ended at once"),
            };
            dispose(runtime).await;
            return Err(Failure::new(format!("cannot start {}: {why}", self.name)));
        }
        self.running = Some(Running {
            runtime,
            mounted,
            stop,
            ended,
        });
        Ok(())
    }

    /// Ends the instance at once: its tasks and sockets are dropped, nothing is
    /// drained, and what its destructors say reaches no store.
    pub(crate) async fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.mounted.kill();
            dispose(running.runtime).await;
        }
    }

    /// Starts a fresh instance of the same store on the same port.
    pub(crate) async fn restart(&mut self) -> Result<(), Failure> {
        let bound = async {
            loop {
                match net::bind(self.addr) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    done => return done,
                }
            }
        };
        let listener = tokio::time::timeout(REBIND, bound)
            .await
            .map_err(|_| Failure::new(format!("port {} does not become free", self.addr)))?
            .map_err(Failure::context(format!("cannot listen on {}", self.addr)))?;
        self.run(listener).await
    }

    /// Drains the instance and ends it.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        running.stop.cancel();
        let result = running.ended.await.unwrap_or(Ok(()));
        dispose(running.runtime).await;
        result
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.runtime.shutdown_background();
        }
    }
}

/// A runtime may not be dropped where blocking is forbidden.
async fn dispose(runtime: Runtime) {
    let shut = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(REBIND));
    if let Err(error) = shut.await {
        tracing::warn!(%error, "an instance did not shut down");
    }
}
