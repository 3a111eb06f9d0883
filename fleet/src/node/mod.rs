//! One instance of the example server: a process where the backend allows it,
//! a service of this one where not.

mod process;
mod service;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::serve::ListenerExt;
use tokio_util::sync::CancellationToken;

pub(crate) use self::process::{exit_with_parent, read_key};
use self::{process::Process, service::Service};
use crate::{
    backend::{Mounted, Place, Store},
    error::Failure,
    net,
    server::StateKey,
};

/// How long calls may run on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long connections may stay open after that.
const LINGER: Duration = Duration::from_secs(2);
/// What who has connected gets to send a request, once nobody can connect.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a killed instance's port may take to be free again.
const REBIND: Duration = Duration::from_secs(10);
const REBIND_PAUSE: Duration = Duration::from_millis(20);
/// Ports that are tried for a new instance: another program may take one
/// between the choice and the start.
const PORTS: usize = 5;

/// Serves MCP on `listener` until `stop`, then drains. Nobody is refused: this
/// instance serves as long as anybody can reach it, and those that cannot any
/// more go to another one.
pub(crate) async fn serve(
    listener: TcpListener,
    mounted: Mounted,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(Failure::context("cannot use the server's socket"))?;
    let closed = CancellationToken::new();
    let listener = net::Closing::new(listener, closed.clone()).tap_io(|stream| {
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
    let ended = tokio::select! {
        ended = &mut server => ended,
        () = async {
            stop.cancelled().await;
            mounted.start_drain();
            closed.cancel();
            tokio::time::sleep(SETTLE).await;
            mounted.drain(DRAIN).await;
            drained.cancel();
        } => {
            // Connections that no client closes, and requests that were sent by
            // halves, must not keep the process.
            tokio::time::timeout(LINGER, server).await.unwrap_or(Ok(()))
        }
    };
    mounted.close().await;
    ended.map_err(failed)
}

/// What all instances of a fleet have in common.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) place: Place,
    /// What services of this process share; processes open the place themselves.
    pub(crate) store: Option<Store>,
    pub(crate) key: StateKey,
    /// After how long idle sessions expire, if not after the adapter's default.
    pub(crate) ttl: Option<Duration>,
}

/// An instance that can be killed and started again on its port.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    addr: SocketAddr,
    fleet: Arc<Fleet>,
    running: Option<Running>,
}

#[derive(Debug)]
enum Running {
    Service(Service),
    Process(Process),
}

/// Why an instance did not start.
#[derive(Debug)]
enum NotStarted {
    /// Somebody else has the port.
    PortInUse(Failure),
    Failed(Failure),
}

impl From<NotStarted> for Failure {
    fn from(why: NotStarted) -> Self {
        match why {
            NotStarted::PortInUse(failure) | NotStarted::Failed(failure) => failure,
        }
    }
}

impl Node {
    /// Starts an instance on a free port.
    pub(crate) async fn start(
        name: String,
        fleet: Arc<Fleet>,
        rng: &mut fastrand::Rng,
    ) -> Result<Self, Failure> {
        let mut tried = 1;
        loop {
            let listener = net::listen_for_instance(rng)?;
            let addr = listener
                .local_addr()
                .map_err(Failure::context("cannot tell the instance's port"))?;
            match run(&name, addr, &fleet, Some(listener)).await {
                Err(NotStarted::PortInUse(_)) if tried < PORTS => tried += 1,
                Err(why) => return Err(why.into()),
                Ok(running) => {
                    return Ok(Self {
                        name,
                        addr,
                        fleet,
                        running: Some(running),
                    });
                }
            }
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process that it runs in.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self.running.as_ref()? {
            Running::Service(_) => Some(std::process::id()),
            Running::Process(process) => process.pid(),
        }
    }

    /// Ends the instance at once, a process by SIGKILL: nothing is drained, and
    /// what destructors say reaches no store.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        match self.running.take() {
            Some(Running::Service(service)) => {
                service.kill().await;
                Ok(())
            }
            Some(Running::Process(process)) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Starts a fresh instance in the same place on the same port.
    pub(crate) async fn restart(&mut self) -> Result<(), Failure> {
        let begun = tokio::time::Instant::now();
        loop {
            match run(&self.name, self.addr, &self.fleet, None).await {
                Ok(running) => {
                    self.running = Some(running);
                    return Ok(());
                }
                Err(NotStarted::PortInUse(_)) if begun.elapsed() < REBIND => {
                    tokio::time::sleep(REBIND_PAUSE).await;
                }
                Err(why) => return Err(why.into()),
            }
        }
    }

    /// Drains the instance, a process by SIGTERM, and ends it; it can be restarted.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        match self.running.take() {
            Some(Running::Service(service)) => service.stop().await,
            Some(Running::Process(process)) => process.stop().await,
            None => Ok(()),
        }
    }
}

async fn run(
    name: &str,
    addr: SocketAddr,
    fleet: &Fleet,
    listener: Option<TcpListener>,
) -> Result<Running, NotStarted> {
    let Some(store) = &fleet.store else {
        // The process binds the port itself.
        drop(listener);
        let process = Process::start(name, addr, fleet).await?;
        return Ok(Running::Process(process));
    };
    let listener = match listener {
        Some(listener) => listener,
        None => net::bind(addr).map_err(|error| {
            let in_use = error.kind() == io::ErrorKind::AddrInUse;
            let failure = Failure::context(format!("cannot listen on {addr}"))(error);
            if in_use {
                NotStarted::PortInUse(failure)
            } else {
                NotStarted::Failed(failure)
            }
        })?,
    };
    let service = Service::start(name, listener, store, fleet).await;
    service.map(Running::Service).map_err(NotStarted::Failed)
}
