//! What a client is told. No text of a backend is among it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use mcp_adapter_core::{Error, ErrorKind};
use rmcp::model::ErrorCode;

use crate::{message, service::ResponseBody};

const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The answer that replaces rmcp's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is left to be said: an `EventSource` does not come back.
    NoContent,
    BadRequest(&'static str),
    /// A `Host` or `Origin` that is not allowed.
    Forbidden,
    /// No such session for this principal.
    NotFound,
    MethodNotAllowed,
    NotAcceptable(&'static str),
    Timeout,
    TooLarge,
    NotJson,
    /// The principal's share is used up.
    Quota,
    Unavailable,
    Internal,
    /// A JSON-RPC message in place of a stream.
    Message(Bytes),
    /// A JSON-RPC error for what is no message, with status 400.
    Rpc(Bytes),
    /// A JSON-RPC error with a status of its own.
    Refusal(StatusCode, Bytes),
    /// A batch in a session without batches.
    NoBatches,
}

/// Marks a refusal of one message of a batch that is one of the whole batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WholeBatch;

impl From<&Error> for Verdict {
    fn from(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::SessionNotFound => Self::NotFound,
            ErrorKind::InvalidArgument => Self::BadRequest("Bad Request: malformed argument"),
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::QuotaExceeded => Self::Quota,
            // What is left passes with time: a backend that is away, a record
            // of a newer version during a rolling deploy. None of it may look
            // as if the session were gone, or clients give it up.
            _ => Self::Unavailable,
        }
    }
}

impl Verdict {
    /// Keeps the error for the server's own log and gives what may leave.
    pub(crate) fn of(error: &Error) -> Self {
        let verdict = Self::from(error);
        if verdict == Self::NotFound {
            tracing::debug!(%error, "request refused");
        } else {
            tracing::warn!(%error, "request refused");
        }
        verdict
    }

    /// What is not JSON.
    pub(crate) fn parse_error() -> Self {
        Self::Rpc(message::refusal(
            ErrorCode::PARSE_ERROR,
            "Parse error",
            None,
        ))
    }

    /// What is JSON and no message that can be served. `id` is JSON.
    pub(crate) fn invalid_request(text: &'static str, id: Option<&str>) -> Self {
        Self::Rpc(message::refusal(ErrorCode::INVALID_REQUEST, text, id))
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoContent => StatusCode::NO_CONTENT,
            Self::BadRequest(_) | Self::Rpc(_) | Self::NoBatches => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Quota => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Message(_) => StatusCode::OK,
            Self::Refusal(status, _) => *status,
        }
    }

    /// What stands in the body, if it is text.
    fn text(&self) -> &'static str {
        match self {
            Self::NoContent
            | Self::Message(_)
            | Self::Rpc(_)
            | Self::Refusal(..)
            | Self::NoBatches => "",
            Self::BadRequest(text) | Self::NotAcceptable(text) => text,
            Self::Forbidden => "Forbidden: Host or Origin is not allowed",
            Self::NotFound => "Not Found: Session not found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::Timeout => "Request Timeout",
            Self::TooLarge => "Payload Too Large",
            Self::NotJson => "Unsupported Media Type: Content-Type must be application/json",
            Self::Quota => "Too Many Requests",
            Self::Unavailable => "Service Unavailable",
            Self::Internal => "Internal Server Error",
        }
    }

    pub(crate) fn into_response(self) -> Response<ResponseBody> {
        let status = self.status();
        let is_whole = self == Self::NoBatches;
        let (kind, body) = match self {
            Self::NoBatches => {
                let text = "Invalid Request: this version has no batches";
                let refusal = message::refusal(ErrorCode::INVALID_REQUEST, text, None);
                (Some(JSON), refusal)
            }
            Self::NoContent => (None, Bytes::new()),
            Self::Message(message) | Self::Rpc(message) | Self::Refusal(_, message) => {
                (Some(JSON), message)
            }
            text => (Some(TEXT), Bytes::from_static(text.text().as_bytes())),
        };
        let mut response = Response::new(Full::new(body).boxed_unsync());
        *response.status_mut() = status;
        if is_whole {
            response.extensions_mut().insert(WholeBatch);
        }
        let headers = response.headers_mut();
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, kind);
        }
        if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What rmcp may know of a failure: it logs it, and would send it to clients.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("refused")]
pub(crate) struct Refused;

/// Why a message of a handler did not go out. Handlers tend to put such texts
/// into their own answers, so it names no backend and has no source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the session has ended")]
    SessionEnded,
    #[error("the call has ended")]
    CallEnded,
    #[error("the message is too large")]
    TooLarge,
    #[error("overloaded, try again later")]
    Overloaded,
    #[error("this server cannot ask its clients")]
    Unsupported,
    #[error("the message could not be stored")]
    NotStored,
}

impl From<&Error> for SendError {
    fn from(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::SessionNotFound => Self::SessionEnded,
            ErrorKind::Finished | ErrorKind::Fenced | ErrorKind::StreamGone => Self::CallEnded,
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::Overloaded | ErrorKind::QuotaExceeded => Self::Overloaded,
            _ => Self::NotStored,
        }
    }
}

/// Bounds of waits that no client and no backend bounds.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
