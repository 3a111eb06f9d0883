//! Non-sticky reverse proxy that does its worst: no two messages of a session
//! need to reach the same instance.

mod forward;
mod peek;
mod policy;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::forward::Forwarder;
pub(crate) use self::policy::Policy;
use crate::error::Failure;

/// [`serve`] without idle connections.
#[cfg(test)]
pub(crate) async fn serve_each_by_itself(
    listener: std::net::TcpListener,
    policy: Policy,
    upstreams: Vec<SocketAddr>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    serve_with(listener, policy, upstreams, 0, stop).await
}

/// Pause after a failed accept: descriptors may have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Response header with the upstream that served the request.
pub(crate) const INSTANCE_HEADER: &str = "x-fleet-instance";

/// Serves `listener` until `stop`; then drops the connections that are left.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    policy: Policy,
    upstreams: Vec<SocketAddr>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    serve_with(listener, policy, upstreams, usize::MAX, stop).await
}

/// [`serve`], with so many idle connections to each upstream. One that is kept
/// may end the moment that a request is sent down it, which cannot be sent again.
async fn serve_with(
    listener: std::net::TcpListener,
    policy: Policy,
    upstreams: Vec<SocketAddr>,
    idle: usize,
    stop: CancellationToken,
) -> Result<(), Failure> {
    if upstreams.is_empty() {
        return Err(Failure::new("a proxy needs at least one upstream"));
    }
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(Failure::context("cannot use the proxy's socket"))?;
    let forwarder = Arc::new(Forwarder::new(policy, upstreams, idle));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Two small writes, event and end of stream, would wait for a delayed ACK.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection closed at once");
            continue;
        }
        let forwarder = Arc::clone(&forwarder);
        let stop = stop.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let forwarder = Arc::clone(&forwarder);
                async move { forwarder.forward(request).await }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                // A cut connection is what this proxy is for.
                _ = connection => {}
            }
        });
    }
    connections.close();
    connections.wait().await;
    Ok(())
}
