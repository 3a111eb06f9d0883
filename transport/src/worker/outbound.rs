//! What rmcp's service loop reads from and writes to.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{FutureExt, future::BoxFuture};
use rmcp::{
    RoleServer,
    model::{
        ClientJsonRpcMessage, NumberOrString, RequestId, ServerJsonRpcMessage, ServerNotification,
    },
    transport::Transport,
};

use super::{SendError, Worker};
use crate::message;

/// rmcp's end of a [`Worker`].
///
/// `send` is called in order, but its futures run side by side: what decides
/// on the order of events happens before the future is returned.
pub(crate) struct WorkerTransport(Arc<Worker>);

impl WorkerTransport {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        Self(worker)
    }
}

impl Drop for WorkerTransport {
    fn drop(&mut self) {
        self.0.ended();
    }
}

type Sent = BoxFuture<'static, Result<(), SendError>>;

fn sent(result: Result<(), SendError>) -> Sent {
    std::future::ready(result).boxed()
}

impl Transport<RoleServer> for WorkerTransport {
    type Error = SendError;

    fn send(
        &mut self,
        message: ServerJsonRpcMessage,
    ) -> impl Future<Output = Result<(), SendError>> + Send + 'static {
        match message {
            ServerJsonRpcMessage::Request(request) => self.0.ask(request),
            ServerJsonRpcMessage::Notification(message) => self.notification(message.notification),
            ServerJsonRpcMessage::Response(ref response) => {
                let id = response.id.clone();
                self.response(&id, message)
            }
            ServerJsonRpcMessage::Error(ref error) => match error.id.clone() {
                Some(id) => self.response(&id, message),
                None => sent(Ok(())),
            },
        }
    }

    fn receive(&mut self) -> impl Future<Output = Option<ClientJsonRpcMessage>> + Send {
        self.0.receive()
    }

    fn close(&mut self) -> impl Future<Output = Result<(), SendError>> + Send {
        self.0.close();
        std::future::ready(Ok(()))
    }
}

impl WorkerTransport {
    fn response(&self, id: &RequestId, response: ServerJsonRpcMessage) -> Sent {
        let worker = &self.0;
        {
            let mut state = worker.state.lock();
            if let Some(handshake) = state.handshake.take_if(|handshake| handshake.id == *id) {
                // The request that waited may be gone; its session then ends.
                let _ = handshake.answer.send(response);
                return sent(Ok(()));
            }
        }
        let NumberOrString::String(key) = id else {
            return sent(Ok(()));
        };
        match worker.take_call(key) {
            Some(call) => worker.finish(call, response),
            None => {
                if !worker.replayed(key) {
                    tracing::debug!("a response to no request");
                }
                sent(Ok(()))
            }
        }
    }

    fn notification(&self, mut notification: ServerNotification) -> Sent {
        let worker = &self.0;
        match &mut notification {
            ServerNotification::ProgressNotification(progress) => {
                let token = &mut progress.params.progress_token;
                match worker.progress_of(token) {
                    Some((call, wire)) => {
                        *token = wire;
                        let Some(event) =
                            message::encode(&ServerJsonRpcMessage::notification(notification))
                        else {
                            return sent(Err(SendError::NotStored));
                        };
                        let stored = call.writer.append(event);
                        async move {
                            // The call is kept until its event is stored.
                            let _call = call;
                            stored
                                .await
                                .map(drop)
                                .map_err(|error| SendError::from(&error))
                        }
                        .boxed()
                    }
                    // Progress ends with its call.
                    None if worker.is_ours(&token.0) => sent(Ok(())),
                    None => self.standalone(notification),
                }
            }
            ServerNotification::CancelledNotification(_) => {
                let ServerNotification::CancelledNotification(cancelled) = notification else {
                    return sent(Ok(()));
                };
                match worker.give_up(cancelled) {
                    Some(given_up) => given_up.map(Ok).boxed(),
                    None => sent(Ok(())),
                }
            }
            _ => self.standalone(notification),
        }
    }

    fn standalone(&self, notification: ServerNotification) -> Sent {
        match message::encode(&ServerJsonRpcMessage::notification(notification)) {
            Some(event) => self
                .0
                .tell_standalone(event)
                .map(|stored| stored.map_err(|error| SendError::from(&error)))
                .boxed(),
            None => sent(Err(SendError::NotStored)),
        }
    }
}

/// Polls once, so that what the future queues is queued in the order of calls
/// and not in that of tasks. Whoever awaits it polls it again.
pub(super) fn begun<T: Send + 'static>(mut future: BoxFuture<'static, T>) -> BoxFuture<'static, T> {
    match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => std::future::ready(value).boxed(),
        Poll::Pending => future,
    }
}
