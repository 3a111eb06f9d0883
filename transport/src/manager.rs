//! rmcp's session manager over the adapters.
//!
//! Every method runs below [`EXCHANGE`](crate::exchange::EXCHANGE), with one
//! exception, `close_session`. What goes wrong is left there as a verdict;
//! rmcp gets an error without a text, since it would send the text to clients.

use std::sync::Arc;

use futures::{Stream, stream};
use http::request::Parts;
use mcp_adapter_core::{
    EndReason, Entered, ErrorKind, EventId, RpcId, Session as Stored, SessionId as Key,
    SessionRecord, StreamId, Tail, TailEvent, TailFrom,
};
use rmcp::{
    model::{ClientJsonRpcMessage, GetExtensions, JsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::{SessionId, SessionManager, session::ServerSseMessage},
};
use serde_json::Value;

use crate::{
    accept::accept,
    exchange::{self, Exchange, Kind},
    message,
    registry::Registry,
    restore::is_initialize_result,
    signals,
    sse::{EventBody, TOLD},
    verdict::{Refused, Verdict},
    worker::{NewWorker, NotTaken, Start, Worker, WorkerTransport},
};

/// The first version whose clients read an event without data (SEP-1699).
const PRIMING_SINCE: &str = "2025-11-25";

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

/// The record of a session that has just been initialized.
fn new_record(exchange: &Exchange, answer: &ServerJsonRpcMessage) -> Option<SessionRecord> {
    // From the bytes, since they may hold more than rmcp knows.
    let request: Value = serde_json::from_slice(&exchange.body).ok()?;
    let answer = serde_json::to_value(answer).ok()?;
    Some(SessionRecord {
        protocol: answer["result"]["protocolVersion"].as_str()?.to_owned(),
        client: request["params"]["clientInfo"].clone(),
        capabilities: request["params"]["capabilities"].clone(),
        principal: exchange.principal.clone(),
        ..SessionRecord::default()
    })
}

impl Manager {
    /// The body of a stream that is read from wherever it was.
    fn reader(
        &self,
        exchange: &Exchange,
        session: &Key,
        tail: Tail,
        call: Option<(StreamId, RpcId)>,
    ) -> EventBody {
        EventBody::new(tail, call, self.registry.backends.settings.keep_alive)
            .closing(self.registry.gets.clone().cancelled_owned())
            .standing(self.registry.stand(session, exchange.principal.as_ref()))
    }

    fn resumed(
        &self,
        exchange: &Exchange,
        session: &Key,
        tail: Tail,
        call: Option<(StreamId, RpcId)>,
    ) {
        let body = self.reader(exchange, session, tail, call);
        exchange.stash.lock().body = Some(body.retry(self.registry.backends.settings.retry));
    }
}

/// Whether the client reads an event without data.
fn is_primed(stored: &Stored) -> bool {
    stored.record.protocol.as_str() >= PRIMING_SINCE
}

impl SessionManager for Manager {
    type Error = Refused;
    type Transport = WorkerTransport;

    async fn create_session(&self) -> Done<(SessionId, WorkerTransport)> {
        let exchange = exchange::current().ok_or(Refused)?;
        if self.registry.is_draining() {
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
        let Some(record) = new_record(&exchange, &answer) else {
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
        let open = match &exchange.kind {
            Kind::Unknown => {
                return refuse(&exchange, Verdict::BadRequest("Bad Request: not a message"));
            }
            // A stream that would be closed again at once.
            Kind::Get if self.registry.is_draining() => {
                return refuse(&exchange, Verdict::Unavailable);
            }
            Kind::Request { id } => Some(id),
            _ => None,
        };
        self.registry.start();
        let sessions = &self.registry.backends.sessions;
        match sessions
            .enter(&session, exchange.principal.as_ref(), open)
            .await
        {
            Ok(entered) => {
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
        let (exchange, session) = if exchange.kind == Kind::Delete {
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
            return refuse(&exchange, Verdict::BadRequest("Bad Request: not a request"));
        };
        // The stream was opened for what the service read.
        if !matches!(&exchange.kind, Kind::Request { id } if *id == message::rpc_id(&request.id)) {
            return refuse(&exchange, Verdict::BadRequest("Bad Request: not a message"));
        }
        let primed = is_primed(&stored);
        let mut start = Box::new(Start {
            request,
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
                    let settings = &self.registry.backends.settings;
                    let tail = call.writer.attach();
                    let of = (call.writer.stream().clone(), call.rpc_id());
                    let mut body = EventBody::new(tail, Some(of), settings.keep_alive)
                        .with_aside(Arc::clone(&call.aside));
                    if primed {
                        body = body.priming(call.writer.stream(), settings.retry);
                    }
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
            Ok(tail) => {
                let body = self.reader(&exchange, &session, tail, None);
                let retry = self.registry.backends.settings.retry;
                // With an id a client takes the stream over when it comes back;
                // without one it would wait until its former instance, if that
                // died, is known to be dead.
                let body = if is_primed(&stored) {
                    body.priming_in_turn(retry)
                } else {
                    body.retry(retry)
                };
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
        entered(&exchange)?;
        let Ok(after) = last_event_id.parse::<EventId>() else {
            return refuse(&exchange, UNKNOWN_EVENT);
        };
        metrics::counter!("mcp_transport_resumes_total").increment(1);
        let standalone = after.stream.is_standalone();
        let request = after.stream.request_id();
        let call = request.map(|request| (after.stream.clone(), request));
        let over = |why| Tail::new(Box::pin(stream::iter([TailEvent::End(why)])));
        let sessions = &self.registry.backends.sessions;
        let tail = if after.position == TOLD {
            Ok(over(EndReason::Finished))
        } else {
            sessions.tail(&session, TailFrom::After(after)).await
        };
        match tail {
            Ok(tail) => self.resumed(&exchange, &session, tail, call),
            // Of the messages that belong to no call, those that come are
            // what is left to have.
            Err(error) if error.kind() == ErrorKind::StreamGone && standalone => {
                match sessions.tail(&session, TailFrom::Standalone).await {
                    Ok(tail) => self.resumed(&exchange, &session, tail, None),
                    Err(error) => return refuse(&exchange, Verdict::of(&error)),
                }
            }
            Err(error) if error.kind() == ErrorKind::StreamGone && call.is_some() => {
                self.resumed(&exchange, &session, over(EndReason::StreamGone), call);
            }
            Err(error) if error.kind() == ErrorKind::StreamGone => {
                return refuse(&exchange, UNKNOWN_EVENT);
            }
            Err(error) => return refuse(&exchange, Verdict::of(&error)),
        }
        Ok::<NoStream, _>(stream::empty())
    }
}
