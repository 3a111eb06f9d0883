//! What a request's headers ask for, put into the one form that rmcp reads.

use http::{HeaderMap, HeaderValue, Method, header};

use crate::verdict::Verdict;

const LAST_EVENT_ID: &str = "last-event-id";
const VERSION: &str = "mcp-protocol-version";
pub(crate) const SESSION_ID: &str = "mcp-session-id";

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// The last version whose clients may send batches.
const BATCHES_UNTIL: &str = "2025-03-26";
/// The first version without sessions.
const MODERN_SINCE: &str = "2026-07-28";

/// Makes `Accept` name what it admits, since rmcp looks for names alone, and
/// takes an empty `Last-Event-ID` for none: browsers' readers send one.
pub(crate) fn normalise(method: &Method, headers: &mut HeaderMap) {
    let admits = |wanted| admits(headers, wanted);
    if admits(EVENTS) && (method != Method::POST || admits(JSON)) {
        headers.insert(header::ACCEPT, BOTH);
    }
    if headers
        .get(LAST_EVENT_ID)
        .is_some_and(HeaderValue::is_empty)
    {
        headers.remove(LAST_EVENT_ID);
    }
}

/// What to say to a client that does not take what we have.
pub(crate) fn not_acceptable(method: &Method) -> Verdict {
    Verdict::NotAcceptable(if *method == Method::POST {
        "Not Acceptable: the client must accept application/json and text/event-stream"
    } else {
        "Not Acceptable: the client must accept text/event-stream"
    })
}

/// Whether the body is said to be JSON.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let essence = kind.and_then(|kind| kind.to_str().ok()?.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(JSON))
}

fn version(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(VERSION).map(HeaderValue::as_bytes)
}

/// Whether rmcp serves the request without a session.
pub(crate) fn is_modern(headers: &HeaderMap) -> bool {
    version(headers).is_some_and(|version| version >= MODERN_SINCE.as_bytes())
}

/// Whether the request lasts until somebody ends it.
pub(crate) fn is_listen(headers: &HeaderMap) -> bool {
    let method = headers.get("mcp-method");
    is_modern(headers) && method.is_some_and(|method| method == "subscriptions/listen")
}

/// Whether the client may be one that sends batches. Later ones name their
/// version with each request, and must not.
pub(crate) fn may_batch(headers: &HeaderMap) -> bool {
    version(headers).is_none_or(|version| version <= BATCHES_UNTIL.as_bytes())
}

/// Whether sessions of this version may send batches.
pub(crate) fn has_batches(protocol: &str) -> bool {
    protocol <= BATCHES_UNTIL
}

/// Whether the headers admit `wanted` (RFC 9110, section 12.5.1): of all ranges
/// that it is in, the most specific one decides, and a weight of 0 excludes it.
/// Without the header anything is admitted.
fn admits(headers: &HeaderMap, wanted: &str) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter().peekable();
    if values.peek().is_none() {
        return true;
    }
    let (group, _) = wanted.split_once('/').unwrap_or((wanted, ""));
    let mut best: Option<(u8, bool)> = None;
    for value in values {
        let Ok(value) = value.to_str() else { continue };
        for range in unquoted(value, ',') {
            let mut parts = unquoted(range, ';');
            let name = parts.next().unwrap_or_default().trim();
            let specific = if name.eq_ignore_ascii_case(wanted) {
                2
            } else if name == "*/*" {
                0
            } else if name
                .strip_suffix("/*")
                .is_some_and(|name| name.eq_ignore_ascii_case(group))
            {
                1
            } else {
                continue;
            };
            let admitted = parts.all(|parameter| match parameter.split_once('=') {
                Some((name, weight)) if name.trim().eq_ignore_ascii_case("q") => {
                    !is_zero(weight.trim())
                }
                _ => true,
            });
            // Of two that are as specific, one that admits is enough.
            if best.is_none_or(|best| best < (specific, admitted)) {
                best = Some((specific, admitted));
            }
        }
    }
    best.is_some_and(|(_, admitted)| admitted)
}

/// A weight that cannot be read excludes nothing.
fn is_zero(weight: &str) -> bool {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    whole == "0" && fraction.len() <= 3 && fraction.bytes().all(|digit| digit == b'0')
}

/// Splits at a delimiter that is not within a quoted string.
fn unquoted(value: &str, delimiter: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |c: char| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match c {
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && c == delimiter,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(method: &Method, accept: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, HeaderValue::from_static(value));
        }
        normalise(method, &mut headers);
        headers.get(header::ACCEPT) == Some(&BOTH)
    }

    #[test]
    fn ranges_are_read_as_http_says() {
        for accept in [
            &[][..],
            &["*/*"],
            &["application/*, text/*"],
            &["application/json", "text/event-stream"],
            &["application/json;q=0.001, */*;q=0.1"],
            &["TEXT/Event-Stream ; q=1.000, Application/*"],
            &["text/html;x=\"a,b;q=0\", */*; q=.5"],
            &["*/*;q=0, application/json, text/event-stream"],
            &["text/plain;q=0, */*"],
        ] {
            assert!(accepted(&Method::POST, accept), "{accept:?}");
            assert!(accepted(&Method::GET, accept), "{accept:?}");
        }
        for accept in [
            &[""][..],
            &["application/json"],
            &["text/html"],
            &["*/*;q=0"],
            &["*/*, text/*;q=0"],
            &["*/*, text/event-stream;q=0.0"],
            &["application/json, text/event-stream; Q=0.000"],
        ] {
            assert!(!accepted(&Method::POST, accept), "{accept:?}");
            assert!(!accepted(&Method::GET, accept), "{accept:?}");
        }
        for accept in ["text/event-stream", "*/*, application/json;q=0"] {
            assert!(!accepted(&Method::POST, &[accept]), "{accept:?}");
            assert!(accepted(&Method::GET, &[accept]), "{accept:?}");
        }
    }

    #[test]
    fn an_empty_event_id_is_none() {
        let mut headers = HeaderMap::new();
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static(""));
        normalise(&Method::GET, &mut headers);
        assert!(!headers.contains_key(LAST_EVENT_ID));
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static("a.1.1"));
        normalise(&Method::GET, &mut headers);
        assert!(headers.contains_key(LAST_EVENT_ID));
    }

    #[test]
    fn batches_are_of_old_versions() {
        let mut headers = HeaderMap::new();
        assert!(may_batch(&headers));
        for (version, may) in [
            ("2024-11-05", true),
            ("2025-03-26", true),
            ("2025-06-18", false),
            ("2026-07-28", false),
        ] {
            headers.insert(VERSION, HeaderValue::from_static(version));
            assert_eq!(may_batch(&headers), may, "{version}");
            assert_eq!(has_batches(version), may, "{version}");
        }
    }
}
