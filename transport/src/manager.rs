//! rmcp's session manager over the adapters.
//!
//! Every method runs below [`EXCHANGE`](crate::exchange::EXCHANGE), with one
//! exception, `close_session`. What goes wrong is left there as a verdict;
//! rmcp gets an error without a text, since it would send the text to clients.

use std::sync::Arc;

use futures::{Stream, stream};
use http::request::Parts;
use mcp_adapter_core::{
    EndReason, Entered, ErrorKind, Session as Stored, SessionId as Key, Tail, TailEvent, TailFrom,
};
use rmcp::{
    model::{ClientJsonRpcMessage, GetExtensions, JsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::{SessionId, SessionManager, session::ServerSseMessage},
};

use crate::{
    accept::accept,
    exchange::{self, Exchange},
    inbound::Kind,
    message, negotiate, record,
    registry::Registry,
    restore::is_initialize_result,
    resume::{Mark, ResumeId},
    signals,
    sse::{EventBody, Reader},
    verdict::{Refused, Verdict},
    worker::{NewWorker, NotTaken, Start, Worker, WorkerTransport},
};

/// Workers that end just when they are needed, in a row.
const MAX_ATTEMPTS: usize = 8;

pub(crate) struct Manager {
    pub(crate) registry: Arc<Registry>,
}

const UNKNOWN_EVENT: Verdict = Verdict::BadRequest("Bad Request: unknown event id");

/// What a client may say of itself.
const MAX_RECORD_BYTES: usize = 64 * 1024;

type Done<T> = Result<T, Refused>;

/// rmcp's stream is empty: the service puts our body in its place.
type NoStream = stream::Empty<ServerSseMessage>;

/// The exchange, if it is of this session.
fn exchange_of(id: &SessionId) -> Done<(Arc<Exchange>, Key)> {
    let exchange = exchange::current().ok_or(Refused)?;
    match &exchange.session {
        Some(session) if session.as_str() == &**id => {
            let session = session.clone();
            Ok((exchange, session))
        }
        _ => {
            exchange.refuse(Verdict::NotFound);
            Err(Refused)
        }
    }
}

fn refuse<T>(exchange: &Exchange, verdict: Verdict) -> Done<T> {
    exchange.refuse(verdict);
    Err(Refused)
}

/// What `has_session` has found for this very request. Without it the request
/// was never checked, and is not served.
fn entered(exchange: &Exchange) -> Done<Entered> {
    let entered = exchange.stash.lock().entered.take();
    match entered {
        Some(entered) if entered.session.record.principal == exchange.principal => Ok(entered),
        _ => refuse(exchange, Verdict::NotFound),
    }
}

/// Why a message cannot be one of this session's.
fn unfit(exchange: &Exchange, stored: &Stored) -> Option<Verdict> {
    let inbound = &exchange.inbound;
    match inbound.kind {
        Kind::Request {
            initialize: true, ..
        } => {
            let text = "Invalid Request: this session is initialized";
            Some(Verdict::invalid_request(text, inbound.id.as_deref()))
        }
        _ if exchange.batched && !negotiate::has_batches(&stored.record.protocol) => {
            Some(Verdict::NoBatches)
        }
        _ => None,
    }
}

impl Manager {
    fn read_by(&self, exchange: &Exchange, stored: &Stored) -> Reader {
        record::reader(
            &stored.record,
            &self.registry.backends.settings,
            !exchange.batched,
        )
    }

    /// The body of a stream that is read from wherever it was.
    fn reader(&self, exchange: &Exchange, session: &Key, stored: &Stored, tail: Tail) -> EventBody {
        EventBody::new(tail, self.read_by(exchange, stored))
            .closing(self.registry.gets().cancelled_owned())
            .standing(self.registry.stand(session, exchange.principal.as_ref()))
    }
}

impl SessionManager for Manager {
    type Error = Refused;
    type Transport = WorkerTransport;

    async fn create_session(&self) -> Done<(SessionId, WorkerTransport)> {
        let exchange = exchange::current().ok_or(Refused)?;
        if self.registry.is_refusing() {
            return refuse(&exchange, Verdict::Unavailable);
        }
        self.registry.start();
        let worker = Worker::new(
            Key::generate(),
            exchange.principal.clone(),
            Arc::clone(&self.registry.backends),
            Arc::downgrade(&self.registry),
        );
        let id = worker.session.as_str().into();
        let transport = WorkerTransport::new(Arc::clone(&worker));
        exchange.stash.lock().created = Some(NewWorker::new(worker));
        Ok((id, transport))
    }

    /// The session exists only after the handler has agreed to it.
    async fn initialize_session(
        &self,
        _: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Done<ServerJsonRpcMessage> {
        let exchange = exchange::current().ok_or(Refused)?;
        let new = exchange.stash.lock().created.take().ok_or(Refused)?;
        let Some(worker) = new.worker().cloned() else {
            return Err(Refused);
        };
        let Some(answer) = worker.handshake(message).await else {
            return refuse(&exchange, Verdict::Internal);
        };
        if !is_initialize_result(&answer) {
            let refusal = message::encode(&answer).map_or(Verdict::Internal, Verdict::Message);
            return refuse(&exchange, refusal);
        }
        let Some(record) = record::of_new_session(&exchange, &answer) else {
            return refuse(&exchange, Verdict::Internal);
        };
        // Every request of the session reads it.
        if (record.encode()).is_ok_and(|encoded| encoded.len() > MAX_RECORD_BYTES) {
            return refuse(&exchange, Verdict::TooLarge);
        }
        let (created, ()) = tokio::join!(
            self.registry
                .backends
                .sessions
                .create(&worker.session, record),
            signals::listen(&worker),
        );
        if let Err(error) = created {
            return refuse(&exchange, Verdict::of(&error));
        }
        metrics::counter!("mcp_transport_sessions_created_total").increment(1);
        if let Some(worker) = new.keep() {
            self.registry.add(worker);
        }
        Ok(answer)
    }

    /// The one call to the backend before a request is served: session,
    /// principal, expiry, and the stream of the call.
    async fn has_session(&self, id: &SessionId) -> Done<bool> {
        let (exchange, session) = exchange_of(id)?;
        if self.registry.is_refusing() {
            return refuse(&exchange, Verdict::Unavailable);
        }
        let open = match &exchange.inbound.kind {
            Kind::Invalid | Kind::Other => {
                return refuse(&exchange, exchange.inbound.refusal());
            }
            Kind::Request {
                id,
                initialize: false,
            } => Some(id),
            _ => None,
        };
        self.registry.start();
        let sessions = &self.registry.backends.sessions;
        match sessions
            .enter(&session, exchange.principal.as_ref(), open)
            .await
        {
            Ok(entered) => {
                if let Some(verdict) = unfit(&exchange, &entered.session) {
                    return refuse(&exchange, verdict);
                }
                exchange.stash.lock().entered = Some(entered);
                // Always: rmcp's own restore is never used, see `restore`.
                Ok(true)
            }
            Err(error) => {
                if error.kind() == ErrorKind::SessionNotFound
                    && let Some(worker) = self.registry.live(&session)
                    && worker.principal == exchange.principal
                {
                    self.registry.session_ended(&session);
                }
                refuse(&exchange, Verdict::of(&error))
            }
        }
    }

    /// Under an exchange a client deletes its session. Without one a worker
    /// has ended, which says nothing about the session (P17); the worker's
    /// transport has taken it off the registry already.
    async fn close_session(&self, id: &SessionId) -> Done<()> {
        let Some(exchange) = exchange::current() else {
            return Ok(());
        };
        let (exchange, session) = if exchange.inbound.kind == Kind::Delete {
            exchange_of(id)?
        } else {
            return Ok(());
        };
        let sessions = &self.registry.backends.sessions;
        match sessions.delete(&session, exchange.principal.as_ref()).await {
            Ok(true) => {
                metrics::counter!("mcp_transport_sessions_deleted_total").increment(1);
                self.registry.session_ended(&session);
                let backends = &self.registry.backends;
                backends.signal_deleted(&session).await;
                if let Some(mirror) = &backends.mirror
                    && let Err(error) = mirror.delete(&session, None).await
                {
                    tracing::warn!(%error, "the copy of a deleted session stays until it expires");
                }
                Ok(())
            }
            Ok(false) => refuse(&exchange, Verdict::NotFound),
            Err(error) => refuse(&exchange, Verdict::of(&error)),
        }
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Done<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static> {
        let (exchange, session) = exchange_of(id)?;
        let Entered {
            session: stored,
            writer: Some(writer),
            ..
        } = entered(&exchange)?
        else {
            return refuse(&exchange, Verdict::NotFound);
        };
        let JsonRpcMessage::Request(request) = message else {
            return refuse(&exchange, exchange.inbound.refusal());
        };
        // The stream was opened for what the service read.
        let read = &exchange.inbound.kind;
        if !matches!(read, Kind::Request { id, .. } if *id == message::rpc_id(&request.id)) {
            return refuse(&exchange, exchange.inbound.refusal());
        }
        let reader = self.read_by(&exchange, &stored);
        let mut start = Box::new(Start {
            request,
            spelling: exchange.inbound.spelling.clone(),
            stored,
            writer,
        });
        for _ in 0..MAX_ATTEMPTS {
            let Some(parts) = start.request.request.extensions().get::<Parts>() else {
                return refuse(&exchange, Verdict::Internal);
            };
            let worker = match self.registry.worker(&session, &start.stored, parts).await {
                Ok(worker) => worker,
                Err(verdict) => return refuse(&exchange, verdict),
            };
            match worker.start(*start) {
                Ok(call) => {
                    let body = EventBody::new(call.writer.attach(), reader)
                        .of_call(call.writer.stream(), call.rpc_id())
                        .asked_in(&self.registry.backends, &session)
                        .with_aside(Arc::clone(&call.aside));
                    exchange.stash.lock().body = Some(body);
                    return Ok::<NoStream, _>(stream::empty());
                }
                Err((NotTaken::Full, _)) => return refuse(&exchange, Verdict::Unavailable),
                Err((NotTaken::Closed, again)) => {
                    self.registry.forget(&worker);
                    start = again;
                }
            }
        }
        refuse(&exchange, Verdict::Unavailable)
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Done<()> {
        let (exchange, session) = exchange_of(id)?;
        let stored = entered(&exchange)?.session;
        match accept(&self.registry, &exchange, &session, stored, message).await {
            Ok(()) => Ok(()),
            Err(verdict) => refuse(&exchange, verdict),
        }
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Done<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static> {
        let (exchange, session) = exchange_of(id)?;
        let stored = entered(&exchange)?.session;
        let sessions = &self.registry.backends.sessions;
        match sessions.tail(&session, TailFrom::Standalone).await {
            // With an id a client takes the stream over when it comes back;
            // without one it would wait until its former instance, if that
            // died, is known to be dead.
            Ok(tail) => {
                let body = self.reader(&exchange, &session, &stored, tail);
                exchange.stash.lock().body = Some(body);
                Ok::<NoStream, _>(stream::empty())
            }
            Err(error) => refuse(&exchange, Verdict::of(&error)),
        }
    }

    /// Never fails for what the client is to read as the end of its call:
    /// clients hang on an empty answer, and try again for ever on an error.
    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Done<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static> {
        let (exchange, session) = exchange_of(id)?;
        let stored = entered(&exchange)?.session;
        let Ok(after) = last_event_id.parse::<ResumeId>() else {
            return refuse(&exchange, UNKNOWN_EVENT);
        };
        metrics::counter!("mcp_transport_resumes_total").increment(1);
        let name = after.event.stream.clone();
        let from = match after.mark {
            // It has had all there is, however long ago.
            Some(Mark::Last) => return refuse(&exchange, Verdict::NoContent),
            Some(Mark::Hold(_)) if !name.is_standalone() => {
                return refuse(&exchange, UNKNOWN_EVENT);
            }
            Some(Mark::Hold(hold)) => TailFrom::Returning {
                after: after.event.position,
                hold: Some(hold),
            },
            None if name.is_standalone() => TailFrom::Returning {
                after: after.event.position,
                hold: None,
            },
            None => TailFrom::After(after.event.clone()),
        };
        let call = name.request_id();
        let sessions = &self.registry.backends.sessions;
        let resumed = sessions.tail(&session, from);
        let (tail, call) = match resumed.await {
            Ok(tail) => (tail, call),
            Err(error) if error.kind() != ErrorKind::StreamGone => {
                return refuse(&exchange, Verdict::of(&error));
            }
            // Of the messages that belong to no call, those that come are
            // what is left to have.
            Err(_) if name.is_standalone() => {
                match sessions.tail(&session, TailFrom::Standalone).await {
                    Ok(tail) => (tail, None),
                    Err(error) => return refuse(&exchange, Verdict::of(&error)),
                }
            }
            Err(_) if call.is_some() => {
                let over = [TailEvent::End(EndReason::StreamGone)];
                (Tail::new(Box::pin(stream::iter(over))), call)
            }
            Err(_) => return refuse(&exchange, UNKNOWN_EVENT),
        };
        let body = self.reader(&exchange, &session, &stored, tail);
        let given_up = record::is_given_up(&stored.record, &name);
        let body = body
            .resumed(after, call)
            .given_up(given_up)
            .asked_in(&self.registry.backends, &session);
        exchange.stash.lock().body = Some(body);
        Ok::<NoStream, _>(stream::empty())
    }
}
