//! A server from its start to its end: small events go out at once, a load
//! balancer can ask for its readiness, and its shutdown refuses nobody and takes
//! no longer than it is told to.
//!
//!     cargo run -p mcp-adapter-transport --example serve

use std::{future::Future, io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    http::StatusCode,
    routing::get,
    serve::{Listener, ListenerExt},
};
use mcp_adapter_core::{Adapter, Limits};
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::{Readiness, StreamableHttpTransport};
use rmcp::ServerHandler;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
struct MyServer;

impl ServerHandler for MyServer {}

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:8000").await?;
    let adapter = MemoryAdapter::new(Limits::default());
    serve(listener, adapter, Timing::default(), stop_signal()).await;
    Ok(())
}

/// How long the steps of a shutdown may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Until the load balancer has seen that this instance is not ready.
    pub notice: Duration,
    /// Until who has connected by then has sent a request.
    pub settle: Duration,
    /// Until calls have ended; then they are ended with an error.
    pub calls: Duration,
    /// Until clients have closed their connections; then they are cut.
    pub linger: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // None behind a proxy that merely skips instances that are gone.
            notice: Duration::from_secs(5),
            settle: Duration::from_millis(500),
            calls: Duration::from_secs(20),
            linger: Duration::from_secs(2),
        }
    }
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    adapter: impl Adapter + Clone,
    timing: Timing,
    stop: impl Future<Output = ()>,
) {
    let transport = StreamableHttpTransport::new().with_adapter(adapter.clone());
    let fleet = transport.fleet();
    let asked = fleet.clone();
    let ready = move || async move {
        match asked.readiness() {
            Readiness::Ready => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    let app = Router::new()
        .nest_service("/mcp", transport.bind(|| Ok(MyServer)))
        .route("/ready", get(ready));

    let (closed, ended) = (CancellationToken::new(), CancellationToken::new());
    let listener = Closing {
        listener: Some(listener),
        closed: closed.clone(),
        last: Vec::new(),
    };
    // Without it an event may wait 40 ms for an acknowledgement of the last one.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    let server = axum::serve(listener, app).with_graceful_shutdown(ended.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());

    stop.await;
    // Not ready: the load balancer sends nobody here. Who comes is served.
    fleet.start_drain();
    tokio::time::sleep(timing.notice).await;
    // Nobody can connect any more. Connections that are open are served.
    closed.cancel();
    tokio::time::sleep(timing.settle).await;
    // Calls end, by themselves or with an error.
    fleet.drain(timing.calls).await;
    // Connections end. Who has sent half a request is not waited for: the rest
    // is cut off when the runtime ends.
    ended.cancel();
    let _ = tokio::time::timeout(timing.linger, server).await;
    // The other instances need not find out that this one is gone.
    if let Err(error) = adapter.close().await {
        eprintln!("the store was not told of the end: {error}");
    }
}

/// A listener that can be closed while its connections go on. The one of axum
/// closes together with them.
struct Closing {
    listener: Option<TcpListener>,
    closed: CancellationToken,
    /// Those who had connected when it closed.
    last: Vec<(TcpStream, SocketAddr)>,
}

impl Listener for Closing {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        if let Some(listener) = &mut self.listener {
            tokio::select! {
                biased;
                accepted = Listener::accept(listener) => return accepted,
                () = self.closed.cancelled() => {}
            }
        }
        if let Some(listener) = self.listener.take() {
            self.last = queued(listener).unwrap_or_default();
        }
        match self.last.pop() {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.listener {
            Some(listener) => listener.local_addr(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Closes a listener, and gives those who have connected to it and were not
/// looked at yet: closing it would reset them.
fn queued(listener: TcpListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let listener = listener.into_std()?;
    let mut queued = Vec::new();
    while let Ok((stream, address)) = listener.accept() {
        stream.set_nonblocking(true)?;
        queued.push((TcpStream::from_std(stream)?, address));
    }
    Ok(queued)
}

async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
