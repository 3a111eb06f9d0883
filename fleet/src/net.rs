//! Listening sockets and the signal to stop.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use axum::serve::Listener;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::error::Failure;

/// Ports for instances: below the range from which operating systems take the
/// ports of outgoing connections. An instance that restarts needs its port back,
/// and a connection to its dead port must not connect to itself.
const INSTANCE_PORTS: std::ops::Range<u16> = 18_000..30_000;
const PORT_ATTEMPTS: usize = 200;
const REACH: Duration = Duration::from_secs(5);

/// How a port in use shows in an error.
pub(crate) const IN_USE: &str = "the port is in use";

/// Binds `addr`; names it in the error.
pub(crate) fn listen(addr: SocketAddr) -> Result<TcpListener, Failure> {
    bind(addr).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(format!("cannot listen on {addr}: {IN_USE}")),
        _ => Failure::new(format!("cannot listen on {addr}: {error}")),
    })
}

/// Binds a free loopback port for an instance.
pub(crate) fn listen_for_instance(rng: &mut fastrand::Rng) -> Result<TcpListener, Failure> {
    for _ in 0..PORT_ATTEMPTS {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, rng.u16(INSTANCE_PORTS)));
        match bind(addr) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(Failure::context(format!("cannot listen on {addr}"))(error)),
        }
    }
    Err(Failure::new(format!(
        "found no free port between {} and {}",
        INSTANCE_PORTS.start, INSTANCE_PORTS.end
    )))
}

/// The standard library sets SO_REUSEADDR, so a port with closed connections that
/// linger can be bound again at once.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A listener that closes when it is told to. Its connections go on: axum's own
/// shutdown would close those at once on which no request has arrived yet.
#[derive(Debug)]
pub(crate) struct Closing {
    listener: Option<tokio::net::TcpListener>,
    closed: CancellationToken,
    /// Those who had connected when it closed.
    last: Vec<(TcpStream, SocketAddr)>,
}

impl Closing {
    pub(crate) fn new(listener: tokio::net::TcpListener, closed: CancellationToken) -> Self {
        Self {
            listener: Some(listener),
            closed,
            last: Vec::new(),
        }
    }
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
fn queued(listener: tokio::net::TcpListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let listener = listener.into_std()?;
    let mut queued = Vec::new();
    while let Ok((stream, addr)) = listener.accept() {
        stream.set_nonblocking(true)?;
        queued.push((TcpStream::from_std(stream)?, addr));
    }
    Ok(queued)
}

/// Checks that there is a server to put load on: a mistyped address is no
/// broken promise.
pub(crate) async fn reach(url: &str) -> Result<(), Failure> {
    let parsed = reqwest::Url::parse(url)
        .map_err(|error| Failure::new(format!("`{url}` is no address: {error}")))?;
    if parsed.scheme() != "http" {
        return Err(Failure::new(format!(
            "`{url}`: only http is spoken here, not {}",
            parsed.scheme()
        )));
    }
    let (Some(host), Some(port)) = (parsed.host_str(), parsed.port_or_known_default()) else {
        return Err(Failure::new(format!("`{url}` names no host")));
    };
    // An IPv6 address comes in brackets, which the resolver does not know.
    let host = host.trim_matches(['[', ']']);
    tokio::time::timeout(REACH, tokio::net::TcpStream::connect((host, port)))
        .await
        .map_err(|_| Failure::new(format!("no answer from {host}:{port}")))?
        .map_err(Failure::context(format!("cannot reach {host}:{port}")))?;
    Ok(())
}

/// Resolves when the process is asked to stop.
pub(crate) async fn stop_signal() -> Result<(), Failure> {
    use tokio::signal;
    let cannot = || Failure::context("cannot wait for signals");
    #[cfg(unix)]
    {
        let mut terminate =
            signal::unix::signal(signal::unix::SignalKind::terminate()).map_err(cannot())?;
        tokio::select! {
            done = signal::ctrl_c() => done.map_err(cannot()),
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    signal::ctrl_c().await.map_err(cannot())
}

/// Each connection costs four descriptors when clients, proxy and instances share
/// a process: raises the soft limit as far as the system allows and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    const WANTED: u64 = 65_536;
    rlimit::increase_nofile_limit(WANTED).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let first = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let addr = first.local_addr().unwrap();
        let error = listen(addr).unwrap_err().to_string();
        assert!(
            error.contains(&addr.to_string()) && error.contains("in use"),
            "{error}"
        );
    }

    #[test]
    fn instances_get_distinct_ports() {
        let mut rng = fastrand::Rng::with_seed(1);
        let first = listen_for_instance(&mut rng).unwrap();
        let second = listen_for_instance(&mut fastrand::Rng::with_seed(1)).unwrap();
        assert_ne!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }
}
