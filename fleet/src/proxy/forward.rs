//! One request: route it, send it, and stream the answer back.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::{
    INSTANCE_HEADER, peek,
    policy::{Kind, Policy, Router},
};

/// Bytes of a POST body that are read before it is routed.
const PEEK_LIMIT: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Shorter than any server's own limit: a request must not race the closing of an
/// idle connection.
const POOL_IDLE: Duration = Duration::from_secs(10);

/// Valid for one hop only, so not passed on.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type BodyError = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = BoxBody<Bytes, BodyError>;

/// A body after the peek.
enum Peeked {
    /// All of it: can be sent again.
    Whole(Bytes),
    /// The prefix and the rest: can be sent once.
    Partial(Bytes, Incoming),
}

#[derive(Debug)]
pub(super) struct Forwarder {
    router: Router,
    upstreams: Vec<Upstream>,
    client: Client<HttpConnector, AnyBody>,
}

#[derive(Debug)]
struct Upstream {
    authority: String,
    label: HeaderValue,
}

impl Forwarder {
    pub(super) fn new(policy: Policy, upstreams: Vec<SocketAddr>, idle: usize) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(idle)
            .build(connector);
        Self {
            router: Router::new(policy, upstreams.len()),
            upstreams: upstreams
                .into_iter()
                .map(|addr| Upstream {
                    authority: addr.to_string(),
                    label: HeaderValue::from_str(&addr.to_string())
                        .unwrap_or(HeaderValue::from_static("unknown")),
                })
                .collect(),
            client,
        }
    }

    /// Never fails: what goes wrong becomes a status that clients understand.
    pub(super) async fn forward(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<AnyBody>, Infallible> {
        let (head, body) = request.into_parts();
        let (kind, body) = match head.method {
            Method::GET => (Kind::Get, Peeked::Whole(Bytes::new())),
            Method::DELETE => (Kind::Delete, Peeked::Whole(Bytes::new())),
            _ => match peek_body(body).await {
                Ok(body) => {
                    let (Peeked::Whole(prefix) | Peeked::Partial(prefix, _)) = &body;
                    (peek::kind(prefix), body)
                }
                Err(error) => {
                    tracing::debug!(%error, "the client's body broke off");
                    return Ok(status(StatusCode::BAD_REQUEST, None));
                }
            },
        };
        Ok(self.send(&head, kind, body).await)
    }

    async fn send(
        &self,
        head: &http::request::Parts,
        kind: Kind,
        mut body: Peeked,
    ) -> Response<AnyBody> {
        for index in self.router.order(kind) {
            let Some(upstream) = self.upstreams.get(index) else {
                continue;
            };
            let (payload, again) = match body {
                Peeked::Whole(bytes) => (full(bytes.clone()), Some(bytes)),
                Peeked::Partial(prefix, rest) => (chain(prefix, rest), None),
            };
            let request = match outbound(head, upstream, payload) {
                Ok(request) => request,
                Err(error) => {
                    tracing::debug!(%error, "the request cannot be passed on");
                    return status(StatusCode::BAD_REQUEST, None);
                }
            };
            match self.client.request(request).await {
                Ok(response) => return inbound(response, upstream),
                // Nothing was sent: another instance may have it.
                Err(error) if error.is_connect() => match again {
                    Some(bytes) => body = Peeked::Whole(bytes),
                    None => return status(StatusCode::BAD_GATEWAY, Some(upstream)),
                },
                Err(error) => {
                    tracing::debug!(%error, upstream = upstream.authority, "no answer");
                    return status(StatusCode::BAD_GATEWAY, Some(upstream));
                }
            }
        }
        let mut response = status(StatusCode::SERVICE_UNAVAILABLE, None);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

/// Reads the body until its kind can be told.
async fn peek_body(mut body: Incoming) -> Result<Peeked, hyper::Error> {
    let mut prefix = BytesMut::new();
    while prefix.len() < PEEK_LIMIT {
        match body.frame().await {
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    prefix.extend_from_slice(&data);
                }
            }
            None => return Ok(Peeked::Whole(prefix.freeze())),
        }
    }
    if body.is_end_stream() {
        return Ok(Peeked::Whole(prefix.freeze()));
    }
    Ok(Peeked::Partial(prefix.freeze(), body))
}

fn full(bytes: Bytes) -> AnyBody {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// The prefix, then what is still to come.
fn chain(prefix: Bytes, rest: Incoming) -> AnyBody {
    Chained {
        prefix: Some(prefix),
        rest,
    }
    .boxed()
}

struct Chained {
    prefix: Option<Bytes>,
    rest: Incoming,
}

impl Body for Chained {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.prefix.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Pin::new(&mut self.rest).poll_frame(cx).map_err(Into::into),
        }
    }
}

fn outbound(
    head: &http::request::Parts,
    upstream: &Upstream,
    body: AnyBody,
) -> Result<Request<AnyBody>, http::Error> {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(&head.method)
        .uri(format!("http://{}{path}", upstream.authority))
        .body(body)?;
    *request.headers_mut() = end_to_end(&head.headers);
    // The body is measured or chunked anew.
    request.headers_mut().remove(header::CONTENT_LENGTH);
    Ok(request)
}

fn inbound(response: Response<Incoming>, upstream: &Upstream) -> Response<AnyBody> {
    let (mut head, body) = response.into_parts();
    head.headers = end_to_end(&head.headers);
    head.headers.insert(INSTANCE_HEADER, upstream.label.clone());
    // An upstream that dies breaks this body off, and with it the client's stream.
    Response::from_parts(head, body.map_err(Into::into).boxed())
}

/// A copy without the headers of the connection.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for named in headers.get_all(header::CONNECTION) {
        for name in named.to_str().unwrap_or_default().split(',') {
            kept.remove(name.trim());
        }
    }
    for name in &HOP_BY_HOP {
        kept.remove(name);
    }
    kept
}

fn status(status: StatusCode, upstream: Option<&Upstream>) -> Response<AnyBody> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    if let Some(upstream) = upstream {
        response
            .headers_mut()
            .insert(INSTANCE_HEADER, upstream.label.clone());
    }
    response
}
