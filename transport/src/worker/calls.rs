//! The client's requests that run here.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::request::Parts;
use mcp_adapter_core::{ErrorKind, Revocation, RpcId, Session as Stored, StreamWriter};
use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, GetExtensions, GetMeta, JsonRpcRequest, NumberOrString,
    ProgressToken, RequestId, ServerJsonRpcMessage,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Change, NotTaken, SendError, Worker, ending::Void};
use crate::{handle::Session, inbound::Spelling, message, sse::Aside};

/// Handlers of one session that may run at once here, those included that
/// ignore their cancellation (P36). The adapter bounds the calls.
const MAX_HANDLERS: usize = 512;

pub(crate) struct Call {
    /// What rmcp and the handler know it by.
    key: Arc<str>,
    /// What the client knows it by; it may be in use more than once (T14).
    wire_id: RequestId,
    /// How the client spells it, if that is not how we do.
    spelling: Option<Spelling>,
    token: Option<ProgressToken>,
    pub(crate) writer: Box<dyn StreamWriter>,
    pub(crate) aside: Arc<Aside>,
    change: Option<(Change, Stored)>,
    done: CancellationToken,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({:?})", self.writer.stream())
    }
}

impl Call {
    pub(crate) fn rpc_id(&self) -> RpcId {
        message::rpc_id(&self.wire_id)
    }

    /// The end of the call, under the id as the client has sent it.
    fn end(&self, response: Bytes) -> Bytes {
        let spelt = self.spelling.as_ref();
        spelt
            .and_then(|spelling| spelling.restore(&response))
            .unwrap_or(response)
    }

    /// An error in place of the handler's response.
    fn error(&self, text: &str) -> Bytes {
        self.end(message::error(&self.rpc_id(), text))
    }

    fn internal_error(&self, text: &str) -> Bytes {
        self.end(message::internal_error(&self.rpc_id(), text))
    }
}

/// Travels with the request and is dropped with the handler's context.
#[derive(Clone)]
struct Running(#[expect(dead_code, reason = "held for its drop")] Arc<RunningGuard>);

struct RunningGuard {
    worker: Arc<Worker>,
    key: Arc<str>,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.worker.handlers.fetch_sub(1, Ordering::AcqRel);
        // rmcp says nothing about a handler that panicked, and its client
        // would wait for ever (T29).
        if std::thread::panicking()
            && let Some(call) = self.worker.take_call(&self.key)
        {
            metrics::counter!("mcp_transport_handler_panics_total").increment(1);
            let error = call.internal_error("Internal error");
            self.worker
                .finish_in_background(call, Some(error), Void::CallEnded);
        }
        self.worker.backends.settled.notify_waiters();
    }
}

/// A request that no worker has taken yet.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) request: JsonRpcRequest<ClientRequest>,
    pub(crate) spelling: Option<Spelling>,
    pub(crate) stored: Stored,
    pub(crate) writer: Box<dyn StreamWriter>,
}

impl Worker {
    /// Gives a request to rmcp, under an id and a progress token of its own.
    pub(crate) fn start(
        self: &Arc<Self>,
        start: Start,
    ) -> Result<Arc<Call>, (NotTaken, Box<Start>)> {
        let refused = |reason, start| Err((reason, Box::new(start)));
        let mut state = self.state.lock();
        if !state.open {
            return refused(NotTaken::Closed, start);
        }
        if self.handlers.load(Ordering::Acquire) >= MAX_HANDLERS {
            return refused(NotTaken::Full, start);
        }
        let Start {
            mut request,
            spelling,
            stored,
            writer,
        } = start;
        let parts = request.request.extensions().get::<Parts>();
        self.sync(&mut state, &stored, parts);

        let key = self.mint(&mut state);
        let id = NumberOrString::String(Arc::clone(&key));
        let wire_id = std::mem::replace(&mut request.id, id.clone());
        let token = request.request.get_meta().get_progress_token();
        if token.is_some() {
            request
                .request
                .get_meta_mut()
                .set_progress_token(ProgressToken(id));
        }
        let change = Change::of(&request.request).map(|change| (change, stored));
        let call = Arc::new(Call {
            key: Arc::clone(&key),
            wire_id,
            spelling,
            token,
            writer,
            aside: Arc::default(),
            change,
            done: CancellationToken::new(),
        });
        self.handlers.fetch_add(1, Ordering::AcqRel);
        let extensions = request.request.extensions_mut();
        extensions.insert(Running(Arc::new(RunningGuard {
            worker: Arc::clone(self),
            key: Arc::clone(&key),
        })));
        extensions.insert(Session::new(Arc::clone(self), Some(&call)));
        state.calls.insert(key, Arc::clone(&call));
        state.used = Instant::now();
        self.push(&mut state, ClientJsonRpcMessage::Request(request));
        drop(state);
        metrics::gauge!("mcp_transport_running_calls").increment(1);
        tokio::spawn(Arc::clone(self).supervise(Arc::clone(&call)));
        Ok(call)
    }

    async fn supervise(self: Arc<Self>, call: Arc<Call>) {
        let revocation = tokio::select! {
            () = call.done.cancelled() => return,
            revocation = call.writer.revoked() => revocation,
        };
        let Some(call) = self.take_call(&call.key) else {
            return;
        };
        tracing::debug!(?revocation, ?call, "call revoked");
        let (metric, reason) = match revocation {
            Revocation::Cancelled => ("cancelled", "cancelled by the client"),
            Revocation::SessionEnded => ("session_ended", "the session has ended"),
            _ => ("fenced", "this instance was taken for dead"),
        };
        metrics::counter!("mcp_transport_revocations_total", "reason" => metric).increment(1);
        self.cancel_handler(&call, reason);
        match revocation {
            // rmcp drops the handler's response, so nobody else ends it.
            Revocation::Cancelled => {
                self.finish_in_background(call, None, Void::CallCancelled);
            }
            Revocation::SessionEnded => {
                self.withdraw_asks_of(&call);
                match self.registry.upgrade() {
                    Some(registry) => registry.session_ended(&self.session),
                    None => self.end_session(),
                }
            }
            // Others have ended the stream; nothing of ours is stored any more.
            _ => self.withdraw_asks_of(&call),
        }
    }

    /// Takes a call out of the table: whoever gets it ends it.
    pub(super) fn take_call(&self, key: &str) -> Option<Arc<Call>> {
        let call = {
            let mut state = self.state.lock();
            state.used = Instant::now();
            state.calls.remove(key)?
        };
        call.done.cancel();
        metrics::gauge!("mcp_transport_running_calls").decrement(1);
        self.backends.settled.notify_waiters();
        Some(call)
    }

    fn cancel_handler(&self, call: &Call, reason: &str) {
        if let Some(message) = message::cancelled(&call.key, reason) {
            let mut state = self.state.lock();
            self.push(&mut state, message);
        }
    }

    /// For a call whose stream takes nothing of ours any more.
    fn withdraw_asks_of(self: &Arc<Self>, call: &Call) {
        if let Some(ends) = self.end_asks_of(call, Void::Untold)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(ends);
        }
    }

    /// Ends every call with an error.
    pub(crate) fn fail_calls(self: &Arc<Self>, text: &str) -> usize {
        let keys: Vec<_> = self.state.lock().calls.keys().cloned().collect();
        keys.iter()
            .filter_map(|key| self.take_call(key))
            .inspect(|call| {
                self.cancel_handler(call, text);
                self.fail(call, text);
            })
            .count()
    }

    /// Stops all handlers, whose session is over, and closes. Their streams
    /// ended together with the session.
    pub(crate) fn end_session(self: &Arc<Self>) {
        let keys: Vec<_> = self.state.lock().calls.keys().cloned().collect();
        for call in keys.iter().filter_map(|key| self.take_call(key)) {
            // Before the close: rmcp gives handlers that are not cancelled
            // five seconds.
            self.cancel_handler(&call, "the session has ended");
            self.withdraw_asks_of(&call);
        }
        self.close();
    }

    fn fail(self: &Arc<Self>, call: &Arc<Call>, text: &str) {
        let error = call.error(text);
        self.finish_in_background(Arc::clone(call), Some(error), Void::CallEnded);
    }

    fn finish_in_background(self: &Arc<Self>, call: Arc<Call>, event: Option<Bytes>, why: Void) {
        // A worker that ends together with its runtime cannot write any more;
        // others will find its calls without an owner (clause F3).
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let settling = Settling::new(self);
        match self.end_asks_of(&call, why) {
            None => drop(runtime.spawn(settling.finish(call, event))),
            Some(ends) => drop(runtime.spawn(async move {
                ends.await;
                settling.finish(call, event).await;
            })),
        }
    }

    /// Ends a call with the handler's response.
    pub(super) fn finish(
        self: &Arc<Self>,
        call: Arc<Call>,
        mut response: ServerJsonRpcMessage,
    ) -> BoxFuture<'static, Result<(), SendError>> {
        let settling = Settling::new(self);
        let ends = self.end_asks_of(&call, Void::CallEnded);
        let succeeded = match &mut response {
            ServerJsonRpcMessage::Response(response) => {
                response.id = call.wire_id.clone();
                true
            }
            ServerJsonRpcMessage::Error(error) => {
                error.id = Some(call.wire_id.clone());
                false
            }
            _ => return std::future::ready(Ok(())).boxed(),
        };
        let event = message::encode(&response).map_or_else(
            || call.internal_error("Internal error"),
            |response| call.end(response),
        );
        let change = call.change.clone().filter(|_| succeeded);
        if ends.is_none() && change.is_none() {
            // Its place in the stream is taken here, after all that the handler
            // said before.
            return settling.finish(call, Some(event)).map(Ok).boxed();
        }
        let worker = Arc::clone(self);
        async move {
            if let Some(ends) = ends {
                ends.await;
            }
            let stored = match change {
                // Before the client is told, so that every later request sees it.
                Some((change, stored)) => worker.store_change(change, stored).await,
                None => Ok(()),
            };
            let event = match stored {
                Ok(()) => event,
                Err(text) => call.internal_error(text),
            };
            settling.finish(call, Some(event)).await;
            Ok(())
        }
        .boxed()
    }

    /// Whether a call runs, or one's response is not stored yet.
    pub(crate) fn is_busy(&self) -> bool {
        !self.state.lock().calls.is_empty() || self.settling.load(Ordering::Acquire) > 0
    }

    pub(super) fn call(&self, key: &RequestId) -> Option<Arc<Call>> {
        let NumberOrString::String(key) = key else {
            return None;
        };
        self.state.lock().calls.get(key).cloned()
    }

    /// Puts a progress notification of a handler on the stream of its call.
    pub(super) fn progress_of(&self, token: &ProgressToken) -> Option<(Arc<Call>, ProgressToken)> {
        let call = self.call(&token.0)?;
        let token = call.token.clone()?;
        Some((call, token))
    }

    /// Whether this is an id that this worker has minted.
    pub(super) fn is_ours(&self, id: &RequestId) -> bool {
        matches!(id, NumberOrString::String(id)
            if id.strip_prefix(&*self.nonce).is_some_and(|rest| rest.starts_with('-')))
    }
}

/// Something that a client has to hear is being stored.
pub(super) struct Settling(Arc<Worker>);

impl Settling {
    pub(super) fn new(worker: &Arc<Worker>) -> Self {
        worker.settling.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(worker))
    }

    /// Ends the call's stream, and sees to it that its client hears of the end
    /// (T29). The end's place in the stream is taken when this returns.
    fn finish(
        self,
        call: Arc<Call>,
        event: Option<Bytes>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let first = call.writer.finish(event.clone());
        async move {
            let _settling = self;
            // During an outage the adapter keeps trying, and hands the response
            // to the attached socket meanwhile (clause F1).
            let Err(error) = first.await else { return };
            metrics::counter!("mcp_transport_unstored_responses_total").increment(1);
            match error.kind() {
                // The session is gone, somebody else has ended the call, or this
                // instance is no longer one: its client finds out elsewhere.
                ErrorKind::SessionNotFound
                | ErrorKind::Finished
                | ErrorKind::Fenced
                | ErrorKind::Closed => {
                    tracing::debug!(%error, ?call, "a response came too late");
                }
                ErrorKind::TooLarge
                | ErrorKind::Overloaded
                | ErrorKind::QuotaExceeded
                | ErrorKind::InvalidArgument => {
                    tracing::warn!(%error, ?call, "a response cannot be stored");
                    let text = if error.kind() == ErrorKind::TooLarge {
                        "the response is larger than this server allows"
                    } else {
                        "overloaded, try again later"
                    };
                    let small = call.error(text);
                    if let Err(error) = call.writer.finish(Some(small.clone())).await {
                        tracing::warn!(%error, ?call, "a call's stream cannot be ended");
                        call.aside.respond(small);
                    }
                }
                _ => {
                    tracing::warn!(%error, ?call, "a response was not stored");
                    if let Some(event) = event {
                        call.aside.respond(event);
                    }
                }
            }
        }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.settling.fetch_sub(1, Ordering::AcqRel);
        self.0.backends.settled.notify_waiters();
    }
}
