//! Servers in containers.

use testcontainers::{
    ContainerAsync, GenericImage, ImageExt,
    core::{IntoContainerPort, WaitFor},
    runners::AsyncRunner,
};
use tokio::runtime::Runtime;

use super::ServerError;

/// A container, and the runtime without which it can neither run nor be removed.
pub(super) struct Container {
    runtime: Runtime,
    container: Option<ContainerAsync<GenericImage>>,
    url: String,
}

impl Container {
    pub(super) fn url(&self) -> String {
        self.url.clone()
    }
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
    let start = || image.with_cmd(["redis-server", "--save", ""]).start();
    run(6379, start, |host, port| format!("redis://{host}:{port}"))
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
    run(5432, start, |host, port| {
        format!("postgres://postgres@{host}:{port}/postgres")
    })
}

/// Whether there is a Docker engine.
pub(super) fn is_reachable() -> bool {
    // The socket's file outlives an engine that was killed.
    std::env::var_os("DOCKER_HOST").is_some()
        || std::os::unix::net::UnixStream::connect("/var/run/docker.sock").is_ok()
}

fn run<F>(
    port: u16,
    start: impl FnOnce() -> F,
    url: impl FnOnce(String, u16) -> String,
) -> Option<Result<Container, ServerError>>
where
    F: Future<Output = testcontainers::core::error::Result<ContainerAsync<GenericImage>>>,
{
    if !is_reachable() {
        return None;
    }
    let build = || {
        let runtime = Runtime::new().map_err(ServerError::new)?;
        let (container, url) = runtime.block_on(async {
            let container = start().await.map_err(ServerError::new)?;
            let host = container.get_host().await.map_err(ServerError::new)?;
            let port = container.get_host_port_ipv4(port).await;
            let port = port.map_err(ServerError::new)?;
            Ok::<_, ServerError>((container, url(host.to_string(), port)))
        })?;
        Ok(Container {
            runtime,
            container: Some(container),
            url,
        })
    };
    Some(build())
}
