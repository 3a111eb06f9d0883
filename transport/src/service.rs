//! The tower service: pure work around rmcp's own.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts,
};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use mcp_adapter_core::SessionId;
use parking_lot::Mutex;
use rmcp::{
    ServerHandler,
    transport::{
        StreamableHttpService, streamable_http_server::session::never::NeverSessionManager,
    },
};
use tower_service::Service;

use crate::{
    answer::{Asked, restored},
    batch::{self, Answers},
    bus::Bus,
    config::Settings,
    era::{self, Unasked},
    exchange::{EXCHANGE, Exchange, Stash},
    inbound::{Inbound, Kind},
    lifecycle::Lifecycle,
    manager::Manager,
    negotiate::{self, SESSION_ID},
    registry::Registry,
    verdict::{BODY_TIMEOUT, Verdict},
};

/// The body of every response.
pub type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

/// A server behind Streamable HTTP, as a tower service:
/// `axum::Router::new().nest_service("/mcp", service)`. Its clones are one
/// instance.
///
/// | status | when |
/// |---|---|
/// | 200 | a stream or an answer; a session that was deleted |
/// | 202 | an answer or a notification was taken |
/// | 204 | a GET that resumes from the end of a call: nothing is left to be said, and an `EventSource` does not come back |
/// | 400 | no session id, or a version that is not served; an answer that nobody asked for; a malformed event id. As a JSON-RPC error: what is not JSON (-32700) or no message (-32600), `initialize` in a session, a batch in a version without them |
/// | 403 | a `Host` or `Origin` that is not allowed |
/// | 404 | no such session, another principal's, or a malformed session id |
/// | 405 | a method other than GET, POST and DELETE, or one that this version or tier does not have; with `Allow` |
/// | 406 | `Accept` does not admit what would be sent: `text/event-stream`, and for POST `application/json` as well. Ranges, weights and a missing header count as HTTP says |
/// | 408 | the body did not arrive in time |
/// | 413 | the body or an answer is too large |
/// | 415 | the body is not said to be `application/json` |
/// | 429 | the principal's share is used up |
/// | 503 | overloaded, past the deadline of a drain, or the backend is away; a listener where other instances are not heard; all with `Retry-After` |
///
/// Bodies of errors are fixed texts with a content type; what went wrong is in
/// the server's log. Served are the versions 2024-11-05, as far as this transport
/// has it, 2025-03-26 with its batches of up to 64 messages, 2025-06-18,
/// 2025-11-25 and, without sessions, 2026-07-28.
pub struct McpService<S>(Arc<Shared<S>>);

/// Behind one pointer: routers clone a service for each request, and rmcp's has
/// lists of its own.
struct Shared<S> {
    inner: Inner<S>,
    bus: Arc<Bus>,
    lifecycle: Arc<Lifecycle>,
    unasked: Unasked,
    settings: Arc<Settings>,
}

pub(crate) enum Inner<S> {
    /// Tier 1.
    Stateless(StreamableHttpService<S, NeverSessionManager>),
    /// Tiers 2 and 3.
    Sessions(StreamableHttpService<S, Manager>, Arc<Registry>),
}

impl<S> Clone for McpService<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for McpService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpService")
            .field("sessions", &matches!(self.0.inner, Inner::Sessions(..)))
            .field("settings", &self.0.settings)
            .finish()
    }
}

impl<S, B> Service<Request<B>> for McpService<S>
where
    S: ServerHandler + Send + 'static,
    B: Body<Data: Send, Error: fmt::Display> + Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let version = request.version();
            let mut response = shared.handle(request).await;
            // Proxies keep connections open. Each ends in good order with a
            // request, before all are closed at once.
            if shared.lifecycle.is_draining() && version <= Version::HTTP_11 {
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        })
    }
}

impl<S: ServerHandler + Send + 'static> McpService<S> {
    pub(crate) fn new(
        inner: Inner<S>,
        bus: Arc<Bus>,
        lifecycle: Arc<Lifecycle>,
        settings: Arc<Settings>,
    ) -> Self {
        Self(Arc::new(Shared {
            inner,
            bus,
            lifecycle,
            unasked: Unasked::new(),
            settings,
        }))
    }
}

impl<S: ServerHandler + Send + 'static> Shared<S> {
    async fn handle<B>(&self, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body<Data: Send, Error: fmt::Display> + Send + 'static,
    {
        let method = request.method().clone();
        let mut response = self
            .respond(request)
            .await
            .unwrap_or_else(Verdict::into_response);
        // Deleted is deleted; clients warn of rmcp's 202.
        if method == Method::DELETE && response.status() == StatusCode::ACCEPTED {
            *response.status_mut() = StatusCode::OK;
        }
        metrics::counter!("mcp_transport_http_requests_total",
            "method" => method_name(&method),
            "status" => status_name(response.status()))
        .increment(1);
        response
    }

    async fn respond<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, Verdict>
    where
        B: Body<Data: Send, Error: fmt::Display> + Send + 'static,
    {
        let (mut parts, body) = request.into_parts();
        negotiate::normalise(&parts.method, &mut parts.headers);
        let inbound = match parts.method {
            Method::POST => {
                let body = self.read(&parts.headers, body).await?;
                if batch::is_batch(&body) && negotiate::is_json(&parts.headers) {
                    return self.batch(parts, &body).await;
                }
                Inbound::of(body)
            }
            Method::GET => Inbound::without_id(Kind::Get, Bytes::new()),
            Method::DELETE => Inbound::without_id(Kind::Delete, Bytes::new()),
            _ => Inbound::without_id(Kind::Other, Bytes::new()),
        };
        Ok(self.serve(parts, inbound, false).await)
    }

    async fn batch(&self, parts: Parts, body: &Bytes) -> Result<Response<ResponseBody>, Verdict> {
        if !negotiate::may_batch(&parts.headers) {
            return Err(Verdict::NoBatches);
        }
        let mut answers = Answers::default();
        for inbound in batch::split(body)? {
            let id = inbound.id.clone();
            let response = self.serve(parts.clone(), inbound, true).await;
            if let Err(response) = answers.add(id.as_deref(), response).await {
                return Ok(response);
            }
        }
        Ok(answers.into_response())
    }

    /// Serves one message.
    async fn serve(
        &self,
        mut parts: Parts,
        inbound: Inbound,
        batched: bool,
    ) -> Response<ResponseBody> {
        if self.has_sessions_only()
            && parts.method == Method::POST
            && let Some((status, answer)) = era::refuse(&parts.headers, &inbound.body)
        {
            return Verdict::Refusal(status, answer).into_response();
        }
        self.lifecycle.start();
        self.bus.start();
        let listens = negotiate::is_listen(&parts.headers);
        if listens && !self.bus.is_ready().await {
            // It would not hear of what changes elsewhere.
            return Verdict::Unavailable.into_response();
        }
        let asked = Asked::of(&parts);
        match &self.inner {
            Inner::Stateless(service) => {
                if listens {
                    parts.extensions.insert(self.bus.arrival(Weak::new()));
                }
                let request = Request::from_parts(parts, Full::new(inbound.body.clone()));
                let response = service.handle(request).await.map(BodyExt::boxed_unsync);
                asked.given(response, &inbound)
            }
            Inner::Sessions(service, registry) => {
                let modern = negotiate::is_modern(&parts.headers);
                if modern && registry.is_refusing() {
                    return Verdict::Unavailable.into_response();
                }
                if modern && parts.method == Method::POST {
                    self.unasked.came();
                }
                let stateless = modern.then(|| Arc::new(registry.stateless()));
                match &stateless {
                    // A drain ends it, and does not wait for it before.
                    Some(stateless) if listens => {
                        let response = Arc::downgrade(stateless);
                        parts.extensions.insert(self.bus.arrival(response));
                    }
                    Some(stateless) => stateless.count(),
                    None => {}
                }
                let exchange = Arc::new(Exchange {
                    session: session_id(&mut parts.headers),
                    principal: (self.settings.principal.as_ref()).and_then(|of| of(&parts)),
                    inbound,
                    batched,
                    stash: Mutex::new(Stash::default()),
                });
                let inbound = &exchange.inbound;
                let request = Request::from_parts(parts, Full::new(inbound.body.clone()));
                let response = EXCHANGE
                    .scope(Arc::clone(&exchange), service.handle(request))
                    .await
                    .map(BodyExt::boxed_unsync);
                match (settle(&exchange, response), stateless) {
                    (Settled::Ours(response), _) => response,
                    (Settled::Rmcps(response), Some(stateless)) => {
                        let response = asked.given(response, inbound);
                        response.map(|body| {
                            let held = body.map_frame(move |frame| {
                                let _ = &stateless;
                                frame
                            });
                            held.boxed_unsync()
                        })
                    }
                    (Settled::Rmcps(response), None) => asked.given(response, inbound),
                }
            }
        }
    }

    fn has_sessions_only(&self) -> bool {
        self.settings.sessions_only && matches!(self.inner, Inner::Sessions(..))
    }

    /// The whole body, up to the limit.
    async fn read<B>(&self, headers: &HeaderMap, body: B) -> Result<Bytes, Verdict>
    where
        B: Body<Data: Send, Error: fmt::Display> + Send + 'static,
    {
        const UNREADABLE: Verdict = Verdict::BadRequest("Bad Request: the body cannot be read");
        let limit = self.settings.body_bytes;
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|announced| announced > limit) {
            return Err(Verdict::TooLarge);
        }
        let read = async {
            let mut body = std::pin::pin!(body);
            let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(64 * 1024));
            while let Some(frame) = body.frame().await {
                let Ok(mut data) = frame.map_err(|_| UNREADABLE)?.into_data() else {
                    continue;
                };
                use bytes::{Buf, BufMut};
                if data.remaining() > limit - bytes.len() {
                    return Err(Verdict::TooLarge);
                }
                bytes.put(&mut data);
            }
            let bytes = bytes.freeze();
            // JSON has none, and is read all the same (RFC 8259, section 8.1).
            let mark = "\u{feff}".len();
            Ok(if bytes.starts_with("\u{feff}".as_bytes()) {
                bytes.slice(mark..)
            } else {
                bytes
            })
        };
        tokio::time::timeout(BODY_TIMEOUT, read)
            .await
            .unwrap_or(Err(Verdict::Timeout))
    }
}

/// The request's session. A malformed id is replaced by one that is never
/// given out, so that rmcp neither logs it nor takes it for absent.
fn session_id(headers: &mut HeaderMap) -> Option<SessionId> {
    let mut ids = headers.get_all(SESSION_ID).iter();
    let id = ids.next()?;
    let only = ids.next().is_none();
    let session = id.to_str().ok().and_then(|id| id.parse().ok());
    if only && session.is_some() {
        return session;
    }
    headers.insert(SESSION_ID, HeaderValue::from_static("-"));
    None
}

enum Settled {
    Ours(Response<ResponseBody>),
    Rmcps(Response<ResponseBody>),
}

/// Puts what the session manager has left in place of rmcp's answer.
fn settle(exchange: &Exchange, response: Response<ResponseBody>) -> Settled {
    let (verdict, body) = {
        let mut stash = exchange.stash.lock();
        // What is still here was opened for a request that was refused.
        let abandoned = (stash.entered.take(), stash.created.take());
        let left = (stash.verdict.take(), stash.body.take());
        drop(stash);
        drop(abandoned);
        left
    };
    match (verdict, body) {
        (Some(verdict), _) => {
            // The handler's; our own have the id as it was sent.
            let spelling = exchange.inbound.spelling.clone();
            let spelling = spelling.filter(|_| matches!(verdict, Verdict::Message(_)));
            let response = verdict.into_response();
            Settled::Ours(match spelling {
                Some(spelling) => restored(response, spelling),
                None => response,
            })
        }
        (None, Some(body)) => Settled::Ours(response.map(|_| body.boxed_unsync())),
        (None, None) => Settled::Rmcps(response),
    }
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::POST => "POST",
        Method::GET => "GET",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// The statuses that there are, so that a metric costs no allocation.
fn status_name(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        202 => "202",
        204 => "204",
        400 => "400",
        403 => "403",
        404 => "404",
        405 => "405",
        406 => "406",
        408 => "408",
        413 => "413",
        415 => "415",
        429 => "429",
        500 => "500",
        503 => "503",
        _ => "other",
    }
}
