//! Servers in containers.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::{Duration, Instant},
};

use testcontainers::{
    ContainerAsync, GenericImage, ImageExt,
    core::{IntoContainerPort, WaitFor},
    runners::AsyncRunner,
};
use tokio::runtime::Runtime;

use super::ServerError;
use crate::faults::program::pause;

/// A server in a container: its port there, its URL, and how it is known to be ready.
struct Service {
    port: u16,
    url: fn(String, u16) -> String,
    is_ready: fn(SocketAddr) -> bool,
}

/// A container, and the runtime without which it can neither run nor be removed.
pub(super) struct Container {
    runtime: Runtime,
    container: Option<ContainerAsync<GenericImage>>,
    service: Service,
    url: String,
}

impl Container {
    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Stops it and starts it again, with its files; it may have another port then.
    pub(super) fn restart(&mut self) -> Result<(), ServerError> {
        let Some(container) = &self.container else {
            return Err(ServerError::new("the container is gone"));
        };
        let again = async {
            container.stop().await.map_err(ServerError::new)?;
            container.start().await.map_err(ServerError::new)?;
            address(container, self.service.port).await
        };
        let (host, port) = self.runtime.block_on(again)?;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let addrs = (host.as_str(), port).to_socket_addrs();
            let mut addrs = addrs.map_err(ServerError::new)?;
            if addrs.any(self.service.is_ready) {
                self.url = (self.service.url)(host, port);
                return Ok(());
            }
            if Instant::now() > until {
                return Err(ServerError::new("a container did not become ready again"));
            }
            pause(Duration::from_millis(20));
        }
    }
}

/// Where the port of a container is reached.
async fn address(
    container: &ContainerAsync<GenericImage>,
    port: u16,
) -> Result<(String, u16), ServerError> {
    let host = container.get_host().await.map_err(ServerError::new)?;
    let port = container.get_host_port_ipv4(port).await;
    Ok((host.to_string(), port.map_err(ServerError::new)?))
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(container) = self.container.take() {
            // Its removal is a task of the runtime, which must be current.
            let _ = self.runtime.block_on(container.rm());
        }
    }
}

/// `None` where there is no Docker.
pub(super) fn redis() -> Option<Result<Container, ServerError>> {
    let image = GenericImage::new("redis", "7.4.5-alpine")
        .with_exposed_port(6379.tcp())
        .with_wait_for(WaitFor::message_on_stdout("Ready to accept connections"));
    let command = ["redis-server", "--save", ""]
        .into_iter()
        .chain(super::redis::LOG);
    let start = || image.with_cmd(command).start();
    let service = Service {
        port: 6379,
        url: |host, port| format!("redis://{host}:{port}"),
        is_ready: super::redis::is_ready,
    };
    run(service, start)
}

/// `None` where there is no Docker.
pub(super) fn postgres() -> Option<Result<Container, ServerError>> {
    // It says so twice: its own preparation is a server, too.
    let ready = "database system is ready to accept connections";
    let image = GenericImage::new("postgres", "17.5-alpine")
        .with_exposed_port(5432.tcp())
        .with_wait_for(WaitFor::message_on_stdout(ready))
        .with_wait_for(WaitFor::message_on_stderr(ready));
    let start = || {
        image
            .with_env_var("POSTGRES_HOST_AUTH_METHOD", "trust")
            .with_cmd(["-c", "fsync=off", "-c", "max_connections=300"])
            .start()
    };
    let service = Service {
        port: 5432,
        url: |host, port| format!("postgres://postgres@{host}:{port}/postgres"),
        is_ready: super::postgres::is_ready,
    };
    run(service, start)
}

/// Whether there is a Docker engine.
pub(super) fn is_reachable() -> bool {
    // The socket's file outlives an engine that was killed.
    std::env::var_os("DOCKER_HOST").is_some()
        || std::os::unix::net::UnixStream::connect("/var/run/docker.sock").is_ok()
}

fn run<F>(service: Service, start: impl FnOnce() -> F) -> Option<Result<Container, ServerError>>
where
    F: Future<Output = testcontainers::core::error::Result<ContainerAsync<GenericImage>>>,
{
    if !is_reachable() {
        return None;
    }
    let build = || {
        let runtime = Runtime::new().map_err(ServerError::new)?;
        let started = async {
            let container = start().await.map_err(ServerError::new)?;
            let (host, port) = address(&container, service.port).await?;
            Ok::<_, ServerError>((container, (service.url)(host, port)))
        };
        let (container, url) = runtime.block_on(started)?;
        Ok(Container {
            runtime,
            container: Some(container),
            service,
            url,
        })
    };
    Some(build())
}
