//! Where instances keep what they share: the only place that knows the transport
//! and its adapters.

use std::{sync::Arc, time::Duration};

use clap::ValueEnum;
use mcp_adapter_core::{EngineAdapter, Limits};
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::{FleetHandle, Session, StreamableHttpTransport};
use rmcp::{RoleServer, service::RequestContext};
use serde_json::{Value, json};

use crate::{
    error::Failure,
    server::{ExampleServer, Instance},
};

/// Path of the MCP endpoint.
const ENDPOINT: &str = "/mcp";
/// Notes kept in the state of a session, which must stay small.
const MAX_NOTES: usize = 32;

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The memory of one process
    Memory,
}

impl Backend {
    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
        }
    }
}

/// An open store; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Memory(MemoryAdapter),
}

/// How long an instance may be silent before the others take it for dead. A
/// shorter lease than the default shows within seconds what a kill does.
const LEASE: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_millis(500);

/// An instance that can be served.
#[derive(Debug, Clone)]
pub(crate) struct Mounted {
    pub(crate) router: axum::Router,
    fleet: FleetHandle,
    killing: Killing,
}

/// What a process would take with it when it dies.
#[derive(Debug, Clone)]
enum Killing {
    Memory(MemoryAdapter),
}

impl Store {
    /// Opens the store; `url` says where it is.
    pub(crate) fn open(backend: Backend, url: Option<&str>) -> Result<Self, Failure> {
        match (backend, url) {
            (Backend::Memory, None) => {
                let limits = Limits::builder().lease(LEASE).heartbeat(HEARTBEAT).build();
                let limits = limits.map_err(Failure::context("the limits do not fit"))?;
                Ok(Self::Memory(MemoryAdapter::new(limits)))
            }
            (Backend::Memory, Some(_)) => Err(Failure::new(
                "the memory backend is in this process and has no --url",
            )),
        }
    }

    /// Opens another instance on the store. Its tasks run on the runtime of its
    /// first request and die with it.
    pub(crate) fn mount(&self, instance: Arc<Instance>) -> Mounted {
        let (transport, killing) = match self {
            Self::Memory(adapter) => {
                let adapter = adapter.instance();
                let transport = StreamableHttpTransport::new().with_adapter(adapter.clone());
                (transport, Killing::Memory(adapter))
            }
        };
        let fleet = transport.fleet();
        let service = transport.bind(move || Ok(ExampleServer::new(Arc::clone(&instance))));
        Mounted {
            router: axum::Router::new().nest_service(ENDPOINT, service),
            fleet,
            killing,
        }
    }
}

impl Mounted {
    /// Leaves everything as it is: what dropping it does from now on reaches no
    /// store, as if its process had died.
    pub(crate) fn kill(&self) {
        match &self.killing {
            Killing::Memory(adapter) => adapter.engine().kill(),
        }
    }

    /// Ends the instance's work: calls may run on until the deadline.
    pub(crate) async fn drain(&self, deadline: Duration) {
        let drained = self.fleet.drain(deadline).await;
        tracing::info!(aborted = drained.aborted, "drained");
    }
}

/// Closes the response that a request's stream is read through; the client comes
/// back after `retry`. Requests without a session have no stream to come back to.
pub(crate) fn close_stream(context: &RequestContext<RoleServer>, retry: Duration) -> bool {
    context
        .extensions
        .get::<Session>()
        .is_some_and(|session| session.close_stream(Some(retry)))
}

/// Writes a note into the shared state of the request's session, where every
/// instance finds it. The oldest notes go first.
pub(crate) async fn note(context: &RequestContext<RoleServer>, tag: &str, text: &str) {
    let Some(session) = context.extensions.get::<Session>() else {
        return;
    };
    loop {
        let written = async {
            let seen = session.state().await?;
            let mut notes = seen.as_array().cloned().unwrap_or_default();
            notes.push(json!([tag, text]));
            let surplus = notes.len().saturating_sub(MAX_NOTES);
            notes.drain(..surplus);
            session.compare_and_set(&seen, Value::Array(notes)).await
        };
        match written.await {
            Ok(true) => return,
            // Another call of the session was faster.
            Ok(false) => {}
            Err(error) => return tracing::debug!(%error, "no note was left"),
        }
    }
}

/// The note with this tag, whichever instance left it.
pub(crate) async fn noted(context: &RequestContext<RoleServer>, tag: &str) -> Option<String> {
    let state = context.extensions.get::<Session>()?.state().await.ok()?;
    let note = state.as_array()?.iter().rfind(|note| note[0] == tag)?;
    note[1].as_str().map(Into::into)
}
