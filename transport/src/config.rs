//! What the parts of one transport share.

use std::{fmt, sync::Arc, time::Duration};

use http::request::Parts;
use mcp_adapter_core::{ClientRequestAdapter, Principal, SessionAdapter, SignalAdapter};
use tokio::sync::Notify;

use crate::{lifecycle::Lifecycle, signals::Signals};

/// How a request shows its principal.
pub(crate) type PrincipalOf = Arc<dyn Fn(&Parts) -> Option<Principal> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Settings {
    /// `None`: rmcp's default, loopback only. Empty: any.
    pub(crate) allowed_hosts: Option<Vec<String>>,
    pub(crate) allowed_origins: Option<Vec<String>>,
    pub(crate) body_bytes: usize,
    pub(crate) sessions_only: bool,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) retry: Option<Duration>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) worker_idle: Duration,
    pub(crate) principal: Option<PrincipalOf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allowed_hosts: None,
            allowed_origins: None,
            body_bytes: 4 << 20,
            sessions_only: false,
            keep_alive: Some(Duration::from_secs(15)),
            retry: Some(Duration::from_secs(1)),
            request_timeout: None,
            worker_idle: Duration::from_secs(300),
            principal: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("allowed_hosts", &self.allowed_hosts)
            .field("allowed_origins", &self.allowed_origins)
            .field("body_bytes", &self.body_bytes)
            .field("sessions_only", &self.sessions_only)
            .field("keep_alive", &self.keep_alive)
            .field("retry", &self.retry)
            .field("request_timeout", &self.request_timeout)
            .field("worker_idle", &self.worker_idle)
            .field("principal", &self.principal.is_some())
            .finish()
    }
}

/// The roles, as they were given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roles {
    pub(crate) sessions: Option<Arc<dyn SessionAdapter>>,
    pub(crate) requests: Option<Arc<dyn ClientRequestAdapter>>,
    /// The sessions of the requests' store, where it is one of its own.
    pub(crate) mirror: Option<Arc<dyn SessionAdapter>>,
    pub(crate) signals: Option<Arc<dyn SignalAdapter>>,
}

/// What workers need of the outside.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) sessions: Arc<dyn SessionAdapter>,
    pub(crate) requests: Option<Arc<dyn ClientRequestAdapter>>,
    /// Where requests are stored apart: a store takes requests of sessions
    /// that it knows, so those that ask have an empty copy there.
    pub(crate) mirror: Option<Arc<dyn SessionAdapter>>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) settings: Settings,
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// Notified whenever a call, a handler or a worker has ended.
    pub(crate) settled: Notify,
}
