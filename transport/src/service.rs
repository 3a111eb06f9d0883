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
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
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
    bus::Bus,
    config::Settings,
    exchange::{EXCHANGE, Exchange, Kind, Stash},
    manager::Manager,
    registry::Registry,
    verdict::{BODY_TIMEOUT, Verdict},
};

/// The body of every response.
pub type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

const SESSION_ID: &str = "mcp-session-id";

/// A server behind Streamable HTTP, as a tower service:
/// `axum::Router::new().nest_service("/mcp", service)`. Its clones are one
/// instance.
///
/// | status | when |
/// |---|---|
/// | 400 | no session id; an answer that nobody asked for; a malformed message or event id |
/// | 404 | no such session, another principal's, or a malformed session id |
/// | 408 | the body did not arrive in time |
/// | 413 | the body or an answer is too large |
/// | 429 | the principal's share is used up |
/// | 503 | overloaded, draining, or the backend is away; a listener where other instances are not heard; all with `Retry-After` |
///
/// Bodies of errors are fixed texts; what went wrong is in the server's log.
pub struct McpService<S>(Arc<Shared<S>>);

/// Behind one pointer: routers clone a service for each request, and rmcp's has
/// lists of its own.
struct Shared<S> {
    inner: Inner<S>,
    bus: Arc<Bus>,
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
        Box::pin(async move { Ok(shared.handle(request).await) })
    }
}

impl<S: ServerHandler + Send + 'static> McpService<S> {
    pub(crate) fn new(inner: Inner<S>, bus: Arc<Bus>, settings: Arc<Settings>) -> Self {
        Self(Arc::new(Shared {
            inner,
            bus,
            settings,
        }))
    }
}

impl<S: ServerHandler + Send + 'static> Shared<S> {
    async fn handle<B>(&self, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body<Data: Send, Error: fmt::Display> + Send + 'static,
    {
        let (mut parts, body) = request.into_parts();
        let method = parts.method.clone();
        let body = if method == Method::POST {
            match self.read(&parts.headers, body).await {
                Ok(body) => body,
                Err(verdict) => return verdict.into_response(),
            }
        } else {
            Bytes::new()
        };
        self.bus.start();
        let listens = is_listen(&parts.headers);
        if listens && !self.bus.is_ready().await {
            // It would not hear of what changes elsewhere.
            return Verdict::Unavailable.into_response();
        }
        let response = match &self.inner {
            Inner::Stateless(service) => {
                if listens {
                    parts.extensions.insert(self.bus.arrival(Weak::new()));
                }
                let request = Request::from_parts(parts, Full::new(body));
                service.handle(request).await.map(BodyExt::boxed_unsync)
            }
            Inner::Sessions(service, registry) => {
                let modern = is_modern(&parts.headers);
                if modern && (registry.is_refusing() || listens && registry.is_draining()) {
                    return Verdict::Unavailable.into_response();
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
                    kind: match method {
                        Method::POST => Kind::peek(&body),
                        Method::GET => Kind::Get,
                        Method::DELETE => Kind::Delete,
                        _ => Kind::Unknown,
                    },
                    body: body.clone(),
                    stash: Mutex::new(Stash::default()),
                });
                let request = Request::from_parts(parts, Full::new(body));
                let response = EXCHANGE
                    .scope(Arc::clone(&exchange), service.handle(request))
                    .await
                    .map(BodyExt::boxed_unsync);
                match (settle(&exchange, response), stateless) {
                    ((response, true), Some(stateless)) => response.map(|body| {
                        let held = body.map_frame(move |frame| {
                            let _ = &stateless;
                            frame
                        });
                        held.boxed_unsync()
                    }),
                    ((response, _), _) => response,
                }
            }
        };
        let response = if response.status() == StatusCode::INTERNAL_SERVER_ERROR {
            Verdict::Internal.into_response()
        } else {
            response
        };
        metrics::counter!("mcp_transport_http_requests_total",
            "method" => method_name(&method),
            "status" => status_name(response.status()))
        .increment(1);
        response
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
            Ok(bytes.freeze())
        };
        tokio::time::timeout(BODY_TIMEOUT, read)
            .await
            .unwrap_or(Err(Verdict::Timeout))
    }
}

/// Whether rmcp serves the request without a session.
fn is_modern(headers: &HeaderMap) -> bool {
    let version = headers.get("mcp-protocol-version");
    version.is_some_and(|version| version.as_bytes() >= b"2026-07-28".as_slice())
}

/// Whether the request lasts until somebody ends it.
fn is_listen(headers: &HeaderMap) -> bool {
    let method = headers.get("mcp-method");
    is_modern(headers) && method.is_some_and(|method| method == "subscriptions/listen")
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

/// Puts what the session manager has left in place of rmcp's answer, and
/// tells whether that still stands.
fn settle(exchange: &Exchange, response: Response<ResponseBody>) -> (Response<ResponseBody>, bool) {
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
        (Some(verdict), _) => (verdict.into_response(), false),
        (None, Some(body)) => (response.map(|_| body.boxed_unsync()), false),
        (None, None) => (response, true),
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
