//! Client requests: what handlers here ask their clients.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use mcp_adapter_core::{
    ClientRequestAdapter, ErrorKind, NewClientRequest, Outcome, OutcomeKind, PendingRequest, RpcId,
    SessionRecord,
};
use rmcp::{
    model::{
        CancelledNotificationParam, GetExtensions, GetMeta, JsonRpcRequest, NumberOrString,
        ProgressNotificationParam, ProgressToken, RequestId, ServerJsonRpcMessage, ServerRequest,
    },
    service::OriginatingRequestId,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Call, SendError, Worker};
use crate::message;

/// How often a session's copy in the store of requests is used, so that it
/// does not expire before they do; well below any sensible idle limit.
const MIRROR_RENEWAL: Duration = Duration::from_secs(15);

/// A client request that has not ended.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its id on the wire, unique in the fleet.
    wire_id: Arc<str>,
    /// rmcp's progress token of it.
    token: Option<ProgressToken>,
    call: Option<Arc<Call>>,
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
        // rmcp's ids begin at 0 in every worker, so two instances would ask
        // under one id, and answers would be swapped.
        let wire_id: Arc<str> = {
            let mut state = self.state.lock();
            self.mint(&mut state)
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
            let stored = match &call {
                Some(call) => call.writer.append(event).await,
                None => {
                    worker
                        .backends
                        .sessions
                        .append(&worker.session, event)
                        .await
                }
            };
            stored.map_err(|error| {
                tracing::debug!(%error, "a client request was not sent");
                SendError::from(&error)
            })?;
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

    /// The asking call has ended, and so do its requests (clause C4).
    pub(super) fn withdraw(self: &Arc<Self>, call: &Call) {
        let withdrawn: Vec<RequestId> = {
            let state = self.state.lock();
            let of_call = |asked: &Asked| {
                asked
                    .call
                    .as_ref()
                    .is_some_and(|asking| std::ptr::eq(&raw const **asking, call))
            };
            state
                .asked
                .iter()
                .filter(|(_, asked)| of_call(asked))
                .map(|(id, _)| id.clone())
                .collect()
        };
        if withdrawn.is_empty() {
            return;
        }
        if let (Some(requests), Ok(runtime)) = (
            self.backends.requests.clone(),
            tokio::runtime::Handle::try_current(),
        ) {
            let (worker, stream) = (Arc::clone(self), call.writer.stream().clone());
            runtime.spawn(async move {
                if let Err(error) = requests.withdraw(&worker.session, &stream).await {
                    tracing::warn!(%error, "client requests were not withdrawn");
                }
            });
        }
        let mut state = self.state.lock();
        for id in withdrawn {
            if state.asked.remove(&id).is_some() {
                let outcome = Outcome {
                    kind: OutcomeKind::Cancelled,
                    payload: bytes::Bytes::new(),
                };
                self.push(&mut state, message::answer(id, &outcome));
            }
        }
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

    /// Fails what still waits for a client, since this instance ends.
    pub(crate) fn fail_asks(self: &Arc<Self>) {
        let asked = std::mem::take(&mut self.state.lock().asked);
        let mut state = self.state.lock();
        for id in asked.into_keys() {
            self.push(&mut state, message::shutting_down(id));
        }
    }

    /// A handler gives up a request of its own: its client is told, and its
    /// answer is not waited for.
    pub(super) fn give_up(
        self: &Arc<Self>,
        params: &mut CancelledNotificationParam,
    ) -> Option<(Option<Arc<Call>>, BoxFuture<'static, ()>)> {
        let id = params.request_id.as_ref()?;
        let asked = self.state.lock().asked.remove(id)?;
        params.request_id = Some(NumberOrString::String(Arc::clone(&asked.wire_id)));
        let (worker, requests) = (Arc::clone(self), self.backends.requests.clone());
        let call = asked.call.clone();
        let withdraw = async move {
            let id = RpcId::String(Arc::clone(&asked.wire_id));
            if let Some(requests) = requests
                && let Err(error) = requests.cancel(&worker.session, &id).await
            {
                tracing::warn!(%error, "a client request was not withdrawn");
            }
            drop(asked);
        };
        Some((call, withdraw.boxed()))
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
            metrics::counter!("mcp_transport_client_requests_total",
                "outcome" => outcome_name(outcome.kind))
            .increment(1);
            let mut state = worker.state.lock();
            if let Some(asked) = state.asked.remove(&id) {
                worker.push(&mut state, message::answer(id, &outcome));
                drop(state);
                // This task's own handle is in it.
                drop(asked);
            }
        });
        asked.wait = Some(AbortOnDropHandle::new(wait));
        Ok(())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.asked {
            self.worker.state.lock().asked.remove(&self.id);
        }
    }
}

struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!("mcp_transport_pending_client_requests").decrement(1);
    }
}

fn outcome_name(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Answered => "answered",
        OutcomeKind::Rejected => "rejected",
        OutcomeKind::TimedOut => "timed_out",
        OutcomeKind::Cancelled => "cancelled",
        OutcomeKind::SessionEnded => "session_ended",
        OutcomeKind::OwnerLost => "owner_lost",
        OutcomeKind::Replaced => "replaced",
        OutcomeKind::Lost => "lost",
    }
}
