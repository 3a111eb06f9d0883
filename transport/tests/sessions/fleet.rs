//! Instances: ours over one store, or stock rmcp's.

use std::{sync::Arc, time::Duration};

use axum::serve::ListenerExt;
use mcp_adapter_core::{Limits, Principal};
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::{FleetHandle, StreamableHttpTransport};
use rmcp::transport::{
    StreamableHttpServerConfig, StreamableHttpService,
    streamable_http_server::session::local::{LocalSessionManager, SessionConfig},
};
use tokio::net::TcpListener;

use crate::{
    client::{Client, Result},
    fixture::{Fixture, Probe},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stock,
    Ours,
}

/// One instance and what drives it.
pub(crate) struct Instance {
    pub(crate) url: String,
    pub(crate) probe: Arc<Probe>,
    pub(crate) handle: FleetHandle,
    pub(crate) adapter: Option<MemoryAdapter>,
    runtime: Option<tokio::runtime::Runtime>,
    killed: Option<std::sync::mpsc::Sender<()>>,
}

pub(crate) struct Fleet {
    pub(crate) kind: Kind,
    pub(crate) a: Instance,
    pub(crate) b: Instance,
    pub(crate) c: Instance,
}

/// Limits under which death is noticed soon.
pub(crate) fn limits() -> Limits {
    Limits::builder()
        .heartbeat(Duration::from_millis(100))
        .lease(Duration::from_millis(500))
        .catch_up(Duration::from_millis(100))
        .build()
        .unwrap()
}

pub(crate) fn transport() -> StreamableHttpTransport {
    StreamableHttpTransport::new().with_principal(|parts| {
        let user = parts.headers.get("x-user")?;
        Some(Principal::new(user.to_str().ok()?))
    })
}

/// Serves on a port of its own, on this runtime.
pub(crate) async fn serve<S>(service: S) -> String
where
    S: tower_service::Service<
            axum::extract::Request,
            Error = std::convert::Infallible,
            Response: axum::response::IntoResponse,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let router: axum::Router = axum::Router::new().nest_service("/mcp", service);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

impl Instance {
    /// Ours, of `transport`, on this runtime.
    pub(crate) async fn of(name: &'static str, transport: StreamableHttpTransport) -> Self {
        let probe = Probe::new(name);
        let handle = transport.fleet();
        let made = Arc::clone(&probe);
        let fleet = handle.clone();
        let service = transport.bind(move || Ok(Fixture::new(Arc::clone(&made), fleet.clone())));
        Self {
            url: serve(service).await,
            probe,
            handle,
            adapter: None,
            runtime: None,
            killed: None,
        }
    }

    async fn over(name: &'static str, adapter: MemoryAdapter) -> Self {
        let transport = transport().with_adapter(adapter.clone());
        let mut instance = Self::of(name, transport).await;
        instance.adapter = Some(adapter);
        instance
    }

    async fn stock(name: &'static str) -> Self {
        let probe = Probe::new(name);
        let made = Arc::clone(&probe);
        let mut sessions = LocalSessionManager::default();
        sessions.session_config = SessionConfig::default();
        let service = StreamableHttpService::new(
            move || Ok(Fixture::new(Arc::clone(&made), FleetHandle::default())),
            Arc::new(sessions),
            StreamableHttpServerConfig::default(),
        );
        Self {
            url: serve(service).await,
            probe,
            handle: FleetHandle::default(),
            adapter: None,
            runtime: None,
            killed: None,
        }
    }

    /// On a runtime of its own, which can be killed or frozen.
    async fn apart(kind: Kind, name: &'static str, adapter: Option<MemoryAdapter>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let made = runtime.spawn(async move {
            match (kind, adapter) {
                (Kind::Ours, Some(adapter)) => Self::over(name, adapter.instance()).await,
                _ => Self::stock(name).await,
            }
        });
        let mut made = made.await.unwrap();
        made.runtime = Some(runtime);
        made
    }

    /// Ends it as `kill -9` would: nothing is said and nothing is written, not
    /// even by destructors.
    pub(crate) async fn kill(&mut self) {
        self.killed = Some(self.freeze().await);
    }

    /// Stops everything in it until the sender is dropped.
    pub(crate) async fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (thaw, frozen) = std::sync::mpsc::channel::<()>();
        let (stopped, is_stopped) = tokio::sync::oneshot::channel();
        let runtime = self.runtime.as_ref().expect("an instance apart");
        runtime.spawn(async move {
            let _ = stopped.send(());
            // The only thread of the runtime.
            let _ = frozen.recv();
        });
        is_stopped.await.unwrap();
        thaw
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fleet {
    /// Three instances over one store.
    pub(crate) async fn start(kind: Kind) -> Self {
        let adapter = MemoryAdapter::new(limits());
        let make = async |name| match kind {
            Kind::Stock => Instance::stock(name).await,
            Kind::Ours => Instance::over(name, adapter.instance()).await,
        };
        Self {
            kind,
            a: make("a").await,
            b: make("b").await,
            c: make("c").await,
        }
    }

    /// The same, A on a runtime of its own.
    pub(crate) async fn with_a_apart(kind: Kind) -> Self {
        let adapter = MemoryAdapter::new(limits());
        let a = Instance::apart(kind, "a", Some(adapter.clone())).await;
        let make = async |name| match kind {
            Kind::Stock => Instance::stock(name).await,
            Kind::Ours => Instance::over(name, adapter.instance()).await,
        };
        Self {
            kind,
            a,
            b: make("b").await,
            c: make("c").await,
        }
    }

    /// How long to wait for what should happen. Stock rmcp is known to hang;
    /// ours is given all the time that a loaded machine may take.
    pub(crate) fn patience(&self) -> Duration {
        match self.kind {
            Kind::Stock => Duration::from_secs(3),
            Kind::Ours => Duration::from_secs(20),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.patience())
    }

    /// A client with a session that was initialized at A.
    pub(crate) async fn session(&self) -> Result<Client> {
        let mut client = self.client();
        client.initialize(&self.a.url).await?;
        Ok(client)
    }
}
