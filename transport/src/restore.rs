//! Brings up a server for a session that began elsewhere.
//!
//! rmcp can do this itself, but hands the outcome of a running restore to every
//! request that waits for it, whoever sent it, and to one more after it has
//! failed. So each restore runs through a service of its own that only this
//! file can reach. What handlers see is the same: `initialize`, replayed with
//! a `SessionRestoreMarker` and the request's `Parts`.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, Stream, stream};
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use parking_lot::Mutex;
use rmcp::{
    ServerHandler,
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage, ServerResult},
    transport::{
        StreamableHttpServerConfig, StreamableHttpService,
        streamable_http_server::{
            RestoreOutcome, SessionId, SessionManager,
            session::{ServerSseMessage, SessionState, SessionStore, SessionStoreError},
        },
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    registry::{Restore, Restorer},
    verdict::Refused,
    worker::{Worker, WorkerTransport},
};

/// The body of the request that makes rmcp restore; it goes nowhere.
const PROBE: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/restore"}"#;

pub(crate) type Factory<S> = Arc<dyn Fn() -> io::Result<S> + Send + Sync>;

/// Restores with servers of `factory`.
pub(crate) fn restorer<S>(factory: Factory<S>, stopped: CancellationToken) -> Restorer
where
    S: ServerHandler + Send + 'static,
{
    Arc::new(move |restore| run(Arc::clone(&factory), stopped.clone(), restore).boxed())
}

async fn run<S>(factory: Factory<S>, stopped: CancellationToken, restore: Restore) -> bool
where
    S: ServerHandler + Send + 'static,
{
    let Restore {
        worker,
        record,
        parts,
    } = restore;
    // As rmcp's own types: what a client sent once, rmcp has understood once.
    let state = serde_json::from_value::<SessionState>(json!({
        "initialize_params": {
            "protocolVersion": record.protocol,
            "capabilities": record.capabilities,
            "clientInfo": record.client,
        },
    }));
    let state = match state {
        Ok(state) => state,
        Err(error) => {
            tracing::error!(%error, "a session record holds no handshake");
            return false;
        }
    };
    let mut config = StreamableHttpServerConfig::default()
        .with_cancellation_token(stopped)
        .disable_allowed_hosts();
    config.session_store = Some(Arc::new(OneRecord(state)));
    let manager = Arc::new(OneWorker {
        transport: Mutex::new(Some(WorkerTransport::new(Arc::clone(&worker)))),
        worker: Arc::clone(&worker),
        up: AtomicBool::new(false),
    });
    let service = StreamableHttpService::new(move || factory(), Arc::clone(&manager), config);

    let session = HeaderValue::from_str(worker.session.as_str());
    let (Ok(session), mut probe) = (session, Request::new(Full::new(Bytes::from_static(PROBE))))
    else {
        return false;
    };
    *probe.method_mut() = Method::POST;
    *probe.uri_mut() = parts.uri;
    *probe.headers_mut() = parts.headers;
    *probe.extensions_mut() = parts.extensions;
    let headers = probe.headers_mut();
    headers.insert("mcp-session-id", session);
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    // What comes back is rmcp's opinion of the probe.
    drop(service.handle(probe).await);
    manager.up.load(Ordering::Acquire)
}

/// A session store of one session.
struct OneRecord(SessionState);

#[async_trait::async_trait]
impl SessionStore for OneRecord {
    async fn load(&self, _: &str) -> Result<Option<SessionState>, SessionStoreError> {
        Ok(Some(self.0.clone()))
    }

    async fn store(&self, _: &str, _: &SessionState) -> Result<(), SessionStoreError> {
        Ok(())
    }

    async fn delete(&self, _: &str) -> Result<(), SessionStoreError> {
        Ok(())
    }
}

/// A session manager of one worker.
struct OneWorker {
    worker: Arc<Worker>,
    transport: Mutex<Option<WorkerTransport>>,
    up: AtomicBool,
}

impl SessionManager for OneWorker {
    type Error = Refused;
    type Transport = WorkerTransport;

    async fn has_session(&self, _: &SessionId) -> Result<bool, Refused> {
        Ok(false)
    }

    async fn restore_session(
        &self,
        _: SessionId,
    ) -> Result<RestoreOutcome<WorkerTransport>, Refused> {
        let transport = self.transport.lock().take();
        transport.map(RestoreOutcome::Restored).ok_or(Refused)
    }

    async fn initialize_session(
        &self,
        _: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Refused> {
        let answer = self.worker.handshake(message).await.ok_or(Refused)?;
        if !is_initialize_result(&answer) {
            return Err(Refused);
        }
        self.up.store(true, Ordering::Release);
        Ok(answer)
    }

    /// The replayed `initialized`: handlers get the client's own, once.
    async fn accept_message(&self, _: &SessionId, _: ClientJsonRpcMessage) -> Result<(), Refused> {
        Ok(())
    }

    async fn close_session(&self, _: &SessionId) -> Result<(), Refused> {
        Ok(())
    }

    async fn create_session(&self) -> Result<(SessionId, WorkerTransport), Refused> {
        Err(Refused)
    }

    async fn create_stream(
        &self,
        _: &SessionId,
        _: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Refused> {
        Err::<stream::Empty<_>, _>(Refused)
    }

    async fn create_standalone_stream(
        &self,
        _: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Refused> {
        Err::<stream::Empty<_>, _>(Refused)
    }

    async fn resume(
        &self,
        _: &SessionId,
        _: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Refused> {
        Err::<stream::Empty<_>, _>(Refused)
    }
}

pub(crate) fn is_initialize_result(message: &ServerJsonRpcMessage) -> bool {
    matches!(
        message,
        ServerJsonRpcMessage::Response(response)
            if matches!(response.result, ServerResult::InitializeResult(_))
    )
}
