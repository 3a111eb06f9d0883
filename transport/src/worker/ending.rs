//! The end of client requests that were not answered: their clients are told,
//! once each, for they may show them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{self, BoxFuture},
};
use mcp_adapter_core::{ErrorKind, Outcome, OutcomeKind, Result, RpcId};
use rmcp::model::{CancelledNotification, NumberOrString, RequestId, ServerJsonRpcMessage};

use super::{
    Call, Worker,
    asks::{Asked, count_outcome},
    calls::Settling,
    outbound::begun,
};
use crate::message;

/// What a withdrawal may take before the call of the request ends without it.
const WITHDRAWAL: Duration = Duration::from_secs(2);

/// Why a client request ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Void {
    TimedOut,
    Withdrawn,
    CallEnded,
    CallCancelled,
    ShuttingDown,
    Lost,
    /// Its client is not told by this instance: its session is over, or others
    /// have ended its call and tell it.
    Untold,
}

impl Void {
    fn reason(self) -> Option<&'static str> {
        match self {
            Self::TimedOut => Some("the request timed out"),
            Self::Withdrawn => Some("the request was withdrawn"),
            Self::CallEnded => Some("the call has ended"),
            Self::CallCancelled => Some("the call was cancelled"),
            Self::ShuttingDown => Some("the server is shutting down"),
            Self::Lost => Some("the request was lost"),
            Self::Untold => None,
        }
    }

    /// Why a request is void that has this outcome; `None`: it was answered.
    pub(super) fn of(outcome: OutcomeKind, has_call: bool) -> Option<Self> {
        match outcome {
            OutcomeKind::Answered | OutcomeKind::Rejected => None,
            OutcomeKind::TimedOut => Some(Self::TimedOut),
            OutcomeKind::Cancelled => Some(Self::Withdrawn),
            OutcomeKind::Lost => Some(Self::Lost),
            // Whoever reads the end of the call tells its client of both.
            OutcomeKind::OwnerLost if has_call => Some(Self::Untold),
            OutcomeKind::OwnerLost => Some(Self::Lost),
            OutcomeKind::SessionEnded | OutcomeKind::Replaced => Some(Self::Untold),
        }
    }
}

impl Worker {
    /// Puts a message where its client reads it: on the stream of the call that
    /// it belongs to. Its place in that stream is taken when this returns.
    pub(super) fn tell(
        self: &Arc<Self>,
        call: Option<&Call>,
        event: Bytes,
    ) -> BoxFuture<'static, Result<()>> {
        match call {
            Some(call) => {
                let stored = call.writer.append(event);
                stored.map(|stored| stored.map(drop)).boxed()
            }
            None => self.tell_standalone(event),
        }
    }

    pub(super) fn tell_standalone(
        self: &Arc<Self>,
        event: Bytes,
    ) -> BoxFuture<'static, Result<()>> {
        let worker = Arc::clone(self);
        begun(
            async move {
                let sessions = &worker.backends.sessions;
                sessions.append(&worker.session, event).await.map(drop)
            }
            .boxed(),
        )
    }

    /// Tells a client that a request is void. Its place in the stream is taken
    /// when this returns.
    pub(super) fn tell_void(self: &Arc<Self>, asked: &Asked, why: Void) -> BoxFuture<'static, ()> {
        let (true, Some(reason)) = (asked.shown, why.reason()) else {
            return future::ready(()).boxed();
        };
        self.tell_cancelled(asked, message::void(&asked.wire_id, reason))
    }

    fn tell_cancelled(self: &Arc<Self>, asked: &Asked, event: Bytes) -> BoxFuture<'static, ()> {
        let told = self.tell(asked.call.as_deref(), event.clone());
        let (worker, settling) = (Arc::clone(self), Settling::new(self));
        async move {
            let _settling = settling;
            let told = match told.await {
                // The call has ended meanwhile.
                Err(error) if error.kind() == ErrorKind::Finished => {
                    worker.tell_standalone(event).await
                }
                told => told,
            };
            if let Err(error) = told {
                tracing::debug!(%error, "a client was not told that a request is void");
            }
        }
        .boxed()
    }

    /// Withdraws a request that was taken off the table. `false`: its client
    /// has answered it.
    async fn withdraw(&self, asked: &Asked) -> bool {
        let Some(requests) = &self.backends.requests else {
            return true;
        };
        let id = RpcId::String(Arc::clone(&asked.wire_id));
        let withdrawn = requests.cancel(&self.session, &id);
        let outcome = match tokio::time::timeout(WITHDRAWAL, withdrawn).await {
            Ok(Ok(outcome)) => outcome.unwrap_or(OutcomeKind::Cancelled),
            // Nobody takes its answer any more, whatever the store says.
            Ok(Err(error)) => {
                tracing::warn!(%error, "a client request was not withdrawn");
                OutcomeKind::Cancelled
            }
            Err(_) => {
                tracing::warn!("a client request was not withdrawn in time");
                OutcomeKind::Cancelled
            }
        };
        count_outcome(outcome);
        !outcome.is_answer()
    }

    /// Ends a request that was taken off the table.
    async fn end_ask(self: Arc<Self>, asked: Asked, why: Void) {
        if self.withdraw(&asked).await {
            self.tell_void(&asked, why).await;
        }
        // Dropping it ends the wait.
        drop(asked);
    }

    fn end_asks(self: &Arc<Self>, asks: Vec<Asked>, why: Void) -> BoxFuture<'static, ()> {
        let settling = Settling::new(self);
        let ends = asks.into_iter();
        let ends = ends.map(|asked| Arc::clone(self).end_ask(asked, why));
        let all = future::join_all(ends);
        async move {
            let _settling = settling;
            all.await;
        }
        .boxed()
    }

    /// Ends the requests of a call, which ends (clause C4). Their client has to
    /// hear of it before its stream is finished: the work that is left until
    /// then, if there is any.
    pub(super) fn end_asks_of(
        self: &Arc<Self>,
        call: &Call,
        why: Void,
    ) -> Option<BoxFuture<'static, ()>> {
        let mut state = self.state.lock();
        let of_call = |_: &RequestId, asked: &mut Asked| {
            let asking = asked.call.as_deref();
            asking.is_some_and(|asking| std::ptr::eq(asking, call))
        };
        let taken: Vec<_> = state.asked.extract_if(of_call).collect();
        if taken.is_empty() {
            return None;
        }
        let asks = taken.into_iter().map(|(id, asked)| {
            let outcome = Outcome {
                kind: OutcomeKind::Cancelled,
                payload: Bytes::new(),
            };
            self.push(&mut state, message::answer(id, &outcome));
            asked
        });
        let asks = asks.collect();
        drop(state);
        Some(self.end_asks(asks, why))
    }

    /// Fails what still waits for a client, since this instance ends.
    pub(crate) fn fail_asks(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let taken = std::mem::take(&mut state.asked);
        let asks = taken.into_iter().map(|(id, asked)| {
            self.push(&mut state, message::shutting_down(id));
            asked
        });
        let asks: Vec<_> = asks.collect();
        drop(state);
        // Without a runtime nobody can be told any more; dropping them
        // withdraws them.
        if let (false, Ok(runtime)) = (asks.is_empty(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(self.end_asks(asks, Void::ShuttingDown));
        }
    }

    /// A handler gives up a request of its own: its client is told with the
    /// handler's reason, and its answer is not waited for. `None`: it has ended.
    pub(super) fn give_up(
        self: &Arc<Self>,
        mut notification: CancelledNotification,
    ) -> Option<BoxFuture<'static, ()>> {
        let id = notification.params.request_id.as_ref()?;
        let asked = self.state.lock().asked.remove(id)?;
        let wire_id = NumberOrString::String(Arc::clone(&asked.wire_id));
        notification.params.request_id = Some(wire_id);
        let event = message::encode(&ServerJsonRpcMessage::notification(notification.into()))?;
        let worker = Arc::clone(self);
        let settling = Settling::new(self);
        let given_up = async move {
            let _settling = settling;
            // First: who has answered is told nothing. The handler waits for
            // this, so that its call does not end before.
            if worker.withdraw(&asked).await && asked.shown {
                worker.tell_cancelled(&asked, event).await;
            }
            drop(asked);
        };
        Some(given_up.boxed())
    }
}
