//! Client requests: what handlers here ask their clients.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use mcp_adapter_core::{
    Applied, ClientRequestAdapter, ErrorKind, NewClientRequest, Outcome, OutcomeKind,
    PendingRequest, RpcId, SessionRecord,
};
use rmcp::{
    model::{
        ClientCapabilities, ClientJsonRpcMessage, ErrorData, GetExtensions, GetMeta,
        JsonRpcRequest, NumberOrString, ProgressNotificationParam, ProgressToken, RequestId,
        ServerJsonRpcMessage, ServerRequest,
    },
    service::OriginatingRequestId,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Call, SendError, Worker, capabilities, ending::Void};
use crate::{message, question};

/// How often a session's copy in the store of requests is used, so that it
/// does not expire before they do; well below any sensible idle limit.
const MIRROR_RENEWAL: Duration = Duration::from_secs(15);

/// A client request that has not ended. Whoever takes it off the table ends it,
/// and tells its client where it has not answered.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its id on the wire, unique in the fleet.
    pub(super) wire_id: Arc<str>,
    /// rmcp's progress token of it.
    token: Option<ProgressToken>,
    pub(super) call: Option<Arc<Call>>,
    /// Whether it is on its way to the client, who then has to hear of its end.
    pub(super) shown: bool,
    /// The wait for its outcome, once it is created. Dropping it withdraws it.
    wait: Option<AbortOnDropHandle<()>>,
}

impl Worker {
    /// Sends a handler's request to the client.
    pub(super) fn ask(
        self: &Arc<Self>,
        mut request: JsonRpcRequest<ServerRequest>,
    ) -> BoxFuture<'static, Result<(), SendError>> {
        let Some(requests) = self.backends.requests.clone() else {
            return std::future::ready(Err(SendError::Unsupported)).boxed();
        };
        if let Some(required) = {
            let state = self.state.lock();
            capabilities::missing(&request.request, &state.capabilities)
        } {
            return std::future::ready(self.refuse(request.id, required)).boxed();
        }
        // rmcp's ids begin at 0 in every worker, so two instances would ask
        // under one id, and answers would be swapped.
        let wire_id = {
            let mut state = self.state.lock();
            question::wire_id(&self.session, &self.mint(&mut state))
        };
        let origin = request
            .request
            .extensions()
            .get::<OriginatingRequestId>()
            .cloned();
        let call = match origin {
            None => None,
            Some(OriginatingRequestId(key)) => match self.call(&key) {
                Some(call) => Some(call),
                None => return std::future::ready(Err(SendError::CallEnded)).boxed(),
            },
        };
        let wire = NumberOrString::String(Arc::clone(&wire_id));
        let token = request.request.get_meta().get_progress_token();
        if token.is_some() {
            request
                .request
                .get_meta_mut()
                .set_progress_token(ProgressToken(wire.clone()));
        }
        let id = std::mem::replace(&mut request.id, wire);
        let Some(event) = message::encode(&ServerJsonRpcMessage::Request(request)) else {
            return std::future::ready(Err(SendError::NotStored)).boxed();
        };
        let asked = Asked {
            wire_id: Arc::clone(&wire_id),
            token,
            call: call.clone(),
            shown: false,
            wait: None,
        };
        self.state.lock().asked.insert(id.clone(), asked);

        let mut new = NewClientRequest::new(RpcId::String(wire_id));
        if let Some(timeout) = self.backends.settings.request_timeout {
            new = new.with_timeout(timeout);
        }
        if let Some(call) = &call {
            new = new.with_stream(call.writer.stream().clone());
        }
        let worker = Arc::clone(self);
        async move {
            let asking = Asking {
                worker: Arc::clone(&worker),
                id: id.clone(),
                asked: false,
            };
            // Durable and listened to before the client can know of it (C1).
            let pending = worker.create(&*requests, new).await.map_err(|error| {
                tracing::warn!(%error, "a client request was not created");
                SendError::from(&error)
            })?;
            // Gone meanwhile: dropping `pending` withdraws the request.
            let stored = asking.show(event).ok_or(SendError::CallEnded)?;
            if let Err(error) = stored.await {
                tracing::debug!(%error, "a client request was not sent");
                if error.applied() == Applied::No {
                    asking.never_shown();
                }
                return Err(SendError::from(&error));
            }
            asking.wait(pending)
        }
        .boxed()
    }

    /// Creates a request, in whatever store.
    async fn create(
        &self,
        requests: &dyn ClientRequestAdapter,
        new: NewClientRequest,
    ) -> mcp_adapter_core::Result<PendingRequest> {
        let created = requests.create(&self.session, new.clone()).await;
        match (&self.backends.mirror, created) {
            (Some(mirror), Err(error)) if error.kind() == ErrorKind::SessionNotFound => {
                match mirror.create(&self.session, SessionRecord::default()).await {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                    _ => requests.create(&self.session, new).await,
                }
            }
            (_, created) => created,
        }
    }

    /// Answers a request for which the client has not declared what it needs:
    /// nothing is stored or sent.
    fn refuse(&self, id: RequestId, required: ClientCapabilities) -> Result<(), SendError> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(SendError::CallEnded);
        }
        metrics::counter!("mcp_transport_client_requests_total", "outcome" => "unsupported")
            .increment(1);
        let error = ErrorData::missing_required_client_capability(required);
        self.push(&mut state, ClientJsonRpcMessage::error(error, Some(id)));
        Ok(())
    }

    /// Waits, and keeps the session's copy meanwhile.
    async fn outcome(&self, mut pending: PendingRequest) -> Outcome {
        let Some(mirror) = &self.backends.mirror else {
            return pending.await;
        };
        loop {
            match tokio::time::timeout(MIRROR_RENEWAL, &mut pending).await {
                Ok(outcome) => return outcome,
                Err(_) => {
                    if let Err(error) = mirror.enter(&self.session, None, None).await {
                        tracing::warn!(%error, "the copy of a session was not renewed");
                    }
                }
            }
        }
    }

    /// Maps a client's progress for a request of this worker back to rmcp's
    /// token. `false`: it is for another worker.
    pub(crate) fn map_progress(&self, params: &mut ProgressNotificationParam) -> Mapped {
        if !self.is_ours(&params.progress_token.0) {
            return Mapped::Foreign;
        }
        let NumberOrString::String(wire) = &params.progress_token.0 else {
            return Mapped::Foreign;
        };
        let state = self.state.lock();
        let token = state
            .asked
            .values()
            .find(|asked| asked.wire_id == *wire)
            .and_then(|asked| asked.token.clone());
        match token {
            Some(token) => {
                params.progress_token = token;
                Mapped::Ours
            }
            None => Mapped::Ended,
        }
    }
}

/// Whose progress token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    Ours,
    Foreign,
    /// Ours, of a request that has ended.
    Ended,
}

/// Takes the request off the table if it is not sent after all.
struct Asking {
    worker: Arc<Worker>,
    id: RequestId,
    asked: bool,
}

impl Asking {
    /// Sends it to the client; `None`: it has ended meanwhile. What says that it
    /// is void is queued behind it, hence under the lock.
    fn show(&self, event: Bytes) -> Option<BoxFuture<'static, mcp_adapter_core::Result<()>>> {
        let mut state = self.worker.state.lock();
        let asked = state.asked.get_mut(&self.id)?;
        asked.shown = true;
        Some(self.worker.tell(asked.call.as_deref(), event))
    }

    fn never_shown(&self) {
        if let Some(asked) = self.worker.state.lock().asked.get_mut(&self.id) {
            asked.shown = false;
        }
    }

    fn wait(mut self, pending: PendingRequest) -> Result<(), SendError> {
        self.asked = true;
        let (worker, id) = (Arc::clone(&self.worker), self.id.clone());
        let mut state = self.worker.state.lock();
        // Gone meanwhile: the asking call has ended. Dropping `pending` here
        // withdraws the request.
        let asked = state.asked.get_mut(&self.id).ok_or(SendError::CallEnded)?;
        metrics::gauge!("mcp_transport_pending_client_requests").increment(1);
        let waiting = Waiting;
        let wait = tokio::spawn(async move {
            let _waiting = waiting;
            let outcome = worker.outcome(pending).await;
            let (asked, told) = {
                let mut state = worker.state.lock();
                let Some(asked) = state.asked.remove(&id) else {
                    // Whoever took it off the table ends it.
                    return;
                };
                // Before the handler goes on, which may end the call.
                let told = Void::of(outcome.kind, asked.call.is_some())
                    .map(|why| worker.tell_void(&asked, why));
                worker.push(&mut state, message::answer(id, &outcome));
                (asked, told)
            };
            count_outcome(outcome.kind);
            if let Some(told) = told {
                told.await;
            }
            // This task's own handle is in it.
            drop(asked);
        });
        asked.wait = Some(AbortOnDropHandle::new(wait));
        Ok(())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.asked {
            return;
        }
        let asked = self.worker.state.lock().asked.remove(&self.id);
        // It may have been sent all the same.
        if let Some(asked) = asked
            && asked.shown
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.worker.tell_void(&asked, Void::Lost));
        }
    }
}

struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!("mcp_transport_pending_client_requests").decrement(1);
    }
}

pub(super) fn count_outcome(kind: OutcomeKind) {
    metrics::counter!("mcp_transport_client_requests_total", "outcome" => kind.name()).increment(1);
}
