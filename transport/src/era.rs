//! Clients with sessions and clients without.
//!
//! Up to 2025-11-25 a client initializes a session. From 2026-07-28 on each
//! request stands for itself: rmcp serves it without a session, and what needs
//! one (client requests, resumable streams, shared state) is not to be had.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use rmcp::model::{ErrorCode, ErrorData, ProtocolVersion};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::time::Instant;

use crate::{message, negotiate};

/// How often clients that have no session are logged, at most.
const LOG_EVERY: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(default)]
    params: Params,
}

#[derive(Default, Deserialize)]
struct Params {
    #[serde(default, rename = "_meta")]
    meta: Meta,
}

/// What makes a request stand for itself, in whatever version.
#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default, rename = "io.modelcontextprotocol/protocolVersion")]
    version: Option<ProtocolVersion>,
    #[serde(default, rename = "io.modelcontextprotocol/clientInfo")]
    client: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Option<serde::de::IgnoredAny>,
}

/// What a server of sessions alone answers a request that has none; `None`: it
/// is to be served.
pub(crate) fn refuse(headers: &HeaderMap, body: &[u8]) -> Option<(StatusCode, bytes::Bytes)> {
    let modern = negotiate::is_modern(headers);
    // What is no request is answered by rmcp.
    let request = serde_json::from_slice::<Envelope<'_>>(body).ok()?;
    if request.method == "initialize" {
        return None;
    }
    let meta = request.params.meta;
    let (status, error) = if request.method == "server/discover" {
        // As older servers answer it, for which clients that can do both look.
        let error = ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "Method not found", None);
        (StatusCode::NOT_FOUND, error)
    } else if modern
        || (meta.version.is_some() && meta.client.is_some() && meta.capabilities.is_some())
    {
        let requested = meta.version.unwrap_or(ProtocolVersion::V_2026_07_28);
        let supported = ProtocolVersion::KNOWN_VERSIONS.iter();
        let supported: Vec<_> = supported
            .filter(|version| version.has_initialize())
            .cloned()
            .collect();
        let error = ErrorData::unsupported_protocol_version(requested, &supported);
        (StatusCode::BAD_REQUEST, error)
    } else {
        return None;
    };
    let answer = json!({"jsonrpc": "2.0", "id": request.id, "error": error});
    Some((status, message::encode(&answer)?))
}

/// Tells the log that there are clients without a session, now and then.
#[derive(Debug)]
pub(crate) struct Unasked {
    since: Instant,
    /// Milliseconds after `since` before which nothing is said.
    quiet_until: AtomicU64,
}

impl Unasked {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            quiet_until: AtomicU64::new(0),
        }
    }

    /// A request without a session is served, where there could be one.
    pub(crate) fn came(&self) {
        metrics::counter!("mcp_transport_sessionless_requests_total").increment(1);
        if self.is_due(self.since.elapsed()) {
            tracing::warn!(
                "a client of 2026-07-28 or later is served without a session: it cannot be asked, \
                 its streams do not resume, and handlers find no `Session`; \
                 `with_sessions_only` makes clients that know both use a session"
            );
        }
    }

    /// Whether it is time for a line, and this one is it.
    fn is_due(&self, now: Duration) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let quiet_until = self.quiet_until.load(Ordering::Relaxed);
        millis(now) >= quiet_until
            && self
                .quiet_until
                .compare_exchange(
                    quiet_until,
                    millis(now.saturating_add(LOG_EVERY)),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::Value;

    use super::*;

    fn refused(version: Option<&'static str>, body: &Value) -> Option<(u16, Value)> {
        let mut headers = HeaderMap::new();
        if let Some(version) = version {
            headers.insert("mcp-protocol-version", HeaderValue::from_static(version));
        }
        let (status, body) = refuse(&headers, body.to_string().as_bytes())?;
        Some((status.as_u16(), serde_json::from_slice(&body).unwrap()))
    }

    fn meta(version: &str) -> Value {
        json!({"_meta": {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }})
    }

    #[test]
    fn what_needs_no_session_is_refused_and_nothing_else() {
        let request = |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": "a", "method": method, "params": params});
        let call = request("tools/call", meta("2026-07-28"));
        let (status, answer) = refused(Some("2026-07-28"), &call).unwrap();
        assert_eq!((status, &answer["id"]), (400, &json!("a")));
        assert_eq!(answer["error"]["code"], -32022);
        let supported = &answer["error"]["data"]["supported"];
        assert!(supported.as_array().unwrap().contains(&json!("2025-11-25")));
        assert!(!supported.as_array().unwrap().contains(&json!("2026-07-28")));
        // The lifecycle counts, and not the version that is used in it.
        let older = request("tools/call", meta("2025-11-25"));
        assert_eq!(refused(Some("2025-11-25"), &older).unwrap().0, 400);

        let discover = request("server/discover", meta("2026-07-28"));
        let (status, answer) = refused(Some("2026-07-28"), &discover).unwrap();
        assert_eq!((status, &answer["error"]["code"]), (404, &json!(-32601)));

        for served in [
            request("initialize", json!({"protocolVersion": "2026-07-28"})),
            request("tools/call", json!({"_meta": {"progressToken": 1}})),
            request("tools/call", json!({})),
            json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            json!({"jsonrpc": "2.0", "id": 1, "result": {}}),
            json!([]),
        ] {
            assert_eq!(refused(Some("2025-11-25"), &served), None, "{served}");
            assert_eq!(refused(None, &served), None, "{served}");
        }
    }

    #[test]
    fn the_log_hears_of_it_once_a_minute() {
        let unasked = Unasked::new();
        let due = |seconds| unasked.is_due(Duration::from_secs(seconds));
        let told = [0, 1, 59, 60, 61, 119, 120].map(due);
        assert_eq!(told, [true, false, false, true, false, false, true]);
    }
}
