//! An instance that is a service of this process, on a runtime of its own.

use std::net::TcpListener;

use tokio::{runtime::Runtime, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::{Fleet, REBIND, serve};
use crate::{
    backend::{Mounted, Store},
    error::Failure,
    server::Instance,
};

const WORKERS: usize = 2;

#[derive(Debug)]
pub(super) struct Service {
    /// Taken by whoever ends it.
    runtime: Option<Runtime>,
    mounted: Mounted,
    stop: CancellationToken,
    ended: oneshot::Receiver<Result<(), Failure>>,
}

impl Service {
    pub(super) async fn start(
        name: &str,
        listener: TcpListener,
        store: &Store,
        fleet: &Fleet,
    ) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name(name)
            .enable_all()
            .build()
            .map_err(Failure::context("cannot start a runtime"))?;
        let (ready, is_ready) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let stop = CancellationToken::new();
        let mounted = {
            // What the adapter does beside requests has to die with the runtime.
            let _inside = runtime.enter();
            store.mount(Instance::new(name, &fleet.key), fleet.ttl)
        };
        let (served, token) = (mounted.clone(), stop.clone());
        runtime.spawn(async move {
            let ready = move || {
                // Whoever started this instance may be gone.
                let _ = ready.send(());
            };
            let result = serve(listener, served, token, ready).await;
            let _ = end.send(result);
        });
        let mut service = Self {
            runtime: Some(runtime),
            mounted,
            stop,
            ended,
        };
        if is_ready.await.is_err() {
            let why = match service.ended.try_recv() {
                Ok(Err(failure)) => failure,
                _ => Failure::new("it ended at once"),
            };
            service.dispose().await;
            return Err(Failure::new(format!("cannot start {name}: {why}")));
        }
        Ok(service)
    }

    /// Drops its tasks and sockets.
    pub(super) async fn kill(mut self) {
        self.mounted.kill();
        self.dispose().await;
    }

    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.stop.cancel();
        let result = (&mut self.ended).await.unwrap_or(Ok(()));
        self.dispose().await;
        result
    }

    /// A runtime may not be dropped where blocking is forbidden.
    async fn dispose(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        let shut = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(REBIND));
        if let Err(error) = shut.await {
            tracing::warn!(%error, "an instance did not shut down");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
