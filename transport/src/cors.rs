//! What browsers need before a page of another origin may speak to a server.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// The layer for MCP clients that run in pages of these origins, each as the
/// browser writes it: scheme, host and, unless it is the scheme's own, port.
/// Needs the feature `cors`.
///
/// It allows what MCP needs and no more: GET, POST and DELETE, any header (of
/// MCP's, `Accept`, `Authorization`, `Content-Type`, `Last-Event-ID`,
/// `MCP-Protocol-Version`, `Mcp-Session-Id`, `Mcp-Method`, `Mcp-Name` and
/// `Mcp-Param-*`, whose names are up to the tools), and no cookies. Pages may
/// read `Mcp-Session-Id`, without which there is no session, `Retry-After` and
/// `WWW-Authenticate`. Browsers ask again after an hour.
///
/// Make it the outermost layer. It answers preflight requests, which have no
/// `Authorization`; and a refusal of your authentication that it does not pass
/// is an error without a status for the page.
///
/// ```
/// # fn example(service: mcp_adapter_transport::McpService<impl rmcp::ServerHandler>) {
/// let router: axum::Router = axum::Router::new()
///     .nest_service("/mcp", service)
///     // .layer(your authentication)
///     .layer(mcp_adapter_transport::cors(["https://app.example"]));
/// # drop(router);
/// # }
/// ```
///
/// An origin that is no legal header value is never allowed. CORS keeps pages
/// from reading answers; to refuse what they send as well, name the same
/// origins to
/// [`with_allowed_origins`](crate::StreamableHttpTransport::with_allowed_origins).
pub fn cors(origins: impl IntoIterator<Item = impl AsRef<str>>) -> CorsLayer {
    let origins = origins
        .into_iter()
        .filter_map(|origin| HeaderValue::from_str(origin.as_ref()).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.collect::<Vec<_>>()))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list([
            SESSION_ID,
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
        ]))
        .max_age(Duration::from_secs(3600))
}
