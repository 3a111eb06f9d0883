//! The builder.

use std::{io, sync::Arc, time::Duration};

use http::request::Parts;
use mcp_adapter_core::{Adapter, ClientRequestAdapter, Principal, SessionAdapter, SignalAdapter};
use rmcp::{
    ServerHandler,
    transport::{
        StreamableHttpServerConfig, StreamableHttpService,
        streamable_http_server::session::never::NeverSessionManager,
    },
};
use tokio::sync::Notify;

use crate::{
    bus::Bus,
    config::{Backends, Roles, Settings},
    fleet::{Bound, FleetHandle},
    lifecycle::Lifecycle,
    manager::Manager,
    registry::Registry,
    restore,
    service::{Inner, McpService},
    signals::Signals,
    telemetry,
};

/// MCP's Streamable HTTP over rmcp, in three tiers with the same server code.
///
/// | | |
/// |---|---|
/// | `new()` | stateless: no sessions, no client requests |
/// | `new().with_adapter(MemoryAdapter::new(limits))` | sessions and client requests in one process |
/// | `new().with_adapter(...)` with a shared store | many processes, any of which serves any request |
///
/// ```no_run
/// use axum::serve::ListenerExt;
/// use mcp_adapter_core::Limits;
/// use mcp_adapter_memory::MemoryAdapter;
/// use mcp_adapter_transport::StreamableHttpTransport;
///
/// #[derive(Clone)]
/// struct MyServer;
/// impl rmcp::ServerHandler for MyServer {}
///
/// # async fn example() -> std::io::Result<()> {
/// let adapter = MemoryAdapter::new(Limits::default());
/// let transport = StreamableHttpTransport::new().with_adapter(adapter);
/// let service = transport.bind(|| Ok(MyServer));
///
/// let app = axum::Router::new().nest_service("/mcp", service);
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
/// // Small events must not wait for acknowledgements.
/// let listener = listener.tap_io(|socket| drop(socket.set_nodelay(true)));
/// axum::serve(listener, app).await
/// # }
/// ```
///
/// Clients of 2026-07-28 get no sessions, whatever the tier:
/// [which clients get sessions](crate#which-clients-get-sessions).
#[derive(Debug, Default)]
#[must_use = "a transport serves nothing until it is bound"]
pub struct StreamableHttpTransport {
    roles: Roles,
    settings: Settings,
    fleet: FleetHandle,
}

impl StreamableHttpTransport {
    /// A stateless transport with rmcp's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses one adapter for all roles. One that is chosen at run time is an
    /// `Arc<dyn Adapter>`, which is an adapter as well; so are
    /// `Arc<dyn SessionAdapter>` and the others for the roles apart.
    pub fn with_adapter(self, adapter: impl Adapter) -> Self {
        self.with_shared_adapter(Arc::new(adapter))
    }

    /// [`with_adapter`](Self::with_adapter) without a second `Arc` around the
    /// first.
    pub fn with_shared_adapter(mut self, adapter: Arc<dyn Adapter>) -> Self {
        self.roles = Roles {
            sessions: Some(Arc::clone(&adapter) as _),
            requests: Some(Arc::clone(&adapter) as _),
            mirror: None,
            signals: Some(adapter),
        };
        self
    }

    /// Keeps sessions and their streams in `adapter`. Without one there are no
    /// sessions, whatever else is given.
    pub fn with_session_adapter(mut self, adapter: impl SessionAdapter) -> Self {
        self.roles.sessions = Some(Arc::new(adapter));
        self
    }

    /// Keeps client requests in `adapter`. Without one, elicitation, sampling
    /// and roots fail in the handler that asks.
    ///
    /// As a store of its own it keeps an empty copy of each session that has
    /// asked something, until it expires there. A deleted session's requests
    /// end after the session, not with it; should that fail they live, out of
    /// reach, until their deadlines (clause S4).
    pub fn with_client_request_adapter(
        mut self,
        adapter: impl ClientRequestAdapter + SessionAdapter,
    ) -> Self {
        let adapter = Arc::new(adapter);
        self.roles.requests = Some(Arc::clone(&adapter) as _);
        self.roles.mirror = Some(adapter);
        self
    }

    /// Sends signals through `adapter`. Without one, workers at other instances
    /// do not hear of a client's notifications (`roots/list_changed`, progress
    /// on client requests, `initialized`, custom ones), hear of a new log level
    /// or subscription only with their session's next request, and
    /// [`FleetHandle::broadcast`] reaches this instance's sessions and
    /// listeners only. All else, cancellation and client requests included,
    /// needs no signals.
    ///
    /// A server of 2026-07-28 alone needs no sessions. With a signal adapter
    /// and nothing else, its listeners hear of changes at all instances.
    pub fn with_signal_adapter(mut self, adapter: impl SignalAdapter) -> Self {
        self.roles.signals = Some(Arc::new(adapter));
        self
    }

    /// Serves only the protocol versions that have sessions. Clients that know
    /// newer ones too, and would choose them, initialize a session then; those
    /// that know nothing else are refused with error -32022, which names the
    /// versions. Without a session adapter it changes nothing.
    ///
    /// By default all versions of rmcp are served. See
    /// [which clients get sessions](crate#which-clients-get-sessions).
    pub fn with_sessions_only(mut self) -> Self {
        self.settings.sessions_only = true;
        self
    }

    /// Accepts requests with these `Host`s, with or without port, instead of
    /// loopback's only; an empty list accepts any. Behind a load balancer this
    /// is its name.
    pub fn with_allowed_hosts(
        mut self,
        hosts: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.settings.allowed_hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }

    /// Refuses requests whose `Origin` is not among these; an empty list
    /// refuses every `Origin`. By default there is no such check. What browsers
    /// need besides, before a page may read an answer, is the layer `cors`.
    pub fn with_allowed_origins(
        mut self,
        origins: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.settings.allowed_origins = Some(origins.into_iter().map(Into::into).collect());
        self
    }

    /// The largest body of a request, in bytes; a larger one is refused with
    /// 413. Default 4 MiB.
    pub fn with_body_limit(mut self, bytes: usize) -> Self {
        self.settings.body_bytes = bytes;
        self
    }

    /// How often a comment is sent on a silent stream; `None`: never. Default
    /// 15 seconds.
    pub fn with_sse_keep_alive(mut self, interval: Option<Duration>) -> Self {
        self.settings.keep_alive = interval;
        self
    }

    /// After how long clients are asked to come back when this server closes a
    /// stream on purpose; `None`: as they like. Default 1 second. It is sent
    /// with the end of the stream and not before: readers in use fail at it.
    pub fn with_retry_hint(mut self, retry: Option<Duration>) -> Self {
        self.settings.retry = retry;
        self
    }

    /// The deadline of client requests. By default it is the adapter's
    /// `request_timeout`, which is also the longest possible (clause C4).
    pub fn with_client_request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = Some(timeout);
        self
    }

    /// After how long without work a session's worker, that is your handler
    /// and rmcp's tasks around it, leaves memory. Its session stays, and the
    /// next request makes a new worker. Default 5 minutes.
    pub fn with_worker_idle_timeout(mut self, idle: Duration) -> Self {
        self.settings.worker_idle = idle;
        self
    }

    /// Names the principal of each request, from what your authentication has
    /// left in it. A session belongs to the principal that initialized it; to
    /// all others it does not exist (404). By default all sessions belong to
    /// nobody.
    pub fn with_principal(
        mut self,
        principal: impl Fn(&Parts) -> Option<Principal> + Send + Sync + 'static,
    ) -> Self {
        self.settings.principal = Some(Arc::new(principal));
        self
    }

    /// A handle on the fleet's sessions and on the service that this transport
    /// will be bound to.
    #[must_use]
    pub fn fleet(&self) -> FleetHandle {
        self.fleet.clone()
    }

    /// Makes the service. `server` is called for every worker: once when a
    /// session is initialized, and again at each instance that gets one of its
    /// requests without having a worker.
    ///
    /// What runs beside requests, adapters' tasks too, starts on the runtime that
    /// this is called in; outside of one, with the first request or look at
    /// [`readiness`](FleetHandle::readiness). Metrics are described to the
    /// recorder that is installed by now.
    pub fn bind<S, F>(self, server: F) -> McpService<S>
    where
        S: ServerHandler + Send + 'static,
        F: Fn() -> io::Result<S> + Send + Sync + 'static,
    {
        let Self {
            roles,
            settings,
            fleet,
        } = self;
        let config = config(&settings);
        let factory: restore::Factory<S> = Arc::new(server);
        let make = {
            let factory = Arc::clone(&factory);
            move || factory()
        };
        let shared = Arc::new(settings.clone());
        let stopped = config.cancellation_token.clone();
        let lifecycle = Lifecycle::new(&roles, stopped.clone());
        telemetry::describe();
        lifecycle.start();
        let signals = Arc::new(Signals::new(roles.signals));
        let bus = Bus::new(Arc::clone(&signals), &stopped);
        let Some(sessions) = roles.sessions else {
            if roles.requests.is_some() {
                tracing::warn!("without a session adapter clients cannot be asked");
            }
            fleet.bind(Bound {
                registry: std::sync::Weak::new(),
                bus: Arc::downgrade(&bus),
                lifecycle: Arc::clone(&lifecycle),
            });
            let config = config.with_legacy_session_mode(false);
            let manager = Arc::new(NeverSessionManager::default());
            let service = StreamableHttpService::new(make, manager, config);
            return McpService::new(Inner::Stateless(service), bus, lifecycle, shared);
        };
        let backends = Arc::new(Backends {
            sessions,
            requests: roles.requests,
            mirror: roles.mirror,
            signals,
            settings,
            lifecycle: Arc::clone(&lifecycle),
            settled: Notify::new(),
        });
        let restorer = restore::restorer(factory, stopped.clone());
        let registry = Registry::new(backends, Arc::clone(&bus), restorer, stopped);
        bus.serve_sessions(Arc::downgrade(&registry));
        fleet.bind(Bound {
            registry: Arc::downgrade(&registry),
            bus: Arc::downgrade(&bus),
            lifecycle: Arc::clone(&lifecycle),
        });
        let manager = Arc::new(Manager {
            registry: Arc::clone(&registry),
        });
        let service = StreamableHttpService::new(make, manager, config);
        McpService::new(Inner::Sessions(service, registry), bus, lifecycle, shared)
    }
}

fn config(settings: &Settings) -> StreamableHttpServerConfig {
    let mut config = StreamableHttpServerConfig::default()
        // rmcp primes every stream with the id "0"; we prime with real ids.
        .with_sse_retry(None)
        .with_sse_keep_alive(settings.keep_alive)
        // The body is bounded before rmcp sees it.
        .with_max_request_body_bytes(settings.body_bytes);
    if let Some(hosts) = &settings.allowed_hosts {
        config = config.with_allowed_hosts(hosts.iter().cloned());
    }
    if let Some(origins) = &settings.allowed_origins {
        config = config
            .with_allowed_origins(origins.iter().cloned())
            .enforce_origin_validation();
    }
    config
}
